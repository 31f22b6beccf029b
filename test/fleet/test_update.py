"""Minions with the formula before version 1.0, whose modules were flat files, are updated while their apps serve."""

import contextlib

import pytest
from master import FORMULA, ROOTS

ARCHIVE = "/srv/formula/test/fleet/formula-before-1.0.tar.xz"
UTILS = "/var/cache/salt/minion/extmods/utils"
HELLO = {"source": "salt://wsgi/examples/hello", "application": "hello:application", "health": {"path": "/healthz"}}
ECHO = {"source": "salt://apps/asgi", "application": "echo:application", "interface": "asgi"}
APPS = {
    "emperors": {**HELLO, "server": "uwsgi", "listen": 8001},
    "supervisors": {**HELLO, "server": "gunicorn", "listen": 8002},
    "systemds": {**ECHO, "server": "uvicorn", "listen": 8003},
    "spawned": {**HELLO, "server": "waitress", "workers": 2, "listen": 8004},
}


@pytest.fixture
def minion(master):
    """A minion with the formula before version 1.0 and its apps; it keeps its modules in memory, since it does not fork."""
    master.configure(ROOTS)
    master.exec(f"rm -rf {FORMULA} && mkdir -p {FORMULA} && tar -C {FORMULA} --no-same-owner -xf {ARCHIVE}")
    minion = master.minions["web1"]
    minion.configure(multiprocessing=False)
    master.wait_for_minions()
    master.pillar({"apps": APPS}, "web1")
    master.salt("web1", "state.highstate")
    assert "wsgi_host.py" in minion.exec(["ls", UTILS]).stdout
    yield minion
    minion.configure()
    master.wait_for_minions()


def generations(minion):
    return {name: minion.exec(["readlink", f"/var/lib/wsgi/live/{name}"]).stdout for name in APPS}


def test_an_update_from_flat_modules_loses_no_request_and_makes_no_new_generation(master, minion):
    before = generations(minion)
    with contextlib.ExitStack() as loads:
        reports = {
            name: loads.enter_context(minion.load(seconds=300, clients=2, pause=0.05, port=app["listen"]))
            for name, app in APPS.items()
        }
        master.restore_formula()
        refused = master.exec(["salt", "web1", "state.apply", "wsgi"], check=False)
        assert "saltutil.sync_all" in refused.stdout
        master.salt("web1", "saltutil.sync_all")
        master.salt("web1", "state.apply", "wsgi")
        assert generations(minion) == before
        # What was not to be done again was done once: the next switch is an ordinary one.
        master.pillar({"apps": {**APPS, "supervisors": {**HELLO, "server": "granian", "listen": 8002}}}, "web1")
        master.salt("web1", "state.apply", "wsgi")
    assert {name: load.report["lost"] for name, load in reports.items()} == dict.fromkeys(APPS, 0)
    after = generations(minion)
    assert [name for name in APPS if after[name] != before[name]] == ["supervisors"]
    assert minion.exec(f"ls -d {UTILS}/wsgi_*").stdout.split() == [f"{UTILS}/wsgi_formula"]
    assert master.salt("web1", "state.apply", "wsgi")["web1"].changed == set()
