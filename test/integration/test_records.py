"""What is written down tells the truth wherever a run is killed, and a record that is damaged is made again."""

import json
from types import SimpleNamespace

import pytest

SERVER = """\
import os, signal, socketserver, sys
from http.server import BaseHTTPRequestHandler

signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(os.path.basename(os.getcwd() and open("version").read()).encode())

    def address_string(self):
        return ""


socketserver.ThreadingUnixStreamServer(sys.argv[1], Handler).serve_forever()
"""


def shop(**settings):
    """An app that starts at once, says its version, and writes down whose before_retire has run."""
    return {
        "server": "command",
        "command": ["/usr/bin/python3", "server.py", "{socket}"],
        "process_manager": "supervisor",
        "source": "/srv/v0",
        "workers": 1,
        "schedule": {"often": {"command": "true", "calendar": "yearly"}},
        "hooks": {"before_retire": ["cat version >> ~/retired; echo >> ~/retired"]},
        **settings,
    }


@pytest.fixture(scope="module")
def serving(machine):
    for version in ("v0", "v1", "v2"):
        machine.put(f"/srv/{version}/server.py", SERVER)
        machine.put(f"/srv/{version}/version", version)
    machine.pillar({"apps": {"shop": shop()}})
    machine.apply()
    machine.exec("install -o wsgi-shop /dev/null /var/lib/wsgi/home/shop/retired")
    for version in ("v1", "v2"):
        machine.call("wsgi.deploy", "shop", f"source=/srv/{version}")
    return machine


def killed_runs(machine, *options):
    """What test/integration/killed_runs.py found, as an object per killed run, by the operation at which it was killed."""
    program = ["/opt/salt/bin/python", "/srv/formula/test/integration/killed_runs.py"]
    found = [SimpleNamespace(**each) for each in json.loads(machine.exec([*program, *options]).stdout)]
    with open("/tmp/records-rounds.json", "a") as file:
        for each in found:
            print(each, file=file)
    assert [each for each in found if not hasattr(each, "killed") or not hasattr(each, "history_then")] == []
    return {each.killed: each for each in found}


@pytest.fixture(scope="module")
def rounds(serving):
    return killed_runs(serving)


def wrong(rounds, right):
    return {moment: vars(each) for moment, each in rounds.items() if not right(each)}


def went_live(each):
    return each.live != each.before


def test_deploys_are_killed_before_and_after_the_link_is_renamed(rounds):
    moments = [*rounds]
    link = moments.index("rename /var/lib/wsgi/live/shop")
    assert [went_live(each) for each in rounds.values()] == [number > link for number in range(len(moments))]
    assert link >= 3
    assert len(moments) - link >= 10


def test_a_killed_run_leaves_what_is_live_serving(rounds):
    assert wrong(rounds, lambda it: it.served == (it.version if went_live(it) else it.served_before)) == {}


def test_the_history_names_what_went_live_and_nothing_else_once(rounds):
    def right(it):
        newest = it.history_then[0] == it.live and it.history_then[1] != it.live
        return newest and it.history == it.history_then and it.live_then == it.live

    assert wrong(rounds, right) == {}


def test_a_deploy_that_went_live_survives_the_next_run_and_no_other_does(rounds):
    def right(it):
        version = it.version if went_live(it) else it.served_before
        said = all(text.startswith(f"/srv/{version} was deployed") for text in (it.override, it.override_then))
        return said and it.served_then == version

    assert wrong(rounds, right) == {}


def test_before_retire_runs_for_what_had_traffic_alone(rounds):
    assert wrong(rounds, lambda it: {*it.retired} == ({it.served_before} if went_live(it) else set())) == {}


def test_the_schedule_is_that_of_the_live_generation(rounds):
    assert wrong(rounds, lambda it: it.timers == [it.live_then]) == {}


def test_the_next_run_leaves_nothing_of_a_killed_one_and_the_one_after_it_has_nothing_to_do(rounds):
    def right(it):
        done = [run["result"] for run in it.runs] == [True, True] and it.runs[1]["changes"] == {}
        return done and it.left == [] and it.generations == [it.live_then]

    assert wrong(rounds, right) == {}


def test_a_change_that_is_taken_back_tells_the_truth_too(serving):
    hooks = {**shop()["hooks"], "after_live": ['test "$(cat version)" != v2']}
    serving.pillar({"apps": {"shop": shop(hooks=hooks, rollback_on_failure=True)}})
    rounds = killed_runs(serving, "--back")

    def right(it):
        if went_live(it):  # and is tried again by each run
            return (it.served_then, it.history_then[0], it.retired) == ("v2", it.live, ["v1"])
        return (it.served_then, it.history_then[0], {*it.retired}) == ("v1", it.live, {"v2"})

    assert wrong(rounds, right) == {}
    assert {went_live(each) for each in rounds.values()} == {True, False}
    assert wrong(rounds, lambda it: it.override_then.startswith(f"/srv/{it.served_then} was deployed")) == {}
    assert wrong(rounds, lambda it: it.timers == [it.live_then] and it.left == []) == {}
