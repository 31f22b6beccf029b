# A generation is never edited: change pillar, and a new one takes its place.
"""A worker of bjoern; its contract is in wsgi_worker.py."""

import contextlib
import os
import signal
import sys
from importlib.metadata import version

import bjoern
from wsgi_worker import BACKLOG, refuse_unknown_options


def main():
    refuse_unknown_options(known=())
    from wsgi_application import application

    software = f"bjoern/{version('bjoern')}"

    def completed(environ, start_response):
        """Add to the environment what PEP 3333 asks for, or lets a server leave out and apps rely on."""
        environ["SERVER_SOFTWARE"] = software
        environ["SERVER_NAME"] = environ["SERVER_NAME"] or "localhost"
        environ.setdefault("QUERY_STRING", "")
        return application(environ, start_response)

    listener = bjoern.bind_and_listen(f"unix:{sys.argv[1]}", listen_backlog=BACKLOG)
    # bjoern ends gracefully at SIGINT only.
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    with contextlib.suppress(KeyboardInterrupt):
        bjoern.server_run(listener, completed)


if __name__ == "__main__":
    main()
