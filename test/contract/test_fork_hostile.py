"""An app that creates a ZeroMQ context and a socket at import, which must not cross a fork, answers many clients with many
workers under every server, with the shipped defaults."""

import pytest
from fleet import once, pillar_of
from zeromq import APP_FOLDER, count_answers, start_responder

HOST = "zeromq.example.com"


@pytest.fixture(scope="module")
def app(machine):
    """app(server, manager, **settings) brings up the app and its responder."""

    def bring_up(server, manager, **settings):
        # Workers and threads are left to the shipped defaults.
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
    """The app recovers when uWSGI loads it after the fork again."""
    app("uwsgi", "supervisor", preload=True, graceful_timeout=2)
    assert count_answers(machine, HOST, 8, 8) == 0
    app("uwsgi", "supervisor")
    assert count_answers(machine, HOST) == 400


def test_preload_of_a_zeromq_app_gives_a_warning(machine, app):
    app("uwsgi", "supervisor", preload=True)
    assert machine.call("wsgi.validate") == [
        "warning: wsgi:apps:zeromq:preload: pyzmq is not safe when a process forks after loading; use false"
    ]
    warned = machine.apply().raw["wsgi_|-wsgi-pillar_|-wsgi-pillar_|-pillar_valid"]
    assert [sentence.split(": ")[0] for sentence in warned["warnings"]] == ["wsgi:apps:zeromq:preload"]
