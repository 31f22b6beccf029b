"""
Supervisor.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import shlex
import xmlrpc.client
from collections.abc import Sequence
from typing import Any

from ... import files, process
from ..unix_http import UnixConnection
from .base import BOOT_TIME, Program, SocketManager


class Supervisor(SocketManager):
    """The distribution's supervisord: each unit is a *program*, and alone in its group."""

    # The states that a start does not recover from: https://supervisord.org/subprocess.html#process-states
    FAILED = ("BACKOFF", "EXITED", "FATAL")
    ALREADY_ADDED = 90  # http://supervisord.org/api.html
    templates = ("supervisor/program.conf.jinja",)

    @property
    def folder(self) -> str:
        """Return the folder of the programs' files."""
        return self.host.family["supervisor"]["conf_dir"]

    def _path(self, unit):
        return f"{self.folder}/wsgi-{unit}.conf"

    @staticmethod
    def command_line(command: Sequence[str]) -> str:
        """
        Return a command for a program: supervisord expands ``%``, and a comment begins within quotes, too.

        Before that, it replaces ``%(here)s`` even after another ``%``: quotes within keep that apart.
        """
        quoted = shlex.join(command).replace("%", "%%").replace("%(here)s", "%''(here)s")
        return re.sub(r"(?<=\s)(?=[;#])", "''", quoted)

    def start(self, program: Program) -> None:
        """Have supervisord read its files again, and start this program alone."""
        process.wait_until(self._responds, BOOT_TIME)
        with self._rpc() as rpc:
            rpc.supervisor.reloadConfig()
            try:
                rpc.supervisor.addProcessGroup(program.unit)
            except xmlrpc.client.Fault as fault:
                if fault.faultCode != self.ALREADY_ADDED:  # supervisord that has just come up has read the file
                    raise

    def stop(self, unit: str, patience: float) -> None:
        """Stop a program and remove it. supervisord waits for ``stopwaitsecs`` and kills it then."""
        files.remove(self._path(unit))
        with self._rpc(patience) as rpc:
            with contextlib.suppress(xmlrpc.client.Fault):  # it is unknown, or stopped already
                rpc.supervisor.stopProcessGroup(unit)
            with contextlib.suppress(xmlrpc.client.Fault):
                rpc.supervisor.removeProcessGroup(unit)
            rpc.supervisor.reloadConfig()

    def failure_reason(self, unit: str) -> str | None:
        """Return why a program that was just started will not come up: its state tells."""
        info = self._info(unit)
        if info is None:
            return "supervisord does not know it"
        if info["statename"] in self.FAILED:
            return f"supervisord reports {info['statename']}: {info['spawnerr'] or info['description']}"
        return None

    def pid(self, unit: str) -> int | None:
        """Return the PID of a program's process, or None."""
        info = self._info(unit)
        return (info and info["pid"]) or None

    def _responds(self):
        try:
            with self._rpc() as rpc:
                return bool(rpc.supervisor.getState())
        except (OSError, xmlrpc.client.Fault):
            return False

    def _info(self, unit: str) -> Any:
        """Return what supervisord knows of a program, a dict; None where it knows nothing, or does not run."""
        try:
            with self._rpc() as rpc:
                return rpc.supervisor.getProcessInfo(unit)
        except (OSError, xmlrpc.client.Fault):
            return None

    def _rpc(self, patience=10):
        transport = _UnixTransport(self.host.family["supervisor"]["socket"], patience)
        return xmlrpc.client.ServerProxy("http://localhost", transport=transport)


class _UnixTransport(xmlrpc.client.Transport):
    """XML-RPC over a unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__()
        self._path = path
        self._timeout = timeout

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        """Return a connection to the socket, whatever the URL names."""
        return UnixConnection(self._path, self._timeout)
