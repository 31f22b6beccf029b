"""Changes nginx's files on the machine again and again, killed before each file operation in turn; runs under Salt's Python.

Prints, as JSON, the number of such moments of each change, and what was wrong after which of them.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "_utils"))

from wsgi_formula.edge.nginx import Nginx
from wsgi_formula.host import Host

OPERATIONS = (
    "os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "subprocess.Popen",
)  # fmt: skip
NGINX, SAVED = "/etc/nginx", "/root/nginx"
BASE = f"{NGINX}/wsgi"
APP = {"source": "salt://wsgi/examples/hello", "application": "hello:application", "server": "gunicorn"}
USERS = {"ann": "$6$salt$hash"}
OLD = {
    "shop": {**APP, "domains": ["shop.test"], "basic_auth": {"users": USERS}},
    "blog": {**APP, "domains": ["blog.test"]},
}
NEW = {
    "shop": {**APP, "domains": ["shop.test", "new.test"], "basic_auth": {"users": {"eve": USERS["ann"]}}},
    "blog": {**APP, "domains": ["blog.test"], "tls": "self_signed"},
}


def make_host(apps):
    """Return a host with the formula's own files and compiled templates."""
    salt = {"cp.cache_file": lambda url, saltenv: str(ROOT / url[len("salt://") :])}
    grains = {"os_family": "Debian", "osfinger": "Debian-12"}
    host = Host(salt, {"wsgi": {"apps": apps}}, grains, "base")
    host.once(Nginx).needed_changes(*host.settings.apps)
    host.once(Nginx)._installed = None
    return host


def change(host, moment=None, everywhere=True):
    """
    Install a host's sites in a process of its own, which is killed at a moment, and return whether it finished.
    Unless ``everywhere`` is set, operations in a tree that is not live yet do not count as moments.
    """
    pid = os.fork()
    if pid == 0:
        seen = []

        def hook(event, arguments):
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if (writes or event in OPERATIONS) and (everywhere or not f"{BASE}/trees/" in str(arguments)):
                seen.append(event)
                if len(seen) == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        status = 1
        try:
            host.once(Nginx).write(*host.settings.apps)
            status = 0
        finally:
            if status:
                traceback.print_exc()
            os._exit(status)
    status = os.waitpid(pid, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        sys.exit("a change failed")
    return os.WIFEXITED(status)


def served():
    """Return the hosts that nginx would serve if it were started now, or its error."""
    done = subprocess.run(["nginx", "-T"], capture_output=True, text=True, check=False)
    return sorted(re.findall(r"server_name (\S+)", done.stdout)) if done.returncode == 0 else done.stderr


def state():
    """Return texts, modes and owners of all files in the live tree, certificates' texts excepted, and the number of trees."""
    found = {}
    for path in sorted(Path(f"{BASE}/live/").rglob("*")):
        stat = path.stat()
        text = path.read_text() if path.is_file() and ".self-signed." not in path.name else None
        found[str(path)] = [text, stat.st_mode, stat.st_uid, stat.st_gid]
    return found, len(os.listdir(f"{BASE}/trees")), sorted(os.listdir(f"{NGINX}/conf.d"))


def save():
    subprocess.run(["rm", "-rf", SAVED], check=True)
    subprocess.run(["cp", "-a", NGINX, SAVED], check=True)


def restore():
    shutil.rmtree(NGINX)
    subprocess.run(["cp", "-a", SAVED, NGINX], check=True)


def lay_out_as_before():
    """Arrange the files as older versions of the formula did: without trees."""
    for path in Path(f"{BASE}/live/").iterdir():
        path.rename(f"{BASE}/{path.name}")
    os.rename(f"{BASE}/wsgi.conf", f"{NGINX}/conf.d/wsgi.conf")
    shutil.rmtree(f"{BASE}/trees")
    os.unlink(f"{BASE}/live")
    for path in [*Path(BASE).rglob("*.conf"), Path(f"{NGINX}/conf.d/wsgi.conf")]:
        path.write_text(path.read_text().replace(f"{BASE}/live/", f"{BASE}/"))


def killed(everywhere):
    """Make the change from the saved files; return the number of moments, and what was wrong by moment."""
    restore()
    before = served()
    change(make_host(NEW))
    after, wanted = served(), state()
    wrong, moment, host = {}, 0, make_host(NEW)
    while True:
        moment += 1
        restore()
        if change(host, moment, everywhere):
            return moment - 1, wrong
        if served() not in (before, after):
            wrong[moment] = f"nginx would serve {served()}"
        change(host)
        if served() != after or state() != wanted:
            wrong[moment] = f"not converged: nginx would serve {served()}"


if __name__ == "__main__":
    report = {}
    save()
    report["first"] = killed(everywhere=False)
    restore()
    change(make_host(OLD))
    save()
    report["change"] = killed(everywhere=True)
    restore()
    lay_out_as_before()
    save()
    report["old layout"] = killed(everywhere=False)
    print(json.dumps(report))
