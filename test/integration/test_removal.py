"""Removal: an app leaves only its code, home and logs, and nothing if it is purged."""

import pytest
from harness import find_leftovers, find_traces
from pillars import PAIRS, app

KEPT = ("/srv/wsgi/one", "/var/log/wsgi/one", "/var/lib/wsgi/home/one")
OTHER = {"two": app("uwsgi", domains=["two.example.com"])}


def exists(machine, path):
    return machine.exec(["test", "-e", path], check=False).rc == 0


@pytest.fixture(params=PAIRS, ids="-".join)
def served(machine, request):
    server, manager = request.param
    machine.pillar({"apps": {"one": app(server, process_manager=manager, domains=["one.example.com"]), **OTHER}})
    machine.apply()
    assert machine.get("/", host="one.example.com").status == 200
    assert len(find_traces(machine, "one").splitlines()) > 5
    return machine


@pytest.mark.parametrize("how", ["taken out", "absent"])
def test_removed_app_leaves_only_its_code_home_and_logs(served, how):
    gone = {} if how == "taken out" else {"one": {"state": "absent"}}
    served.pillar({"apps": {**gone, **OTHER}})
    with served.load(clients=4, host="two.example.com", pause=0.02) as load:
        assert served.apply().changed == {"one-absent"}
    assert load.report["lost"] == 0, load.report
    assert find_traces(served, "one") == ""
    for path in KEPT:
        assert served.exec(f"stat -c '%a %U' {path}").stdout.strip() == "700 root"
    assert served.exec("ls /var/log/nginx/wsgi-one.access.log").stdout
    with pytest.raises(ConnectionError):
        served.get("/", host="one.example.com")
    assert served.apply().changed == set()


def test_removed_app_can_come_back(served):
    served.pillar({"apps": OTHER})
    served.apply()
    served.exec(
        "userdel somebody-in-between 2>/dev/null; useradd --system somebody-in-between"
    )  # takes the freed user id
    served.pillar({"apps": {"one": app("gunicorn", domains=["one.example.com"]), **OTHER}})
    served.apply()
    assert served.get("/", host="one.example.com").status == 200
    assert served.exec("find /srv/wsgi/one /var/log/wsgi/one -group somebody-in-between").stdout == ""
    served.exec("userdel somebody-in-between")


def test_purged_app_leaves_nothing(machine):
    machine.pillar({"apps": {"one": {"state": "absent", "purge": True}, **OTHER}})
    machine.apply()
    for path in (*KEPT, "/var/log/nginx/wsgi-one.access.log"):
        assert not exists(machine, path)
    assert machine.apply().changed == set()


def test_existing_user_is_kept_when_its_app_is_removed(machine):
    machine.exec("useradd --system their-user")
    machine.pillar({"apps": {"one": app("gunicorn", user="their-user", domains=["one.example.com"]), **OTHER}})
    machine.apply()
    machine.pillar({"apps": OTHER})
    machine.apply()
    assert machine.exec("getent passwd their-user").rc == 0


def test_clean_removes_everything(machine):
    machine.pillar(
        {
            "apps": {
                name: app(server, domains=[f"{name}.example.com"])
                for name, server in (("one", "gunicorn"), ("two", "uwsgi"))
            }
        }
    )
    machine.apply()
    machine.apply(sls="wsgi.clean")
    for name in ("one", "two"):
        with pytest.raises(ConnectionError):
            machine.get("/", host=f"{name}.example.com")
    assert find_leftovers(machine) == ""
    assert machine.exec("nginx -t").rc == 0
    assert machine.apply(sls="wsgi.clean").changed == set()
    machine.apply()
    assert machine.get("/", host="one.example.com").status == 200


def test_removal_that_failed_halfway_is_finished_by_the_next_run(machine):
    history = "/var/lib/wsgi/history/one"
    machine.pillar({"apps": {"one": app("gunicorn", domains=["one.example.com"]), **OTHER}})
    machine.apply()
    machine.exec(f"mount --bind {history} {history}")  # a mount point cannot be removed
    machine.pillar({"apps": OTHER})
    run = machine.apply(ok=False)
    assert "was not removed completely" in run.states["one-absent"]["comment"]
    machine.exec(f"umount {history}")
    assert machine.apply().changed == {"one-absent"}
    assert not exists(machine, history)
    assert find_traces(machine, "one") == ""
    for path in KEPT:
        assert machine.exec(f"stat -c '%a %U' {path}").stdout.strip() == "700 root"
