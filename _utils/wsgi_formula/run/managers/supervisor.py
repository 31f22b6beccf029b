"""
Supervisor.
"""

import contextlib
import http.client
import re
import shlex
import socket
import xmlrpc.client

from ... import files, process
from .base import BOOT_TIME, Daemon


class Supervisor(Daemon):
    """The distribution's supervisord."""

    # Of https://supervisord.org/subprocess.html#process-states, those a start can't recover from.
    FAILED = ("BACKOFF", "EXITED", "FATAL")
    ALREADY_ADDED = 90  # http://supervisord.org/api.html
    templates = ("supervisor/program.conf.jinja",)

    def _path(self, unit):
        return f"{self.host.family['supervisor']['conf_dir']}/wsgi-{unit}.conf"

    @staticmethod
    def line(command):
        """
        A command as a program's section has it: it expands %, and a comment begins in quotes too. Before that it puts
        a folder in the place of %(here)s, whatever stands before it: quotes that end and begin keep that apart.
        """
        quoted = shlex.join(command).replace("%", "%%").replace("%(here)s", "%''(here)s")
        return re.sub(r"(?<=\s)(?=[;#])", "''", quoted)

    def start(self, program):
        """Have supervisord read the program's section, and start that program alone."""
        process.wait_until(self._answers, BOOT_TIME)
        with self._rpc() as rpc:
            rpc.supervisor.reloadConfig()
            try:
                rpc.supervisor.addProcessGroup(program.unit)
            except xmlrpc.client.Fault as fault:
                if fault.faultCode != self.ALREADY_ADDED:  # as it has where it has come up this moment
                    raise

    def stop(self, unit, patience):
        """Stop a program and take it away; supervisord waits its own stopwaitsecs and kills."""
        files.remove(self._path(unit))
        with self._rpc(patience) as rpc:
            with contextlib.suppress(xmlrpc.client.Fault):  # it isn't known, or is stopped already
                rpc.supervisor.stopProcessGroup(unit)
            with contextlib.suppress(xmlrpc.client.Fault):
                rpc.supervisor.removeProcessGroup(unit)
            rpc.supervisor.reloadConfig()

    def failed(self, unit):
        """Why a program that was just started will not come up, or None."""
        info = self._info(unit)
        if info is None:
            return "supervisord does not know it"
        if info["statename"] in self.FAILED:
            return f"supervisord says {info['statename']}: {info['spawnerr'] or info['description']}"
        return None

    def pid(self, unit):
        """The PID of a program, or None."""
        info = self._info(unit)
        return (info and info["pid"]) or None

    def _answers(self):
        try:
            with self._rpc() as rpc:
                return bool(rpc.supervisor.getState())
        except (OSError, xmlrpc.client.Fault):
            return False

    def _info(self, unit):
        try:
            with self._rpc() as rpc:
                return rpc.supervisor.getProcessInfo(unit)
        except (OSError, xmlrpc.client.Fault):
            return None

    def _rpc(self, patience=10):
        transport = _UnixTransport(self.host.family["supervisor"]["socket"], patience)
        return xmlrpc.client.ServerProxy("http://localhost", transport=transport)


class _UnixTransport(xmlrpc.client.Transport):
    def __init__(self, path, timeout):
        super().__init__()
        self._path = path
        self._timeout = timeout

    def make_connection(self, host):
        connection = http.client.HTTPConnection(host, timeout=self._timeout)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(self._timeout)
        connection.sock.connect(self._path)
        return connection
