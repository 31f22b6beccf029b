"""Isolation of apps: changes and failures of one app do not affect another."""

import pytest
from pillars import BROKEN_AT_IMPORT, app

PAIRS = [("uwsgi", "gunicorn"), ("gunicorn", "uwsgi")]


def one(server, **settings):
    return {"one": app(server, **{"domains": ["one.example.com"], "max_requests": 0, **settings})}


@pytest.mark.parametrize(("server", "neighbour"), PAIRS)
def test_change_of_one_app_keeps_every_process_of_another(machine, server, neighbour):
    other = {"two": app(neighbour, domains=["two.example.com"], max_requests=0)}
    machine.pillar({"apps": {**one(server), **other}})
    machine.apply()
    before = machine.status("two")["pids"]
    assert len(before) == 3
    daemons = machine.exec("systemctl show -p MainPID --value supervisor wsgi-emperor nginx").stdout
    for changed in (one(server, workers=1), one(server, env={"A": "b"}), one("gunicorn"), one("uwsgi"), {}):
        machine.pillar({"apps": {**changed, **other}})
        machine.apply()
        assert machine.status("two")["pids"] == before
    assert machine.exec("systemctl show -p MainPID --value supervisor wsgi-emperor nginx").stdout == daemons


BAD = {
    "invalid": {"server": "unicorn"},
    "failing": BROKEN_AT_IMPORT,
    "without its source": {"source": "salt://apps/nowhere"},
    "without its requirement": {"requirements": ["no-such-package-anywhere"]},
}


@pytest.mark.parametrize("bad", BAD)
def test_broken_app_stops_no_other_app_from_converging(machine, bad):
    other = {"two": app("gunicorn", domains=["two.example.com"])}
    machine.pillar({"apps": {**one("uwsgi"), **other}})
    machine.apply()
    before = machine.status("one")["pids"]
    other["two"]["env"] = {"GREETING": bad}
    other["new"] = app("uwsgi", domains=["new.example.com"])
    machine.pillar({"apps": {**one(**{"server": "uwsgi", **BAD[bad]}), **other}})
    run = machine.apply(ok=False)
    assert {id.partition("-")[0] for id in run.failed} <= {"one", "wsgi"}
    assert run.failed
    assert machine.get("/", host="two.example.com").body.startswith(bad)
    assert machine.get("/", host="new.example.com").status == 200
    assert machine.get("/", host="one.example.com").status == 200
    assert machine.status("one")["pids"] == before
