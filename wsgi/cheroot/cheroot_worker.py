# A generation is never edited: change pillar, and a new one takes its place.
"""A worker of cheroot; its contract is in wsgi_worker.py."""

import inspect
import re
import signal
import sys
import threading

import cheroot.server
from cheroot.wsgi import Server
from wsgi_worker import BACKLOG, SETTINGS, SHUTDOWN_TIMEOUT, refuse_unknown_options


class AllHeaders:
    """A container that holds every header."""

    def __contains__(self, header):
        return True


# RFC 3875 joins a header that comes several times; cheroot keeps the last one only, except for those named here.
cheroot.server.comma_separated_headers = AllHeaders()
# cheroot decodes the path but for %2F, where it splits the path first. This pattern matches nothing.
cheroot.server.QUOTED_SLASH_REGEX = re.compile(b"(?!)")


def main():
    refuse_unknown_options(inspect.signature(Server).parameters)
    from wsgi_application import application

    server = Server(
        sys.argv[1],
        application,
        numthreads=SETTINGS.threads,
        max=SETTINGS.threads,
        shutdown_timeout=SHUTDOWN_TIMEOUT,
        **{"request_queue_size": BACKLOG, **SETTINGS.server_options},
    )
    # In a thread of its own, since stop() waits for the others, which the signal's handler interrupts.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.stop).start())
    server.start()


if __name__ == "__main__":
    main()
