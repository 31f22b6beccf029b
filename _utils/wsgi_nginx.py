"""
The shared proxy: one site per app, and a reload only when what nginx would read has changed.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time

import wsgi_host
import wsgi_maintenance
import wsgi_managers
import wsgi_wanted
from wsgi_host import LIB, PATH, RUN, Problem
from wsgi_step import tail

# What nginx was last told to load, and which nginx that was.
LOADED = f"{RUN}/nginx.loaded"
LISTEN = re.compile(r"^\s*listen (\d+)( default_server)?;", re.MULTILINE)
# While it is there, the sites ask clients to open a new connection for their next request.
CLOSING = f"{RUN}/nginx.closing"
# For how long, before a reload. Any client that sends more often than that is told in time; 40
# reloads without it cost 79 of 28,114 requests of 8 clients, 4 of them keep-alive, on nginx 1.22.
CLOSING_TIME = 2  # seconds
RELOAD_PATIENCE = 10  # seconds


def site_path(host, name):
    """Where an app's site lies."""
    return f"{host.family['nginx']['conf_dir']}/wsgi-{name}.conf"


def default_path(host):
    """Where the site for unknown hosts lies."""
    return f"{host.family['nginx']['conf_dir']}/wsgi.conf"


def site_text(host, name, app):
    """
    An app's site.

    app : dict
        As ``wsgi_settings.Settings.apps`` holds it.

    Returns a str.
    """
    return host.render(
        "nginx/site.conf.jinja",
        name=name,
        app=app,
        nginx=host.settings.nginx,
        live=f"{LIB}/live/{name}",
        closing=CLOSING,
        maintenance={
            "marker": wsgi_maintenance.marker(name),
            "pages": [wsgi_maintenance.page(name), wsgi_maintenance.PLAIN_PAGE],
        },
        log_dir=host.family["nginx"]["log_dir"],
        ipv6=_ipv6(),
    )


def differs(host, name):
    """Whether an app's own site is not as it should be. Cheap: no other site is looked at."""
    return wsgi_host.read(site_path(host, name)) != site_text(host, name, wsgi_wanted.settings(host, name))


def pending(host, *names, without=None):
    """
    The files that would have to change for these apps' sites to be as they should.

    names : str
        Apps of ``host.settings.apps``.
    without : str
        An app that is to have no site.

    Returns a dict of paths to texts, or to None for a file to be removed.
    """
    sites = _sites(host)
    for name in names:
        sites[site_path(host, name)] = site_text(host, name, wsgi_wanted.settings(host, name))
    if without:
        sites[site_path(host, without)] = None
    wanted = {**sites, default_path(host): _default_text(host, filter(None, sites.values()))}
    return {path: text for path, text in wanted.items() if wsgi_host.read(path) != text}


def check(host, name):
    """
    Try an app's site before anything depends on it.

    Raises ``Problem`` when nginx refuses the tree with it, or its port is another program's.
    """
    changes = pending(host, name)
    if changes:
        _check_port(host, name)
        with _staged(changes):
            _test()


def put(host, name):
    """Put an app's site in place, and nginx to serving it, where that differs. Raises ``Problem`` as ``check`` does."""
    check(host, name)
    if differs(host, name):
        _put(pending(host, name))
    if not loaded(host):
        reload(host)


def withdraw(host, name):
    """Take an app's site away, and nginx off it."""
    _put(pending(host, without=name))
    if _master(host) and not loaded(host):
        reload(host)


def refresh(host):
    """
    Bring nginx up to date with the sites as they lie on the disk.

    Returns whether it had to be reloaded. Raises ``Problem`` as ``reload`` does.
    """
    wsgi_host.remove(CLOSING)  # of a run that was killed
    _put(pending(host))
    if loaded(host):
        return False
    reload(host)
    return True


def logs(host, name):
    """An app's logs of nginx, rotated ones too."""
    folder = host.family["nginx"]["log_dir"]
    return [f"{folder}/{log}" for log in wsgi_host.listdir(folder) if log.startswith(f"wsgi-{name}.")]


def loaded(host):
    """Whether nginx runs with the sites as they now are."""
    master = _master(host)
    if master is None:
        return False
    found = wsgi_host.read_json(LOADED) or {}
    if found.get("nginx") == _identity(master):
        return found["sites"] == _sum(host)
    # It was started anew since: it read whatever was there by then.
    start = time.time() - wsgi_managers.uptime(master)
    paths = [*_sites(host), default_path(host), host.family["nginx"]["conf_dir"]]
    paths.append(os.path.dirname(host.family["nginx"]["distribution_site"]))
    return all(os.path.getmtime(path) < start for path in paths if os.path.exists(path))


def reload(host):
    """
    Have nginx read its configuration, if the whole of it is sound, and see to it that it did.

    Raises ``Problem`` when the configuration is refused; nginx goes on with the one it has.
    """
    _test()
    master = _master(host)
    if master is None:
        raise Problem("nginx is not running: `systemctl status nginx` says why")
    before = set(wsgi_managers.processes(master))
    log = f"{host.family['nginx']['log_dir']}/error.log"
    size = os.path.getsize(log) if os.path.exists(log) else 0
    with _closing():
        os.kill(master, signal.SIGHUP)
        # It keeps its old workers, and says so in its log alone, when it can't have a port.
        taken = wsgi_managers.wait_until(lambda: set(wsgi_managers.processes(master)) - before, RELOAD_PATIENCE)
        if taken:
            wsgi_managers.wait_until(lambda: not any(map(_accepts, before - {master})), RELOAD_PATIENCE)
    if not taken:
        raise Problem(f"nginx did not take its new configuration; {log} says:\n{_since(log, size)}")
    wsgi_host.write(LOADED, json.dumps({"nginx": _identity(master), "sites": _sum(host)}) + "\n", 0o644)


@contextlib.contextmanager
def _closing():
    wsgi_host.folder(RUN, 0o755)
    wsgi_host.write(CLOSING, "", 0o644)
    try:
        time.sleep(CLOSING_TIME)
        yield
    finally:
        wsgi_host.remove(CLOSING)


def _sites(host):
    """The sites of apps on this machine, path to text."""
    folder = host.family["nginx"]["conf_dir"]
    return {
        f"{folder}/{name}": wsgi_host.read(f"{folder}/{name}")
        for name in sorted(wsgi_host.listdir(folder))
        if name.startswith("wsgi-") and name.endswith(".conf")
    }


def _default_text(host, sites):
    """The site for unknown hosts, on each port where no app is the default."""
    ports = {}
    for text in sites:
        for port, default in LISTEN.findall(text):
            ports[int(port)] = ports.get(int(port), False) or bool(default)
    if not host.settings.nginx["default_site"]:
        ports = {}
    return host.render(
        "nginx/wsgi.conf.jinja",
        ports=sorted(port for port, default in ports.items() if not default),
        ipv6=_ipv6(),
    )


@contextlib.contextmanager
def _staged(changes):
    """Put files where nginx looks for them, for as long as it takes to test them."""
    before = {path: wsgi_host.read(path) for path in changes}
    try:
        _put(changes)
        yield
    finally:
        _put(before)


def _put(files):
    for path, text in files.items():
        if text is None:
            wsgi_host.remove(path)
        else:
            wsgi_host.write(path, text, 0o644)


def _test():
    nginx = shutil.which("nginx", path=PATH)
    if nginx is None:
        raise Problem("nginx is not installed")
    done = subprocess.run(
        [nginx, "-t"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
    )
    if done.returncode:
        raise Problem(f"nginx -t refuses the configuration:\n{tail(done.stdout)}")


def _check_port(host, name):
    """nginx -t passes over a port that is taken; nginx itself would then keep its old sites."""
    port = wsgi_wanted.settings(host, name)["listen"]
    with contextlib.closing(socket.socket()) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("", port))
            return
        except OSError:
            pass
    master = _master(host)
    held = {_link(f"/proc/{master}/fd/{fd}") for fd in wsgi_host.listdir(f"/proc/{master}/fd")}
    for inode in _listeners(port):
        if f"socket:[{inode}]" in held:
            return
    raise Problem(f"wsgi:apps:{name}:listen: port {port} is another program's; `ss -ltnp 'sport = :{port}'` says whose")


def _listeners(port):
    """The inodes of the TCP sockets that listen on a port."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in (wsgi_host.read(table) or "").splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                yield fields[9]


def _master(host):
    """The PID of nginx, or None."""
    text = wsgi_host.read(host.family["nginx"]["pid_file"])
    pid = int(text) if text and text.strip().isdigit() else None
    return pid if pid and wsgi_managers.alive(pid) else None


def _identity(master):
    return f"{master} since {wsgi_managers.started(master)}"


def _sum(host):
    known = {**_sites(host), default_path(host): wsgi_host.read(default_path(host))}
    known[""] = os.path.lexists(host.family["nginx"]["distribution_site"])
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _since(log, size):
    with contextlib.suppress(FileNotFoundError), open(log, errors="replace") as file:
        file.seek(size)
        return tail(file.read())
    return ""


def _accepts(worker):
    """Whether a worker still takes new connections; its title says when it does no more."""
    title = wsgi_host.read(f"/proc/{worker}/cmdline") if wsgi_managers.alive(worker) else None
    return title is not None and "shutting down" not in title


def _link(path):
    try:
        return os.readlink(path)
    except OSError:
        return None


def _ipv6():
    return os.path.exists("/proc/net/if_inet6")
