"""
Speaks to a server's socket as nginx would: HTTP or the uwsgi protocol, standard library only.
"""

import http.client
import os
import socket
import struct

from .. import process

HEADERS = {"User-Agent": "wsgi-formula", "Connection": "close"}


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self):
        self.sock = _connect(self._path, self.timeout)


class _Socket:
    """What http.client.HTTPResponse wants of a socket."""

    def __init__(self, sock):
        self.makefile = sock.makefile


def request_status(protocol, path, target, host, timeout):
    """
    Ask a server for a page.

    protocol : str
        ``http`` or ``uwsgi``.
    path : str
        The server's unix socket.
    target, host : str
        The request's path, with its query, and its Host header.
    timeout : float
        Seconds.

    Returns the response's status, an int. Raises OSError when nobody answers in time and
    ``http.client.HTTPException`` when the answer is not HTTP.

    .. code-block:: python

        >>> status("uwsgi", "/run/wsgi/hello/6f1d8b2c90/uwsgi.sock", "/healthz", "localhost", 5)
        200
    """
    if protocol == "http":
        connection = _UnixConnection(path, timeout)
        try:
            connection.request("GET", target, headers={"Host": host, **HEADERS})
            return connection.getresponse().status
        finally:
            connection.close()
    with _connect(path, timeout) as sock:
        sock.sendall(uwsgi_request(target, host))
        response = http.client.HTTPResponse(_Socket(sock), method="GET")
        response.begin()
        return response.status


def uwsgi_request(target, host):
    """
    A GET request in the uwsgi protocol.

    target, host : str
        The request's path, with its query, and its Host header.

    Returns bytes. The format: https://uwsgi-docs.readthedocs.io/en/latest/Protocol.html
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


def count_connections(folder):
    """
    How many connections the unix sockets in a folder have, accepted or waiting to be. In folders
    below it may be what a server's processes speak over with each other.
    """
    return sum(1 for path, listens in process.unix_sockets() if os.path.dirname(path) == folder and not listens)


def _connect(path, timeout):
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(timeout)
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock
