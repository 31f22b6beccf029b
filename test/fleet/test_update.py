"""Minions with the formula before version 1.0, whose modules were flat files, are updated while their apps serve."""

import contextlib

import pytest
from master import FORMULA, ROOTS
from pillars import HELLO

ARCHIVE = "/srv/formula/test/fleet/formula-before-1.0.tar.xz"
UTILS = "/var/cache/salt/minion/extmods/utils"
HEALTHY = {**HELLO, "health": {"path": "/healthz"}}
ECHO = {"source": "salt://apps/asgi", "application": "echo:application", "interface": "asgi"}
APPS = {
    "emperors": {**HEALTHY, "server": "uwsgi", "listen": 8001},
    "supervisors": {**HEALTHY, "server": "gunicorn", "listen": 8002},
    "systemds": {**ECHO, "server": "uvicorn", "listen": 8003},
    "spawned": {**HEALTHY, "server": "waitress", "workers": 2, "listen": 8004},
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
    return {name: minion.live_generation(name) for name in APPS}


def test_update_from_flat_modules_loses_no_request_and_makes_no_new_generation(master, minion):
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
        # The switch after the update is an ordinary one.
        master.pillar({"apps": {**APPS, "supervisors": {**HEALTHY, "server": "granian", "listen": 8002}}}, "web1")
        master.salt("web1", "state.apply", "wsgi")
    assert {name: load.report["lost"] for name, load in reports.items()} == dict.fromkeys(APPS, 0)
    after = generations(minion)
    assert [name for name in APPS if after[name] != before[name]] == ["supervisors"]
    assert minion.exec(f"ls -d {UTILS}/wsgi_*").stdout.split() == [f"{UTILS}/wsgi_formula"]
    assert master.salt("web1", "state.apply", "wsgi")["web1"].changed == set()
