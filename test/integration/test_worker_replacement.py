"""Replacement of workers: the successor starts first and takes over once it has loaded the app, so that no request is
lost, even with one worker and an app that loads slowly."""

import contextlib
import json
import time

import pytest
from harness import servers, wait_for
from pillars import app

GUNICORN = ["{environment}/bin/gunicorn", "--bind=unix:{socket}", "--workers=1", "gated:application"]
ROWS = {name: row for name, row in servers().items() if row.get("replaces_late") is not True}
APPS = {
    **{name: {"server": name, "interface": row["interfaces"][0]} for name, row in ROWS.items()},
    "gunicorn-threads": {"server": "gunicorn", "threads": 4},
    "gunicorn-asgi": {"server": "gunicorn", "interface": "asgi"},
    "waitress": {"server": "waitress", "threads": 2},
    "hypercorn": {"server": "hypercorn", "interface": "wsgi"},
    # Its threads are greenlets, all in the main thread.
    "gunicorn-gevent": {
        "server": "gunicorn",
        "requirements": ["gunicorn[gevent]==27.0.1"],
        "server_options": {"gunicorn": {"worker_class": "gevent"}},
    },
    # It listens before it loads the app.
    "command": {"server": "command", "command": GUNICORN, "requirements": ["gunicorn==27.0.1"]},
}
SPAWNED = [name for name, own in APPS.items() if servers()[own["server"]].get("spawned")]
# uWSGI runs the app's module as the main program; under gevent, multiprocessing.Pool waits for its pipe for ever.
WITH_MULTIPROCESSING = [name for name in APPS if name not in ("uwsgi", "gunicorn-gevent")]
MAX_REQUESTS = 40


def settings_of(name, **settings):
    own = {
        "source": "salt://apps/gated",
        "application": "gated:asgi_application" if APPS[name].get("interface") == "asgi" else "gated:application",
        "domains": [f"{name}.example.com"],
        "workers": 1,
        "health": {"deadline": 60},
        **({} if name == "command" else {"max_requests": MAX_REQUESTS}),
    }
    return app(**{**own, **APPS[name], **settings})


@pytest.fixture(scope="module")
def served(machine):
    machine.pillar({"apps": {name: settings_of(name) for name in APPS}})
    machine.apply()
    return machine


def pid_of(machine, name, path="/"):
    """Return the PID of the worker that answers; None when none does."""
    with contextlib.suppress(ConnectionError):
        answer = machine.get(path, host=f"{name}.example.com", timeout=5)
        if answer.status == 200:
            return int(answer.body.split()[0])
    return None


def waiting(machine):
    """Return the apps that have a process waiting to load the app."""
    return set(machine.exec("cd /var/lib/wsgi/home; ls -d */waits | cut -d/ -f1", check=False).stdout.split())


def hang_up(machine, name):
    machine.exec(f"pkill -HUP -u wsgi-{name} -f '^[^ ]*python3 /usr/local/lib/wsgi/spawn '")


@pytest.fixture(scope="module")
def worn(served):
    """Each app's findings when its only worker reached max_requests, while the successor waited to load and afterwards."""
    before = {name: pid_of(served, name) for name in APPS}
    served.exec("cd /var/lib/wsgi/home; rm -f */waits; for home in */; do touch $home/gate; done")
    with contextlib.ExitStack() as loads:
        load = {
            name: loads.enter_context(served.load(clients=2, host=f"{name}.example.com", pause=0.1, mode="close-get"))
            for name in APPS
        }
        hang_up(served, "command")
        wait_for(lambda: waiting(served) >= set(APPS), 60)
        found = waiting(served)
        time.sleep(2)
        meanwhile = {name: pid_of(served, name) for name in APPS}
        served.exec("rm -f /var/lib/wsgi/home/*/gate")
        after = {}

        def replaced(name):
            after[name] = pid_of(served, name)  # for a moment, both may answer
            return after[name] not in (None, before[name])

        for name in APPS:
            wait_for(lambda name=name: replaced(name), 60)
    return {
        name: {
            "waited": name in found,
            "before": before[name],
            "meanwhile": meanwhile[name],
            "after": after[name],
            "report": load[name].report,
        }
        for name in APPS
    }


@pytest.mark.parametrize("name", APPS)
def test_only_worker_serves_until_its_successor_has_loaded_the_app(worn, name):
    found = worn[name]
    assert found["waited"], found
    assert found["meanwhile"] == found["before"], found
    assert found["after"] not in (None, found["before"]), found
    assert found["report"]["lost"] == 0, json.dumps(found["report"], indent=1)


@pytest.mark.parametrize("name", [name for name in APPS if name.startswith(("uwsgi", "gunicorn"))])
def test_number_of_workers_is_as_before_after_a_replacement(served, worn, name):
    """That is a master and one worker."""
    count = f"pgrep -c -u wsgi-{name} || true"
    assert wait_for(lambda: int(served.exec(count).stdout) == 2, 60), served.exec(f"ps -fu wsgi-{name}").stdout


def test_successor_that_cannot_load_the_app_stops_no_other_worker(served, worn):
    """gunicorn's master would otherwise end with all of its workers."""
    home = "/var/lib/wsgi/home/gunicorn"
    served.exec(f"rm {home}/loaded {home}/waits; mkdir {home}/loaded; chmod 000 {home}/loaded; ls -la {home}")
    with served.load(clients=1, host="gunicorn.example.com", pause=0.05, mode="close-get") as load:
        assert wait_for(lambda: waiting(served) >= {"gunicorn"}, 60)
        time.sleep(3)
        assert pid_of(served, "gunicorn")
        served.exec(f"rmdir {home}/loaded")
    assert load.report["lost"] == 0, json.dumps(load.report, indent=1)


@pytest.mark.parametrize("name", WITH_MULTIPROCESSING)
def test_child_that_multiprocessing_spawns_takes_no_requests(served, worn, name):
    answer = served.get("/spawn", host=f"{name}.example.com")
    assert (answer.status, answer.body.split()[1]) == (200, "9")
    assert pid_of(served, name)


@pytest.mark.parametrize("name", SPAWNED)
def test_worker_that_lost_its_socket_is_replaced(served, worn, name):
    old = pid_of(served, name, "/steal")
    assert wait_for(lambda: pid_of(served, name) not in (None, old), 60)


def test_sighup_to_spawn_loses_no_request(served, worn):
    before = pid_of(served, "waitress")
    with served.load(clients=4, host="waitress.example.com", pause=0.02, mode="close-get") as load:
        for _ in range(3):
            hang_up(served, "waitress")
            time.sleep(1)
        assert wait_for(lambda: pid_of(served, "waitress") not in (None, before), 60)
    assert load.report["lost"] == 0, json.dumps(load.report, indent=1)
