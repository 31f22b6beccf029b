"""The TCP ports that nginx is to listen on."""

from __future__ import annotations

import contextlib
import os
import socket

from .. import files
from ..errors import WsgiError


def check_free(key: str, port: int, master: int | None) -> None:
    """
    Raise ``WsgiError`` when another program than nginx listens on a port.

    key : str
        The pillar key of the port, for the problem.
    master : int or None
        The PID of nginx.

    ``nginx -t`` accepts such a port, but nginx would then keep its old configuration.
    """
    with contextlib.closing(socket.socket()) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("", port))
            return
        except OSError:
            pass
    held = {_link(f"/proc/{master}/fd/{fd}") for fd in files.list_dir(f"/proc/{master}/fd")}
    if not any(f"socket:[{inode}]" in held for inode in _listeners(port)):
        raise WsgiError(
            f"{key}: port {port} is in use by another program; `ss -ltnp 'sport = :{port}'` shows which one"
        )


def _listeners(port):
    """Yield the inodes of the TCP sockets that listen on a port."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in (files.read(table) or "").splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                yield fields[9]


def _link(path):
    try:
        return os.readlink(path)
    except OSError:
        return None
