"""The process managers systemd, circus and gaffer: failed starts and changes between managers.

gaffer exists on Debian 11 only, where the contract does not run, so its crashes, reboots and log rotation are tested here:
test/run test/integration/test_process_managers.py --platform debian-11
"""

import contextlib
import json

import pytest
from harness import find_traces, wait_for
from pillars import BROKEN_AT_IMPORT, app

SERVERS = ("gunicorn", "uwsgi")


def managers(config):
    return ["systemd", "circus", *["gaffer"] * (config.getoption("platform") == "debian-11")]


def pytest_generate_tests(metafunc):
    names = [f"{server}-{manager}" for manager in managers(metafunc.config) for server in SERVERS]
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", names)
    if "gaffer_app" in metafunc.fixturenames:
        metafunc.parametrize("gaffer_app", [name for name in names if name.endswith("-gaffer")])
    if "manager" in metafunc.fixturenames:
        metafunc.parametrize("manager", ["supervisor", *managers(metafunc.config)])


def numbered(name, **settings):
    server, _, manager = name.partition("-")
    return app(
        server,
        **{
            "process_manager": manager,
            "domains": [f"{name}.example.com"],
            "source": "salt://apps/numbered",
            "application": "numbered:application",
            "max_requests": 0,
            **settings,
        },
    )


@pytest.fixture(scope="module")
def apps(request):
    names = (f"{server}-{manager}" for manager in managers(request.config) for server in SERVERS)
    return {name: numbered(name) for name in names}


@pytest.fixture(scope="module")
def served(machine, apps):
    machine.pillar({"apps": apps})
    machine.apply()
    assert machine.apply().changed == set()
    return machine


def answers(machine, name, seconds=20):
    """Return whether an app answers within so many seconds."""

    def answered():
        with contextlib.suppress(ConnectionError):
            return machine.get("/", host=f"{name}.example.com").status == 200

    return wait_for(answered, seconds)


def running(machine):
    return {name: status["pids"] for name, status in machine.call("wsgi.status").items()}


def test_status_reports_the_server_and_its_processes(served, gaffer_app):
    status = served.status(gaffer_app)
    assert (status["server"], status["process_manager"]) == tuple(gaffer_app.split("-"))
    assert status["health"]["ok"]
    assert len(status["pids"]) == 3  # a master and two workers, and nothing that writes logs


def test_killed_master_is_restarted_without_its_old_workers(served, gaffer_app):
    before = served.status(gaffer_app)["pids"]
    served.exec(f"kill -9 {before[0]}")
    # Its old workers may still answer until they notice.

    def restarted():
        after = served.status(gaffer_app)["pids"]
        return len(after) == 3 and after[0] != before[0]

    assert wait_for(restarted, 20), served.status(gaffer_app)["pids"]
    assert answers(served, gaffer_app)
    assert served.apply().changed == set()


def test_log_rotation_loses_no_line(served, gaffer_app):
    served.exec(f"rm -f /var/log/wsgi/{gaffer_app}/*.log.*")
    asked = f"curl -sSf -H 'Host: {gaffer_app}.example.com' 127.0.0.1/?3000"
    rotate = "logrotate --force /etc/logrotate.d/wsgi; sleep 0.3;"
    served.exec(f"{asked} & i=0; while [ $i -lt 5 ]; do {rotate} i=$((i+1)); done; wait $!")
    written = served.exec(
        f"cd /var/log/wsgi/{gaffer_app}; for log in $(ls -t -r); do zcat -f $log; done | grep '^line '"
    ).stdout.splitlines()
    assert written == [f"line {number}" for number in range(3000)]
    assert len(served.exec(f"ls /var/log/wsgi/{gaffer_app}/*.log.[12]*").stdout.split()) >= 2
    assert served.exec(f"stat -c %U /var/log/wsgi/{gaffer_app}/*.log").stdout.split() == [f"wsgi-{gaffer_app}"]


def test_failed_start_reports_the_reason_and_leaves_nothing(served, apps, name):
    before = find_traces(served, name)
    assert len(before.splitlines()) > 5
    pids = running(served)
    served.pillar({"apps": {**apps, name: {**apps[name], **BROKEN_AT_IMPORT}}})
    with served.load(clients=2, host=f"{name}.example.com", pause=0.02) as load:
        run = served.apply(ok=False)
    assert load.report["lost"] == 0, load.report
    assert run.failed == {f"{name}-live", f"{name}-site"}
    comment = run.states[f"{name}-live"]["comment"]
    assert "RuntimeError: no database" in comment
    assert "did not start" in comment  # and not: was not healthy in time
    assert find_traces(served, name) == before
    assert running(served) == pids
    served.pillar({"apps": apps})


def test_all_come_back_after_a_reboot(served, apps, request):
    if "gaffer" not in managers(request.config):
        pytest.skip("the contract has each server come back")
    before = {name: status["generation"] for name, status in served.call("wsgi.status").items()}
    served.restart()
    assert all(answers(served, name) for name in apps)
    assert {name: status["generation"] for name, status in served.call("wsgi.status").items()} == before
    assert served.apply().changed == set()
    assert served.exec("systemctl --failed --plain --no-legend").stdout == ""


def test_nobody_but_root_can_speak_to_circus(served):
    pid = served.exec("systemctl show --property=MainPID --value wsgi-circus").stdout.strip()
    assert "endpoint" in served.exec("ss -xlp").stdout
    assert f"pid={pid}," not in served.exec("ss -tulp").stdout
    refused = served.exec("setpriv --reuid wsgi-gunicorn-circus --clear-groups ls /run/wsgi/circus", check=False)
    assert "Permission denied" in refused.stderr


@pytest.mark.parametrize("server", SERVERS)
def test_changing_the_process_manager_under_load_loses_no_request_and_leaves_nothing(served, apps, request, server):
    settings = apps[f"{server}-systemd"]
    usual = {"gunicorn": "supervisor", "uwsgi": "emperor"}[server]
    last = {"gunicorn": "Shutting down: Master", "uwsgi": "VACUUM: unix socket"}[server]
    served.pillar(
        {"apps": {**apps, "moving": {**settings, "process_manager": usual, "domains": ["moving.example.com"]}}}
    )
    served.apply()
    with served.load(clients=4, host="moving.example.com", pause=0.02, seconds=300) as load:
        for manager in (*managers(request.config), usual):
            old = served.live_generation("moving")
            served.pillar(
                {
                    "apps": {
                        **apps,
                        "moving": {**settings, "process_manager": manager, "domains": ["moving.example.com"]},
                    }
                }
            )
            assert served.apply().changed == {"moving-live"}
            assert served.status("moving")["process_manager"] == manager
            assert old not in find_traces(served, "moving")
            assert last in served.exec(f"tail -n 1 /var/log/wsgi/moving/{old}.log").stdout
    assert load.report["lost"] == 0, json.dumps(load.report, indent=1)
    served.pillar({"apps": apps})
    served.apply()
    assert find_traces(served, "moving") == ""


# Arguments that some program between pillar and the process might interpret.
ARGUMENTS = [
    *(
        "plain",
        "",
        "two words",
        "a;b",
        "a ;b",
        "a #b",
        "; c",
        "it's",
        '"',
        "\\",
        "\\n",
        "'\\''",
        "100%",
        "%n",
        "%(ENV_PATH)s",
    ),
    *(
        "$HOME",
        "${HOME}",
        "$$",
        "$(id)",
        "$(circus.wid)",
        "((circus.wid))",
        "$(CIRCUS.env.path)",
        "ü…",
        "!x",
        "a=b",
        "~",
        "*",
    ),
]
ARRIVED = "import json, os, sys; json.dump(sys.argv[1:], open('/root/words.new', 'w')); os.replace('/root/words.new', '/root/words')"
RUN = {
    "systemd": """
unit = f"[Service]\\nType=oneshot\\nExecStart={line}\\n"
open("/etc/systemd/system/words.service", "w").write(unit)
subprocess.run(["systemctl", "start", "words"], check=True)
""",
    "supervisor": """
open("/etc/supervisor/conf.d/words.conf", "w").write(f"[program:words]\\ncommand={line}\\nstartsecs=0\\nautorestart=false\\n")
subprocess.run(["supervisorctl", "update", "words"], check=True)
""",
    "circus": """
open("/etc/wsgi/circus/words.ini", "w").write(f"[watcher:words]\\ncmd=/usr/bin/env\\nargs={line}\\n")
manager = Circus(None)
manager.start(types.SimpleNamespace(unit="words"))
process.wait_until(lambda: os.path.exists("/root/words") and os.path.getsize("/root/words"), 10)
manager.stop("words", 5)
""",
    "gaffer": """
section = f"[job:1.words]\\ncmd=/usr/bin/env\\nargs={line}\\ngraceful_timeout=5\\n"
open("/etc/wsgi/gaffer/jobs/words.1.ini", "w").write(section)
manager = Gaffer(None)
manager.start(types.SimpleNamespace(unit="words.1"))
process.wait_until(lambda: os.path.exists("/root/words") and os.path.getsize("/root/words"), 10)
manager.stop("words.1", 5)
""",
}


def test_arguments_of_a_command_arrive_unchanged(served, manager):
    program = f"""
import os, subprocess, sys, types
sys.path.insert(0, "/srv/formula/_utils")
from wsgi_formula import process
from wsgi_formula.run.managers import MANAGERS, Circus, Gaffer
line = MANAGERS[{manager!r}].command_line(["/usr/bin/python3", "-c", {ARRIVED!r}, *{ARGUMENTS!r}])
{RUN[manager]}
"""
    served.put("/root/words.py", program)
    served.exec("rm -f /root/words; supervisorctl status; /opt/salt/bin/python /root/words.py", check=False)
    served.wait_until("[ -s /root/words ]")
    arrived = served.exec("cat /root/words").stdout
    served.exec("rm -f /etc/*/*/words.*; supervisorctl update words", check=False)
    assert json.loads(arrived) == ARGUMENTS
