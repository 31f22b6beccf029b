"""`wsgi.rollback`, pins and history: a rollback is immediate, loses no request, and says how long it lasts."""

import pytest
from container import CommandFailed
from pillars import app

ONE = {"server": "gunicorn", "env": {"GREETING": "one", "SECRET": "hunter2-one"}}
TWO = {"server": "waitress", "env": {"GREETING": "two", "SECRET": "hunter2-two"}, "source": "salt://apps/hello_two"}
THREE = {"server": "uwsgi", "env": {"GREETING": "three"}, "workers": 3}


def apply(machine, settings):
    machine.pillar({"apps": {"hello": app(**settings)}})
    machine.apply()
    return machine.live_generation("hello")


@pytest.fixture
def three(machine):
    """The ids of three generations, the third of which is live."""
    return [apply(machine, settings) for settings in (ONE, TWO, THREE)]


def greeting(machine):
    return machine.get("/").body.split()[0]


def test_each_rollback_leads_one_generation_further_back(machine, three):
    with machine.load(clients=8, pause=0.02) as load:
        back = machine.call("wsgi.rollback", "hello")
        assert (back["generation"], machine.live_generation("hello")) == (three[1], three[1])
        assert greeting(machine) == "two"
        assert machine.status("hello")["server"] == "waitress"
        assert "next highstate goes forward again" in back["note"]
        again = machine.call("wsgi.rollback", "hello")
        assert (again["generation"], greeting(machine)) == (three[0], "one")
    assert load.report["lost"] == 0, load.report
    with pytest.raises(CommandFailed, match=f"no generation of hello from before {three[0]} is kept"):
        machine.call("wsgi.rollback", "hello")
    assert machine.live_generation("hello") == three[0]


def test_next_run_undoes_a_rollback(machine, three):
    machine.call("wsgi.rollback", "hello")
    with machine.load(clients=4, pause=0.02) as load:
        assert machine.apply().changed == {"hello-live"}
    assert load.report["lost"] == 0, load.report
    assert machine.live_generation("hello").partition("-")[0] == three[2].partition("-")[0]


def test_rollback_accepts_a_generation_or_a_release(machine, three):
    release = next(
        entry["release"] for entry in machine.call("wsgi.history", "hello") if entry.get("generation") == three[0]
    )
    assert machine.call("wsgi.rollback", "hello", three[0])["generation"] == three[0]
    apply(machine, THREE)
    assert machine.call("wsgi.rollback", "hello", f"to={release}")["release"] == release
    with pytest.raises(
        CommandFailed, match=f"'nonsense' is not a generation or release that hello can be rolled back to .*{three[1]}"
    ):
        machine.call("wsgi.rollback", "hello", "nonsense")


def test_pinned_generation_stays_live_until_it_is_unpinned(machine, three):
    pinned = machine.call("wsgi.rollback", "hello", "pin=True")
    assert f"pinned to generation {three[1]}" in pinned["note"]
    run = machine.apply()
    assert run.changed <= {"hello-site", "wsgi-nginx"}  # the site is of so many workers
    assert machine.live_generation("hello") == three[1]
    assert "wsgi.unpin hello" in run.states["hello-live"]["comment"]
    assert machine.apply().changed == set()
    assert apply(machine, {**THREE, "workers": 2}) == three[1]
    assert "pinned" in machine.status("hello")["override"]
    with pytest.raises(CommandFailed, match="It is pinned to generation"):
        machine.call("wsgi.deploy", "hello")
    machine.restart()
    machine.wait_until("curl -sf 127.0.0.1")
    assert machine.apply().changed == set()
    assert "not pinned any more" in machine.call("wsgi.unpin", "hello")
    assert "was not pinned" in machine.call("wsgi.unpin", "hello")
    machine.apply()
    assert greeting(machine) == "three"
    assert "override" not in machine.status("hello")


def test_failed_rollback_changes_nothing(machine, three):
    release = machine.call("wsgi.history", "hello")[1]["release"]
    code = f"/srv/wsgi/hello/releases/{release}/code/hello.py"
    machine.exec(f"sed -i.orig '1i raise RuntimeError(\"rotten\")' {code}")
    with machine.load(clients=4, pause=0.02) as load, pytest.raises(CommandFailed, match="rotten"):
        machine.call("wsgi.rollback", "hello")
    assert load.report["lost"] == 0, load.report
    assert machine.live_generation("hello") == three[2]
    machine.exec(f"mv {code}.orig {code}")


def test_history_records_what_went_live_by_which_run_and_what_failed(machine, three):
    machine.pillar({"apps": {"hello": app(**{**THREE, "application": "hello:nothing"})}})
    for _ in range(2):
        machine.apply(ok=False)
    machine.call("wsgi.rollback", "hello", three[1])
    rollback, failed, *before = machine.call("wsgi.history", "hello", "limit=5")
    assert (rollback["event"], rollback["generation"], rollback["to"]) == ("rollback", three[1], three[1])
    assert rollback["by"]["function"] == "wsgi.rollback"
    assert (failed["event"], failed["times"], failed["can_roll_back"]) == ("failed", 2, False)
    assert "nothing" in failed["error"]
    assert [entry["generation"] for entry in before] == three[::-1]
    assert [entry["server"] for entry in before] == ["uwsgi", "waitress", "gunicorn"]
    assert before[1]["source"] == "salt://apps/hello_two"
    assert before[0]["by"]["function"] == "state.apply"
    assert before[0]["by"]["jid"].isdigit()
    assert before[0]["by"]["user"] == "root"
    assert all(entry["can_roll_back"] for entry in before)
    assert "hunter2" not in str(machine.call("wsgi.history", "hello", "limit=100"))


def test_history_is_readable_by_root_only(machine, three):
    assert machine.exec("stat -c %a /var/lib/wsgi/history /var/lib/wsgi/history/hello").stdout.split() == ["700", "700"]
    modes = machine.exec("stat -c '%a %U' /var/lib/wsgi/history/hello/*").stdout.splitlines()
    assert set(modes) == {"600 root"}


def test_removed_release_is_not_offered_for_a_rollback(machine, three):
    apply(machine, {**THREE, "keep_releases": 1, "workers": 2})
    status = machine.status("hello")
    assert machine.exec("ls /srv/wsgi/hello/releases").stdout.split() == [status["release"]]
    ways = {entry["release"] for entry in machine.call("wsgi.history", "hello", "limit=100") if entry["can_roll_back"]}
    assert ways == {status["release"]}


def test_removing_an_app_removes_its_history(machine, three):
    machine.pillar({"apps": {}})
    machine.apply()
    assert machine.exec("ls /var/lib/wsgi/history").stdout == ""
