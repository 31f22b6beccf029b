"""The pillars of the tests: the apps that many files use, and the usual pairs of server and process manager."""

# The usual servers, each with a process manager.
PAIRS = [("uwsgi", "emperor"), ("uwsgi", "supervisor"), ("gunicorn", "supervisor")]
# The least that an app needs: the shipped example.
HELLO = {"source": "salt://wsgi/examples/hello", "application": "hello:application"}
# What may run beside a server. The words of the commands are hard to quote.
BESIDE = {
    "processes": {"worker": {"command": "celery worker --name '100% \"it\"'", "count": 2, "graceful_timeout": 7}},
    "schedule": {"cleanup": {"command": ["clean", "50%", "$HOME"], "calendar": "Mon..Fri 04:30", "timeout": 60}},
}
# An app that cannot start, since its module raises an exception.
BROKEN_AT_IMPORT = {"source": "salt://apps/import_error", "application": "broken:application"}


def app(server="gunicorn", **settings):
    """Return the pillar of HELLO under a server, with further settings."""
    return {
        "server": server,
        **HELLO,
        "workers": 2,
        "health": {"path": "/healthz", "deadline": 20},
        **settings,
    }


def inspected(server="gunicorn", **settings):
    """Return the pillar of a WSGI app that answers what it sees of a request and its process; see test/apps/inspect."""
    return app(
        server,
        **{"source": "salt://apps/inspect", "application": "inspected:application", **settings},
    )


def wait_until_asleep(machine, name, query):
    """Wait until an app that `inspected` made is in the midst of a request with `query`, such as sleep=12."""
    machine.wait_until(f"grep -qF 'asleep: {query}' /var/log/wsgi/{name}/*.log", 60)


def asgi(server="uvicorn", **settings):
    """Return the pillar of an ASGI app that answers what it sees of a request; see test/apps/asgi."""
    return app(
        server,
        **{"source": "salt://apps/asgi", "application": "echo:application", "interface": "asgi", **settings},
    )
