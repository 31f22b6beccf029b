"""One run at a time changes nginx's files and reloads it, certbot's hook among them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from wsgi_formula import paths
from wsgi_formula.edge import maintenance, reload
from wsgi_formula.edge.nginx import Nginx

PROGRAM = Path(reload.__file__)
# A master whose worker gives way to another one at SIGHUP, as nginx's does.
MASTER = """\
import os, signal, time
def worker():
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        time.sleep(60)
        os._exit(0)
    return pid
now = worker()
def reload(*_):
    global now
    before, now = now, worker()
    os.kill(before, signal.SIGTERM)
    os.waitpid(before, 0)
signal.signal(signal.SIGHUP, reload)
print("up", flush=True)
try:
    while True:
        time.sleep(0.05)
finally:
    os.kill(now, signal.SIGTERM)
"""
END = "signal.signal(signal.SIGTERM, lambda *_: exit())\n"


@pytest.fixture
def places(tmp_path, monkeypatch):
    """The module with a folder of its own, in which shortcuts are switched on."""
    (tmp_path / "shortcuts").mkdir()
    (tmp_path / "short").symlink_to("shortcuts")
    names = {
        "LOCK": "nginx.busy",
        "DRAIN_MARKER": "nginx.closing",
        "FAST_PATH_LINK": "short",
        "FAST_PATHS": "shortcuts",
    }
    for name, file in names.items():
        monkeypatch.setattr(reload, name, str(tmp_path / file))
    monkeypatch.setattr(reload, "RUN", str(tmp_path))
    monkeypatch.setattr(reload, "DRAIN_TIME", 0.2)
    return tmp_path


@pytest.fixture
def master():
    script = MASTER.replace("now = worker()\ndef", f"now = worker()\n{END}def", 1)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "up\n"
        yield process.pid
        process.terminate()


def test_reload_sets_and_removes_the_drain_marker(places, master, monkeypatch):
    seen, kill = [], os.kill

    def observed(pid, signal):
        if pid == master:  # a guard's thread, of another test, signals others
            seen.append(((places / "nginx.closing").exists(), (places / "short").is_symlink()))
        kill(pid, signal)

    monkeypatch.setattr(os, "kill", observed)
    asked = reload.reload(master)
    assert seen == [(True, False)]
    assert asked <= time.time()
    assert not (places / "nginx.closing").exists()
    assert os.readlink(places / "short") == "shortcuts"


def test_second_run_waits_for_a_reload_and_leaves_its_marker(places, make_host):
    host = make_host({"apps": {}})
    host.family["nginx"]["own_dir"] = str(places / "live")
    pid = os.fork()  # before the lock is held, which a child would hold, too
    if pid == 0:
        while not (places / "nginx.closing").exists():
            time.sleep(0.01)
        with host.once(Nginx)._locked():
            os._exit(0 if (places / "ended").exists() and not (places / "nginx.closing").exists() else 1)
    with reload.locked():
        (places / "nginx.closing").touch()
        time.sleep(0.3)
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        assert (places / "nginx.closing").exists()
        (places / "ended").touch()
    assert os.waitpid(pid, 0)[1] == 0


def test_waiting_too_long_is_reported(places):
    second = reload.locked(timeout=0.1)
    with reload.locked(), pytest.raises(TimeoutError, match="another run has held nginx's files"):
        second.__enter__()


def test_reload_program_needs_only_the_standard_library():
    done = subprocess.run([sys.executable, "-I", "-S", PROGRAM], check=False, capture_output=True, text=True, env={})
    assert "KeyError: 'RENEWED_LINEAGE'" in done.stderr


@pytest.fixture
def program(places, tmp_path, monkeypatch):
    """program(lineage) runs the program for a site with the certificate /etc/letsencrypt/live/shop, and returns its result
    and the PIDs that it has reloaded."""
    (tmp_path / "sites").mkdir()
    (tmp_path / "sites/shop.conf").write_text("    ssl_certificate /etc/letsencrypt/live/shop/fullchain.pem;\n")
    (tmp_path / "nginx.pid").write_text("7\n")
    settings = {"sites": f"{tmp_path}/sites", "pid_file": f"{tmp_path}/nginx.pid"}
    (tmp_path / "reload-nginx.json").write_text(json.dumps(settings))
    monkeypatch.setattr(reload, "RELOADED", f"{tmp_path}/nginx.reloaded")
    reloaded = []
    monkeypatch.setattr(reload, "reload", lambda master: reloaded.append(master) or 1234.0)

    def run(lineage, status=0):
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], status))
        return reload.main(f"{tmp_path}/reload-nginx", lineage), reloaded

    return run


def test_reload_program_reloads_nginx_after_the_renewal_of_a_certificate_in_use(program, tmp_path):
    assert program("/etc/letsencrypt/live/shop") == (0, [7])
    assert (tmp_path / "nginx.reloaded").stat().st_mtime == 1234


def test_reload_program_ignores_a_certificate_that_no_site_uses(program):
    assert program("/etc/letsencrypt/live/sho") == (0, [])


def test_reload_program_reloads_no_invalid_configuration(program):
    assert program("/etc/letsencrypt/live/shop", status=1) == (1, [])


def test_reload_program_uses_the_paths_of_the_package():
    assert (reload.RUN, reload.LIB) == (paths.RUN, paths.LIB)
    assert reload.FAST_PATHS == maintenance.FAST_PATHS
