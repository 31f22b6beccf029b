"""
Functions that the programs share which keep a server alive, ``spawn`` and ``bridge``.

Their names stay: a program that starts while this file is updated may be that of before.
"""

import contextlib
import ctypes
import os
import signal
import socket

PR_SET_PDEATHSIG = 1  # of linux/prctl.h
CONNECTING, CONNECTED = "02", "03"  # socket_state of linux/net.h; a connection is CONNECTING until it is accepted
# Signals that administrators send to other servers out of habit. By default each ends or stops a process.
HABITUAL = {
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
}


def unix_sockets():
    """
    Yield ``(path, listens)`` of each unix socket of this machine that has a path.

    A connection is listed under its server's path, from the moment of connect(), accepted or not.
    """
    for path, listens, _, _ in _unix_table():
        yield path, listens


def unix_connections(path):
    """
    Return three facts about the unix socket at a path: whether a process listens, whether a connection waits to be
    accepted, and the inodes of the accepted connections (a set of str).
    """
    found = [fields for fields in _unix_table() if fields[0] == path]
    listens = any(listens for _, listens, _, _ in found)
    waits = any(state == CONNECTING for _, _, state, _ in found)
    return listens, waits, {inode for _, listens, state, inode in found if state == CONNECTED and not listens}


def _unix_table():
    # A path may hold any bytes.
    with open("/proc/net/unix", errors="surrogateescape") as table:
        next(table)
        for line in table:
            fields = line.split(maxsplit=7)
            if len(fields) == 8:
                # __SO_ACCEPTCON of linux/net.h marks a listening socket.
                yield fields[7].rstrip("\n"), bool(int(fields[3], 16) & 0x10000), fields[5], fields[6]


def notify(state):
    """Notify systemd, if it started this service: https://www.freedesktop.org/software/systemd/man/sd_notify.html"""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect(address.replace("@", "\0", 1))
            sock.sendall(state.encode())


class Publisher:
    """
    The client of the part of ``launch`` that stays root, which shows a worker's socket to nginx.

    Without ``launch``, as in a test, ``publish`` does nothing.
    """

    def __init__(self):
        number = os.environ.pop("WSGI_PUBLISHER", None)
        self._channel = socket.socket(fileno=int(number)) if number else None
        if self._channel:
            self._channel.set_inheritable(False)
            self._channel.settimeout(10)

    def publish(self, path):
        """Have nginx find a socket from now on; raise OSError where ``launch`` refuses it."""
        if not self._channel:
            return
        self._channel.send(os.path.basename(path).encode())
        answer = self._channel.recv(256).decode()
        if answer != "published":
            raise OSError(answer or "the publisher has ended")


def become_child(handled, at_end=signal.SIGKILL):
    """
    Unblock the parent's signals in a new child, and have the kernel end the child with its parent.

    handled : set of int
        The signals that the parent has blocked to wait for them.
    at_end : int
        The signal that the child gets when the parent ends.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, at_end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, handled)
