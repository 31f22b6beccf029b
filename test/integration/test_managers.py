"""systemd, circus and gaffer hold servers as emperor and supervisor do: through failed starts and changes. gaffer is
on Debian 11 alone, where the contract is not asked of it: through crashes, reboots and rotated logs, too. For that,
test/run test/integration/test_managers.py --platform debian-11."""

import json
import time

import pytest
from pillars import app

SERVERS = ("gunicorn", "uwsgi")
BROKEN = {"source": "salt://apps/import_error", "application": "broken:application"}


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
    """Whether an app answers, or comes to within so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if machine.get("/", host=f"{name}.example.com").status == 200:
                return True
        except ConnectionError:
            pass
        time.sleep(0.1)
    return False


def running(machine):
    return {name: status["pids"] for name, status in machine.call("wsgi.status").items()}


def traces(machine, name):
    """All that there is of an app's generations but their code and logs: files, units, watchers, processes."""
    return machine.exec(
        f"find /etc /run/wsgi /var/lib/wsgi/live -not -path '/etc/salt*' -name '*{name}*' -not -name '*.lock' | sort;"
        f" ls /etc/wsgi/{name}/*/ /run/wsgi/{name}/;"
        f" systemctl list-units --all --plain --no-legend 'wsgi-{name}.*' | sort;"
        f" /usr/local/lib/wsgi/circus/bin/circusctl --endpoint=ipc:///run/wsgi/circus/endpoint list | tr , '\\n' | grep '^{name}';"
        f" curl -s --unix-socket /run/wsgi/gaffer/api http://gaffer/jobs | tr , '\\n' | grep '\"{name}[.]';"
        f" ps -eo pid=,args= | grep -E '[/]({name})/|[ \"]{name}[.]' | grep -v 'ps -eo'",
        check=False,
    ).stdout


def test_status_tells_how_it_fares(served, gaffer_app):
    status = served.call("wsgi.status", gaffer_app)[gaffer_app]
    assert (status["server"], status["process_manager"]) == tuple(gaffer_app.split("-"))
    assert status["health"]["ok"]
    assert len(status["pids"]) == 3  # a master and two workers, and nothing that writes logs


def test_killed_master_comes_back_alone(served, gaffer_app):
    before = served.call("wsgi.status", gaffer_app)[gaffer_app]["pids"]
    served.exec(f"kill -9 {before[0]}")
    # Its workers may answer until they notice, so an answer alone does not tell.
    deadline = time.monotonic() + 20
    while True:
        after = served.call("wsgi.status", gaffer_app)[gaffer_app]["pids"]
        if len(after) == 3 and after[0] != before[0]:
            break
        assert time.monotonic() < deadline, after
    assert answers(served, gaffer_app)
    assert served.apply().changed == set()


def test_logs_rotate_with_no_line_lost(served, gaffer_app):
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


def test_failed_start_tells_why_and_leaves_nothing(served, apps, name):
    before = traces(served, name)
    assert len(before.splitlines()) > 5
    pids = running(served)
    served.pillar({"apps": {**apps, name: {**apps[name], **BROKEN}}})
    with served.load(clients=2, host=f"{name}.example.com", pause=0.02) as load:
        run = served.apply(ok=False)
    assert load.report["lost"] == 0, load.report
    assert run.failed == {f"{name}-live", f"{name}-site"}
    comment = run.states[f"{name}-live"]["comment"]
    assert "RuntimeError: no database" in comment
    assert "did not start" in comment  # and not: was not healthy in time
    assert traces(served, name) == before
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
def test_change_of_process_manager_loses_nothing_and_leaves_nothing(served, apps, request, server):
    settings = apps[f"{server}-systemd"]
    usual = {"gunicorn": "supervisor", "uwsgi": "emperor"}[server]
    last = {"gunicorn": "Shutting down: Master", "uwsgi": "VACUUM: unix socket"}[server]
    served.pillar(
        {"apps": {**apps, "moving": {**settings, "process_manager": usual, "domains": ["moving.example.com"]}}}
    )
    served.apply()
    with served.load(clients=4, host="moving.example.com", pause=0.02, seconds=300) as load:
        for manager in (*managers(request.config), usual):
            old = served.exec("readlink /var/lib/wsgi/live/moving").stdout.strip().rpartition("/")[2]
            served.pillar(
                {
                    "apps": {
                        **apps,
                        "moving": {**settings, "process_manager": manager, "domains": ["moving.example.com"]},
                    }
                }
            )
            assert served.apply().changed == {"moving-live"}
            assert served.call("wsgi.status", "moving")["moving"]["process_manager"] == manager
            assert old not in traces(served, "moving")
            assert last in served.exec(f"tail -n 1 /var/log/wsgi/moving/{old}.log").stdout
    assert load.report["lost"] == 0, json.dumps(load.report, indent=1)
    served.pillar({"apps": apps})
    served.apply()
    assert traces(served, "moving") == ""


# Words that something between pillar and the program could make something else of.
WORDS = [
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


def test_words_of_a_command_arrive_as_they_are(served, manager):
    program = f"""
import os, subprocess, sys, types
sys.path.insert(0, "/srv/formula/_utils")
import managers
line = MANAGERS[{manager!r}].line(["/usr/bin/python3", "-c", {ARRIVED!r}, *{WORDS!r}])
{RUN[manager]}
"""
    served.put("/root/words.py", program)
    served.exec("rm -f /root/words; supervisorctl status; /opt/salt/bin/python /root/words.py", check=False)
    arrived = served.exec("for i in $(seq 50); do [ -s /root/words ] && break; sleep 0.1; done; cat /root/words").stdout
    served.exec("rm -f /etc/*/*/words.*; supervisorctl update words", check=False)
    assert json.loads(arrived) == WORDS
