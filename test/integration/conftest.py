"""What the integration tests share: one machine per file, and short ways to write pillars."""

import pytest

SERVERS = [("uwsgi", "emperor"), ("uwsgi", "supervisor"), ("gunicorn", "supervisor")]


@pytest.fixture(scope="module")
def machine(machine_factory, request):
    """A machine for all tests of one file, which run in their order."""
    machine = machine_factory()
    yield machine
    if not request.config.getoption("keep"):
        machine.destroy()


def app(server="gunicorn", **settings):
    """An app's pillar: the shipped example, but for what is said otherwise."""
    return {
        "server": server,
        "source": "salt://wsgi/examples/hello",
        "application": "hello:application",
        "workers": 2,
        "health": {"path": "/healthz", "deadline": 20},
        **settings,
    }


def inspected(server="gunicorn", **settings):
    """An app that tells what it sees; see test/apps/inspect."""
    return app(
        server,
        **{"source": "salt://apps/inspect", "application": "inspected:application", **settings},
    )
