"""
What the programs of a generation have in common: their settings, and the contract of a worker.

A generation's folder, ``/etc/wsgi/<app>/<generation>``, has copies of this file, of ``wsgi_application.py`` and of its
server's program, so that an update of the formula changes nothing that runs. They read ``settings.json`` beside them,
which has the same keys for every server: those of ``Settings``. Changed text of any of these files makes a new
generation. No file but ``env`` holds values of the app's ``env``; programs find them in their environment.

**A server with a master of its own** is started once, and serves on ``SETTINGS.socket``.

**A server of one process** (``spawned`` in ``wsgi/servers.yaml``) has a *worker* for each of the app's ``workers``.
``wsgi/common/spawn`` starts the row's ``command`` once for each of them. Its contract:

- *Socket*: the worker binds the unix socket that is its first argument (``{socket}``), in a folder of the app's user.
  No file has that name before, and ``spawn`` removes the socket in the end. Its backlog is ``BACKLOG``. Its mode is
  0660: ``launch`` sets that when it shows the socket to nginx, and the server must not set another one.
- *Ready*: a socket that listens means that the worker is ready: nginx is led to it from then on. So the worker imports
  the app first. A server that can't has ``loads_late`` in its row, and ``spawn`` waits for an answer of the health check.
- *End*: SIGTERM comes when the last connection has ended, or after ``graceful_timeout``; SIGKILL comes 5 s later. Within
  ``SHUTDOWN_TIMEOUT`` s the worker runs what the app has registered for its end, such as its ASGI lifespan, and exits.
- *App*: the worker serves ``wsgi_application.application``, the app under guard, and imports it in the process that
  serves. The guard keeps the settings of ``SETTINGS.guarded``, closes WebSockets with the code 1012 once another worker
  has the traffic, and reads the client's address, scheme and mount from nginx's headers: the server trusts none itself.
- *Lifespan*: an ASGI app's startup runs before the socket listens, in the event loop that serves, and each scope has the
  app's ``state``. Where the server has no lifespan, the program runs it.
- *Options*: ``SETTINGS.server_options`` win over the defaults of the program. An option that the server does not know
  ends the worker (``refuse_unknown_options``), unless the server refuses it itself. The row's ``reserved`` names the
  options that pillar may not set.
- *WebSockets*: the server pings each client every ``SETTINGS.ping_interval`` s, so that nginx keeps the connection.
- *Log*: errors go to stderr, one whole line at a time. nginx logs the requests, so the server does not.
- *Children*: the program does its work below ``if __name__ == "__main__"``: a child that ``multiprocessing`` spawns
  imports it again.
"""

import json
import os
import sys
from collections.abc import Callable, Container
from dataclasses import dataclass

FOLDER = os.path.dirname(os.path.abspath(__file__))
LIBRARY = "/usr/local/lib/wsgi"
# Smaller defaults, such as cheroot's 5, refuse connections in a burst. Linux's limit (somaxconn) is 4096.
BACKLOG = 2048
# Seconds that a server may take to end after SIGTERM. Its requests have had their graceful_timeout by then.
SHUTDOWN_TIMEOUT = 2


@dataclass(frozen=True)
class Settings:
    """
    What a generation's programs need to know.

    app, unit : str
        The app's name, and what its process manager calls its server: ``<app>.<generation>``.
    server, interface : str
        ``uvicorn``; ``wsgi`` or ``asgi``.
    application : str
        ``module:callable``.
    code, environment : str
        The folders of the app's code and of its virtual environment.
    socket : str or None
        The path that the server binds; None for a worker, whose first argument it is.
    server_dir : str
        The folder of that socket, to which the app's user may write.
    runtime_dir, live_link : str
        The folder in which nginx finds the sockets, and the link that leads to the live generation's.
    workers, threads, preload, request_timeout, graceful_timeout, max_requests, memory_limit
        The app's settings of these names; None where pillar leaves the setting out.
    guarded : list of str
        Those of them that the guard keeps, because the server can't.
    statsd : str or None
        ``host:port`` for the server's metrics, where the app has them.
    server_options : dict
        The server's own options from pillar.
    option_words : list of str
        The same as words of a command line.
    distribution : dict
        What ``wsgi/os_family/<family>.yaml`` has under the server's name.
    """

    app: str
    unit: str
    server: str
    interface: str
    application: str
    code: str
    environment: str
    socket: "str | None"
    server_dir: str
    runtime_dir: str
    live_link: str
    workers: int
    threads: int
    preload: bool
    request_timeout: int
    graceful_timeout: int
    max_requests: "int | None"
    memory_limit: "int | None"
    guarded: list
    statsd: "str | None"
    server_options: dict
    option_words: list
    distribution: dict

    @property
    def ping_interval(self) -> int:
        """Return the seconds between two pings of a WebSocket, within those after which nginx takes it for dead."""
        return min(20, self.request_timeout)


def asgi_application(software: str) -> Callable:
    """
    Return the app for a server that speaks ASGI alone: a WSGI app goes through a2wsgi.

    software : str
        ``SERVER_SOFTWARE`` of a WSGI app.
    """
    from wsgi_application import application

    if SETTINGS.interface == "asgi":
        return application
    from wsgi_guard import through_asgi

    return through_asgi(application, SETTINGS.threads, software)


def refuse_unknown_options(known: "Container[str]") -> None:
    """
    End this process if pillar has an option that the server would pass over.

    known : container of str
        The options that the server has.
    """
    unknown = sorted(name for name in SETTINGS.server_options if name not in known)
    if unknown:
        names, server = ", ".join(unknown), SETTINGS.server
        sys.exit(f"wsgi:apps:{SETTINGS.app}:server_options:{server}: {server} has no such settings: {names}")


with open(f"{FOLDER}/settings.json", encoding="utf-8") as _file:
    SETTINGS = Settings(**json.load(_file))
