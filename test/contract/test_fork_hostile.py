"""The story that this project began with: an app that makes a ZeroMQ context and a socket at import,
asked by many clients of many workers. It must just work under every server, as shipped."""

import pytest
from fleet import once, pillar_of
from zeromq import APP_FOLDER, count_answers, start_responder

HOST = "zeromq.example.com"


@pytest.fixture(scope="module")
def app(machine):
    """app(server, manager, **settings) brings up the app, with what it talks to."""

    def bring_up(server, manager, **settings):
        # Nothing is said of workers and threads: the shipped defaults must do.
        asked = pillar_of(server, manager, **settings)
        own = asked.get("requirements", [])
        asked.update(
            source="salt://apps/zeromq",
            application="zmqapp:application",
            requirements=[*(APP_FOLDER / "requirements.txt").read_text().split(), *own],
            domains=[HOST],
        )
        if "command" in asked:
            asked["command"] = [word.replace("contract:", "zmqapp:") for word in asked["command"]]
        machine.pillar({"apps": {"zeromq": asked}})
        machine.apply()
        start_responder(machine)

    return bring_up


@pytest.mark.column("ZeroMQ")
@pytest.mark.parametrize(("server", "manager"), once().items())
def test_zeromq_app_answers_under_every_server(machine, app, server, manager):
    app(server, manager)
    assert count_answers(machine, HOST) == 400


def test_zeromq_app_does_not_answer_when_it_is_loaded_before_the_fork(machine, app):
    """The same app under a uWSGI that loads it before the fork answers nothing; it recovers from that."""
    app("uwsgi", "supervisor", preload=True, graceful_timeout=2)
    assert count_answers(machine, HOST, 8, 8) == 0
    app("uwsgi", "supervisor")
    assert count_answers(machine, HOST) == 400


def test_preload_of_a_zeromq_app_gives_a_warning(machine, app):
    app("uwsgi", "supervisor", preload=True)
    assert machine.call("wsgi.validate") == [
        "warning: wsgi:apps:zeromq:preload: pyzmq may break when what it made crosses a fork; false is safe"
    ]
    warned = machine.apply().raw["wsgi_|-wsgi-pillar_|-wsgi-pillar_|-pillar_valid"]
    assert [sentence.split(": ")[0] for sentence in warned["warnings"]] == ["wsgi:apps:zeromq:preload"]
