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


def ledger(**settings):
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
    machine.pillar({"apps": {"ledger": ledger()}})
    machine.apply()
    machine.exec("install -o wsgi-ledger /dev/null /var/lib/wsgi/home/ledger/retired")
    for version in ("v1", "v2"):
        machine.call("wsgi.deploy", "ledger", f"source=/srv/{version}")
    return machine


def killed_runs(machine, *options):
    """What test/integration/killed_runs.py found, as an object per killed run, in their order, by the operation."""
    program = ["/opt/salt/bin/python", "/srv/formula/test/integration/killed_runs.py"]
    found = [SimpleNamespace(**each) for each in json.loads(machine.exec([*program, *options]).stdout)]
    assert [each for each in found if not hasattr(each, "killed") or not hasattr(each, "history_then")] == []
    return {f"{number}: {each.killed}": each for number, each in enumerate(found)}


@pytest.fixture(scope="module")
def rounds(serving):
    return killed_runs(serving)


def wrong(rounds, right):
    return {moment: vars(each) for moment, each in rounds.items() if not right(each)}


def went_live(each):
    return each.live != each.before


def test_deploys_are_killed_before_and_after_the_link_is_renamed(rounds):
    moments = [*rounds]
    (link,) = [number for number, each in enumerate(moments) if each.endswith(": rename /var/lib/wsgi/live/ledger")]
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
    hooks = {**ledger()["hooks"], "after_live": ['test "$(cat version)" != v2']}
    serving.pillar({"apps": {"ledger": ledger(hooks=hooks, rollback_on_failure=True)}})
    rounds = killed_runs(serving, "--back")

    def right(it):
        if went_live(it):  # and is tried again by each run
            return (it.served_then, it.history_then[0], it.retired) == ("v2", it.live, ["v1"])
        return (it.served_then, it.history_then[0], {*it.retired}) == ("v1", it.live, {"v2"})

    assert wrong(rounds, right) == {}
    assert {went_live(each) for each in rounds.values()} == {True, False}
    assert wrong(rounds, lambda it: it.override_then.startswith(f"/srv/{it.served_then} was deployed")) == {}
    assert wrong(rounds, lambda it: it.timers == [it.live_then] and it.left == []) == {}


# Records that are damaged

LIVE = "$(basename $(readlink /var/lib/wsgi/live/ledger))"
RELEASE = "/srv/wsgi/ledger/releases/*/release.json"
KEPT = f"/var/lib/wsgi/history/ledger/{LIVE}.json"
OVERRIDE = "/etc/wsgi/ledger/override.json"
# Which to what is said of it; nothing asks for some as long as nothing changes.
RECORDS = {
    f"/etc/wsgi/ledger/{LIVE}/generation.json": "a new generation takes its place",
    RELEASE: "it is made again; commands that run once per release may run again",
    "/run/wsgi/nginx.loaded": "it is made again",
    "/run/wsgi/nginx.built": "it is made again",
    "/var/lib/wsgi/history/ledger/log": None,
    "/etc/wsgi/ledger/app.json": None,
}


@pytest.fixture(scope="module")
def one(serving):
    """The machine with one generation, of v1, which a schedule and a process go with."""
    serving.pillar({"apps": {"ledger": ledger(processes={"worker": {"command": "sleep 4321"}})}})
    serving.call("wsgi.deploy", "ledger", "source=/srv/v1")
    serving.apply()
    return serving


def asked(machine):
    """What only reads makes no traceback of anything, and changes nothing."""
    for question in (["wsgi.status"], ["wsgi.history", "ledger"], ["wsgi.validate"], ["wsgi.settings"]):
        machine.call(*question)
    machine.apply(test=True)


def warnings(run):
    return [each for state in run.raw.values() for each in state.get("warnings", [])]


def timers(machine):
    listed = machine.exec("systemctl list-units --type=timer --state=active --plain --no-legend 'wsgi-ledger.*'")
    return [line.split()[0] for line in listed.stdout.splitlines()]


def generations(machine):
    return machine.exec("cd /etc/wsgi/ledger; ls -d */").stdout.replace("/", "").split()


@pytest.mark.parametrize(
    ("damage", "records"),
    [
        (": > $path", RECORDS),
        ("head -c 3000 /dev/urandom > $path", {**RECORDS, KEPT: "there is no rollback to it any more"}),
        ("truncate -s -9 $path", {OVERRIDE: "pillar's settings count"}),
        ("echo [] > $path", {OVERRIDE: "pillar's settings count", RELEASE: "it is made again"}),
    ],
    ids=["empty", "garbage", "cut off", "another type"],
)
def test_damaged_records_are_told_and_made_again(one, damage, records):
    for path in records:
        one.exec(f"for path in {path}; do {damage}; done")
    asked(one)
    with one.load(clients=2, pause=0.05, mode="close-get") as load:
        run = one.apply()
    assert load.report["lost"] == 0, load.report
    told = warnings(run)
    assert {path: said for path, said in records.items() if said and said not in "\n".join(told)} == {}
    assert len(told) == len({*told})
    again = one.apply()
    assert (again.changed, warnings(again)) == (set(), [])
    (id,) = generations(one)
    for program in ("[s]erver.py /run", "[s]leep 4321"):
        assert one.exec(f"ps -eo comm,args | grep '^python3\\|^sleep' | grep -c '{program}'").stdout == "1\n"
    assert timers(one) == [f"wsgi-ledger.{id}.often.timer"]
    assert one.get("/").body == ("v0" if OVERRIDE in records else "v1")
    if OVERRIDE in records:
        assert "override" not in one.call("wsgi.status")["ledger"]
        one.call("wsgi.deploy", "ledger", "source=/srv/v1")


def test_what_an_older_formula_left_when_it_was_killed_in_a_link_is_no_app(one):
    one.exec(
        "cd /var/lib/wsgi; ln -s $(readlink live/ledger) live/ledger.new; touch shortcuts/ledger.new.workers; echo [] > /etc/wsgi/ledger/app.json"
    )
    one.apply()
    assert one.exec("ls -A /var/lib/wsgi/live").stdout.split() == ["ledger"]
    assert one.exec("ls -A /var/lib/wsgi/shortcuts").stdout.split() == ["ledger.workers"]
    assert one.apply().changed == set()


def test_an_app_goes_though_nothing_of_it_can_be_read(one):
    for path in (*RECORDS, KEPT, OVERRIDE):
        one.exec(f"for path in {path}; do : > $path; done")
    one.pillar({"apps": {}})
    run = one.apply()
    assert [each for each in warnings(run) if "none of them is deleted with it" in each]
    assert one.exec("ps -eo user,args | grep '^wsgi-ledger'", check=False).stdout == ""
    assert one.exec("ls -d /etc/wsgi/ledger /run/wsgi/ledger /var/lib/wsgi/live/ledger", check=False).stdout == ""
    assert one.apply().changed == set()
