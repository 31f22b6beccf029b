"""Records: they are true wherever a run is killed, and damaged ones are rewritten."""

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
    """Return an app that starts at once, answers its version, and records in ~/retired each before_retire."""
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
    """Run killed_deploys.py, and return an object for each killed run, by the operation at which it was killed."""
    program = ["/opt/salt/bin/python", "/srv/formula/test/integration/killed_deploys.py"]
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


def test_deploys_are_killed_before_and_after_the_live_link_is_renamed(rounds):
    moments = [*rounds]
    (link,) = [number for number, each in enumerate(moments) if each.endswith(": rename /var/lib/wsgi/live/ledger")]
    assert [went_live(each) for each in rounds.values()] == [number > link for number in range(len(moments))]
    assert link >= 3
    assert len(moments) - link >= 10


def test_killed_run_leaves_the_live_generation_serving(rounds):
    assert wrong(rounds, lambda it: it.served == (it.version if went_live(it) else it.served_before)) == {}


def test_history_has_each_generation_that_went_live_once(rounds):
    def right(it):
        newest = it.history_then[0] == it.live and it.history_then[1] != it.live
        return newest and it.history == it.history_then and it.live_then == it.live

    assert wrong(rounds, right) == {}


def test_only_a_deploy_that_went_live_survives_the_next_run(rounds):
    def right(it):
        version = it.version if went_live(it) else it.served_before
        said = all(text.startswith(f"/srv/{version} was deployed") for text in (it.override, it.override_then))
        return said and it.served_then == version

    assert wrong(rounds, right) == {}


def test_before_retire_runs_only_for_a_generation_that_had_traffic(rounds):
    assert wrong(rounds, lambda it: {*it.retired} == ({it.served_before} if went_live(it) else set())) == {}


def test_active_schedule_is_that_of_the_live_generation(rounds):
    assert wrong(rounds, lambda it: it.timers == [it.live_then]) == {}


def test_run_after_a_killed_one_cleans_up_and_the_one_after_it_changes_nothing(rounds):
    def right(it):
        done = [run["result"] for run in it.runs] == [True, True] and it.runs[1]["changes"] == {}
        return done and it.left == [] and it.generations == [it.live_then]

    assert wrong(rounds, right) == {}


def test_records_are_true_when_rollback_on_failure_is_killed(serving):
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


# Damaged records

LIVE = "$(basename $(readlink /var/lib/wsgi/live/ledger))"
RELEASE = "/srv/wsgi/ledger/releases/*/release.json"
KEPT = f"/var/lib/wsgi/history/ledger/{LIVE}.json"
OVERRIDE = "/etc/wsgi/ledger/override.json"
# A record to the warning about it; None where an idle run does not read it.
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
    """The machine with one generation of v1, with a schedule and a process."""
    serving.pillar({"apps": {"ledger": ledger(processes={"worker": {"command": "sleep 4321"}})}})
    serving.call("wsgi.deploy", "ledger", "source=/srv/v1")
    serving.apply()
    return serving


def call_reading_functions(machine):
    """Call the functions that only read, which must not raise."""
    for question in (["wsgi.status"], ["wsgi.history", "ledger"], ["wsgi.validate"], ["wsgi.settings"]):
        machine.call(*question)
    machine.apply(test=True)


def timers(machine):
    listed = machine.exec("systemctl list-units --type=timer --state=active --plain --no-legend 'wsgi-ledger.*'")
    return [line.split()[0] for line in listed.stdout.splitlines()]


def generations(machine):
    return machine.exec("cd /etc/wsgi/ledger; ls -d */").stdout.replace("/", "").split()


@pytest.mark.parametrize(
    ("damage", "records"),
    [
        (": > $path", RECORDS),
        ("head -c 3000 /dev/urandom > $path", {**RECORDS, KEPT: "a rollback to it is not possible any more"}),
        ("truncate -s -9 $path", {OVERRIDE: "pillar's settings count"}),
        ("echo [] > $path", {OVERRIDE: "pillar's settings count", RELEASE: "it is made again"}),
    ],
    ids=["empty", "garbage", "cut off", "another type"],
)
def test_damaged_records_are_reported_and_rewritten(one, damage, records):
    for path in records:
        one.exec(f"for path in {path}; do {damage}; done")
    call_reading_functions(one)
    with one.load(clients=2, pause=0.05, mode="close-get") as load:
        run = one.apply()
    assert load.report["lost"] == 0, load.report
    assert {path: said for path, said in records.items() if said and said not in "\n".join(run.warnings)} == {}
    assert len(run.warnings) == len({*run.warnings})
    again = one.apply()
    assert (again.changed, again.warnings) == (set(), [])
    (id,) = generations(one)
    for program in ("[s]erver.py /run", "[s]leep 4321"):
        assert one.exec(f"ps -eo comm,args | grep '^python3\\|^sleep' | grep -c '{program}'").stdout == "1\n"
    assert timers(one) == [f"wsgi-ledger.{id}.often.timer"]
    assert one.get("/").body == ("v0" if OVERRIDE in records else "v1")
    if OVERRIDE in records:
        assert "override" not in one.status("ledger")
        one.call("wsgi.deploy", "ledger", "source=/srv/v1")


def test_link_left_by_a_killed_run_of_an_older_formula_is_not_taken_for_an_app(one):
    one.exec(
        "cd /var/lib/wsgi; ln -s $(readlink live/ledger) live/ledger.new; touch shortcuts/ledger.new.workers; echo [] > /etc/wsgi/ledger/app.json"
    )
    one.apply()
    assert one.exec("ls -A /var/lib/wsgi/live").stdout.split() == ["ledger"]
    assert one.exec("ls -A /var/lib/wsgi/shortcuts").stdout.split() == ["ledger.workers"]
    assert one.apply().changed == set()


def test_app_is_removed_though_all_of_its_records_are_damaged(one):
    for path in (*RECORDS, KEPT, OVERRIDE):
        one.exec(f"for path in {path}; do : > $path; done")
    one.pillar({"apps": {}})
    run = one.apply()
    assert [each for each in run.warnings if "none of them is deleted with it" in each]
    assert one.exec("ps -eo user,args | grep '^wsgi-ledger'", check=False).stdout == ""
    assert one.exec("ls -d /etc/wsgi/ledger /run/wsgi/ledger /var/lib/wsgi/live/ledger", check=False).stdout == ""
    assert one.apply().changed == set()
