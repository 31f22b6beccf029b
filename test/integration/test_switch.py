"""Any change of a running app under continuous load loses no request and leaves nothing of the old generation."""

import json

import pytest
from pillars import app, inspected, wait_until_asleep

HELLO_TWO = {"source": "salt://apps/hello_two"}
GEVENT = {"requirements": ["gunicorn[gevent]==27.0.1"], "server_options": {"gunicorn": {"worker_class": "gevent"}}}
# Each line changes the line before: code, a setting, a secret, the site, the environment, the process manager, the
# user, alone or with the server. test_every_pair.py changes the server alone.
CHANGES = [
    {"server": "gunicorn", "threads": 4, "env": {"SECRET": "one"}},
    {"server": "gunicorn", "threads": 4, "env": {"SECRET": "two"}},
    {"server": "uwsgi", "env": {"SECRET": "two"}},
    {"server": "uwsgi", **HELLO_TWO},
    {"server": "uwsgi", **HELLO_TWO, "workers": 3},
    {"server": "uwsgi", **HELLO_TWO, "workers": 3, "process_manager": "supervisor"},
    {"server": "gunicorn", "domains": ["hello.example.com"], "request_timeout": 20},
    {"server": "gunicorn", "domains": ["hello.example.com", "two.example.com"], "request_timeout": 20},
    {"server": "gunicorn", "domains": [], "max_requests": 50},
    {"server": "uwsgi", "max_requests": 50},
    {"server": "gunicorn", **GEVENT},
    {"server": "waitress", "workers": 4, "max_requests": 50},
    {"server": "gunicorn", "user": "hello-again"},
    {"server": "uwsgi", "user": "hello-again"},
]


def test_switching_under_load_loses_no_request(machine):
    machine.pillar({"apps": {"hello": app("uwsgi")}})
    machine.apply()
    generations = [machine.live_generation("hello")]
    # The pause leaves processor time to the changes.
    with machine.load(clients=8, pause=0.04, host="hello.example.com", seconds=1200) as load:
        for change in CHANGES:
            machine.pillar({"apps": {"hello": app(**change)}})
            machine.apply()
            generations.append(machine.live_generation("hello"))
            assert_nothing_else_is_left(machine)
    assert load.report["lost"] == 0, json.dumps(load.report, indent=1)
    assert load.report["requests"] > 1_000
    kept = machine.exec("ls -t /srv/wsgi/hello/releases").stdout.split()
    assert len(kept) == 3  # keep_releases
    assert kept[0] == machine.status("hello")["release"]
    assert sum(old != new for old, new in zip(generations, generations[1:])) >= 12


def test_slow_request_is_answered_by_the_generation_that_received_it(machine):
    machine.pillar({"apps": {"hello": inspected("gunicorn")}})
    machine.apply()
    for server in ("uwsgi", "gunicorn"):
        before = machine.live_generation("hello")
        machine.exec(f"systemd-run --unit=slow --collect sh -c 'curl -s \"127.0.0.1/?sleep=12&{server}\" > /tmp/slow'")
        wait_until_asleep(machine, "hello", f"sleep=12&{server}")
        machine.pillar({"apps": {"hello": inspected(server)}})
        machine.apply()
        assert machine.live_generation("hello") != before
        machine.wait_until("[ -s /tmp/slow ]")
        answer = json.loads(machine.exec("cat /tmp/slow; rm /tmp/slow").stdout)
        # gunicorn sets SERVER_SOFTWARE, uWSGI does not.
        assert ("SERVER_SOFTWARE" in answer["environ"]) == (server == "uwsgi")


@pytest.mark.parametrize("server", ["uwsgi", "gunicorn"])
def test_upload_that_began_before_a_switch_arrives_after_it(machine, server):
    """nginx has chosen the protocol of the old server by then."""
    other = {"uwsgi": "gunicorn", "gunicorn": "uwsgi"}[server]
    machine.pillar({"apps": {"hello": app(other)}})
    machine.apply()
    machine.exec(
        "systemd-run --unit=upload --collect sh -c '"
        'head -c 300000 /dev/zero | tr "\\0" x > /tmp/body;'
        ' curl -s --limit-rate 20k -H "Expect:" --data-binary @/tmp/body 127.0.0.1/ > /tmp/uploaded\''
    )
    machine.wait_until("ss -tnH state established dport = :80 | grep -q .")
    machine.pillar({"apps": {"hello": app(server)}})
    machine.apply()
    machine.wait_until("! systemctl is-active -q upload", 120)
    assert machine.exec("cmp /tmp/body /tmp/uploaded", check=False).rc == 0


def assert_nothing_else_is_left(machine):
    now = machine.live_generation("hello")
    found = machine.exec(
        "cd /; ls -d etc/wsgi/hello/*/ run/wsgi/hello/*/ etc/wsgi/vassals/* etc/supervisor/conf.d/*"
        " etc/tmpfiles.d/wsgi-* 2>/dev/null; true"
    ).stdout.split()
    assert [path for path in found if now not in path] == []
    # Processes that run from, write to or listen on anything of another generation.
    opened = machine.exec(
        "ls -l /proc/[0-9]*/fd /proc/[0-9]*/cwd 2>/dev/null | grep -o '/var/log/wsgi/hello/.*' | sort -u;"
        "grep -ao '[/]etc/wsgi/hello/[^/]*' /proc/[0-9]*/cmdline | cut -d: -f2 | sort -u;"
        "grep -o '/run/wsgi/hello/.*' /proc/net/unix | sort -u; true"
    ).stdout.splitlines()
    assert [line for line in opened if f"/{now}" not in line] == []
