"""The story that this project began with: an app that makes a ZeroMQ context and a socket at import,
asked by many clients of many workers. It must just work under every server, as shipped."""

import pathlib

import pytest
from fleet import once, pillar_of

APPS = pathlib.Path(__file__).parent.parent / "apps"
QUESTIONS = """
import concurrent.futures, sys, urllib.request
count, timeout = map(int, sys.argv[1:])
def ask(number):
    asked = urllib.request.Request(f"http://127.0.0.1/?question-{number}", headers={"Host": "zeromq.example.com"})
    try:
        with urllib.request.urlopen(asked, timeout=timeout) as answer:
            return answer.read().decode() == f"question-{number}"[::-1]
    except OSError:
        return False
with concurrent.futures.ThreadPoolExecutor(8) as clients:
    print(sum(clients.map(ask, range(count))))
"""


@pytest.fixture(scope="module")
def app(machine):
    """app(server, manager, **settings) brings up the app, with what it talks to."""
    machine.put("/tmp/questions.py", QUESTIONS)
    machine.put("/tmp/responder.py", (APPS / "zeromq/responder.py").read_text())

    def bring_up(server, manager, **settings):
        # Nothing is said of workers and threads: the shipped defaults must do.
        asked = pillar_of(server, manager, **settings)
        own = asked.get("requirements", [])
        asked.update(
            source="salt://apps/zeromq",
            application="zmqapp:application",
            requirements=[*(APPS / "zeromq/requirements.txt").read_text().split(), *own],
            domains=["zeromq.example.com"],
        )
        if "command" in asked:
            asked["command"] = [word.replace("contract:", "zmqapp:") for word in asked["command"]]
        machine.pillar({"apps": {"zeromq": asked}})
        machine.apply()
        # By the Python of the app's own environment.
        machine.exec(
            "systemctl is-active -q responder || systemd-run --unit=responder --collect"
            " $(ls -d /srv/wsgi/zeromq/environments/*/bin/python | head -1) /tmp/responder.py"
        )

    return bring_up


def answered(machine, count=400, timeout=30):
    """How many questions, eight at a time, get their own answer."""
    return int(machine.exec(f"python3 /tmp/questions.py {count} {timeout}").stdout)


@pytest.mark.column("ZeroMQ")
@pytest.mark.parametrize(("server", "manager"), once().items())
def test_a_fork_hostile_app_just_works(machine, app, server, manager):
    app(server, manager)
    assert answered(machine) == 400


def test_the_hazard_is_real(machine, app):
    """The same app under a uWSGI that loads it before the fork answers nothing; it recovers from that."""
    app("uwsgi", "supervisor", preload=True, graceful_timeout=2)
    assert answered(machine, 8, 8) == 0
    app("uwsgi", "supervisor")
    assert answered(machine) == 400


def test_what_would_break_it_is_warned_of(machine, app):
    app("uwsgi", "supervisor", preload=True)
    assert machine.call("wsgi.validate") == [
        "warning: wsgi:apps:zeromq:preload: pyzmq is not safe when a process forks after loading; use false"
    ]
    warned = machine.apply().raw["wsgi_|-wsgi-pillar_|-wsgi-pillar_|-pillar_valid"]
    assert [sentence.split(": ")[0] for sentence in warned["warnings"]] == ["wsgi:apps:zeromq:preload"]
