"""Short ways to write the pillars of the tests."""

SERVERS = [("uwsgi", "emperor"), ("uwsgi", "supervisor"), ("gunicorn", "supervisor")]


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


def wait_until_asleep(machine, name, query):
    """Wait until an app that `inspected` made is in the midst of a request with `query`, such as sleep=12."""
    machine.exec(
        f"timeout 60 sh -c 'until grep -qF \"asleep: {query}\" /var/log/wsgi/{name}/*.log; do sleep 0.1; done'"
    )


def asgi(server="uvicorn", **settings):
    """An ASGI app that tells what it sees; see test/apps/asgi."""
    return app(
        server,
        **{"source": "salt://apps/asgi", "application": "echo:application", "interface": "asgi", **settings},
    )
