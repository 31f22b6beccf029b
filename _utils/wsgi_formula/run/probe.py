"""
Requests to a server's socket, as nginx would send them, and the connections that the socket has.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import struct
from typing import Any

from .. import process
from .unix_http import UnixConnection, connect

HEADERS = {"User-Agent": "wsgi-formula", "Connection": "close"}


class _Socket:
    """The part of a socket that ``http.client.HTTPResponse`` needs."""

    def __init__(self, sock: Any) -> None:
        self.makefile = sock.makefile


def request_status(protocol: str, path: str, target: str, host: str, timeout: float) -> int:
    """
    Send a server a GET request, and return the status of its response.

    protocol : str
        ``http`` or ``uwsgi``.
    path : str
        The server's unix socket.
    target, host : str
        The request's path, with its query, and its Host header.
    timeout : float
        Seconds.

    Raises OSError when no response comes in time, and ``http.client.HTTPException`` when it is not HTTP.

    .. code-block:: python

        >>> request_status("uwsgi", "/run/wsgi/hello/6f1d8b2c90/uwsgi.sock", "/healthz", "localhost", 5)
        200
    """
    if protocol == "http":
        with contextlib.closing(UnixConnection(path, timeout)) as connection:
            connection.request("GET", target, headers={"Host": host, **HEADERS})
            return connection.getresponse().status
    with connect(path, timeout) as sock:
        sock.sendall(uwsgi_request(target, host))
        response = http.client.HTTPResponse(_Socket(sock), method="GET")  # type: ignore[arg-type]
        response.begin()
        return response.status


def uwsgi_request(target: str, host: str) -> bytes:
    """
    Return a GET request in the uwsgi protocol: https://uwsgi-docs.readthedocs.io/en/latest/Protocol.html

    target, host : str
        The request's path, with its query, and its Host header.
    """
    path, _, query = target.partition("?")
    variables = {
        "REQUEST_METHOD": "GET",
        "REQUEST_URI": target,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": host,
        "SERVER_PORT": "80",
        "REMOTE_ADDR": "127.0.0.1",
        "REQUEST_SCHEME": "http",
        "HTTP_HOST": host,
        "HTTP_USER_AGENT": HEADERS["User-Agent"],
    }
    body = b"".join(
        struct.pack("<H", len(item)) + item
        for pair in variables.items()
        for item in (pair[0].encode(), pair[1].encode())
    )
    return struct.pack("<BHB", 0, len(body), 0) + body


def count_connections(folder: str) -> int:
    """
    Return how many connections the unix sockets in a folder have, accepted or not.

    Sockets in folders below it, over which a server's processes talk to each other, do not count.
    """
    return sum(1 for path, listens in process.unix_sockets() if os.path.dirname(path) == folder and not listens)
