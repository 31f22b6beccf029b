"""
HTTP over unix sockets, from the standard library.
"""

from __future__ import annotations

import http.client
import socket


class UnixConnection(http.client.HTTPConnection):
    """
    An HTTP connection to a unix socket.

    path : str
    timeout : float
        Seconds.
    """

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path
        self._timeout = timeout

    def connect(self) -> None:
        """Connect to the socket; raise OSError where nothing accepts in time."""
        self.sock = connect(self._path, self._timeout)


def connect(path: str, timeout: float) -> socket.socket:
    """Return a connection to a unix socket, whose operations take at most so many seconds; raise OSError without one."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(timeout)
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock
