"""
Circus.
"""

from __future__ import annotations

import configparser
import os
import re
import shlex
import signal
import time
from collections.abc import Sequence
from typing import Any

from ... import files, process
from ...paths import ETC, RUN
from .base import LOGGED, Program, SocketManager, wait_for_socket


class Circus(SocketManager):
    """The formula's own circusd: each unit is a *watcher*."""

    WATCHERS = f"{ETC}/circus"
    ENDPOINT = f"{RUN}/circus/endpoint"
    templates = ("circus/watcher.ini.jinja",)

    @property
    def folder(self) -> str:
        """Return the folder of the watchers' files."""
        return self.WATCHERS

    def _path(self, unit):
        return f"{self.WATCHERS}/{unit}.ini"

    def _logger(self, program):
        return [LOGGED, f"{program.generation.server_dir}/log", program.log]

    @staticmethod
    def command_line(command: Sequence[str]) -> str:
        """Return a command for a watcher: circus expands ``$(circus.…)``, and a comment begins within quotes, too."""
        return re.sub(r"(?<=\()(?=circus\.)|(?<=\s)(?=;)", "''", shlex.join(command), flags=re.IGNORECASE)

    def start(self, program: Program) -> None:
        """Add the watcher that a program's file describes; circus itself reads that file only at boot."""
        unit = program.unit
        wait_for_socket(self.ENDPOINT, "wsgi-circus")
        section = configparser.RawConfigParser()
        section.read(self._path(unit))
        watcher = dict(section[f"watcher:{unit}"])
        command: dict[str, Any] = {name: watcher.pop(name) for name in ("cmd", "args")}
        options = {name: int(value) if value.lstrip("-").isdigit() else value for name, value in watcher.items()}
        try:
            self._call("add", name=unit, start=True, waiting=True, options=options, **command)
        except OSError as error:
            if "already exist" not in str(error):  # circus that has just come up has read the file
                raise
        self._first_pids[unit] = self.pid(unit)

    def stop(self, unit: str, patience: float) -> None:
        """Remove a watcher, and stop its program without circus, which would block until the program has ended."""
        files.remove(self._path(unit))
        pid = None

        def is_running():
            nonlocal pid
            pid = self.pid(unit)
            return bool(pid) and process.is_alive(pid)

        # Circus must stop a program that has ended by itself: circus may just be starting it again.
        self._call("rm", patience, name=unit, nostop=is_running, waiting=True)
        if pid and process.is_alive(pid):
            os.kill(pid, signal.SIGTERM)
            process.wait_until(lambda: not process.is_alive(pid), patience)

    def pid(self, unit: str) -> int | None:
        """Return the PID of a watcher's process, or None."""
        try:
            return next(iter(self._call("list", name=unit)["pids"]), None)
        except OSError:
            return None

    def _call(self, command: str, patience: float = 10, **properties: Any) -> dict:
        """
        Return circus's response to a command, repeated for so many seconds while circus is busy.

        A property that is callable is called for each try. Raises OSError where circus refuses.
        """
        deadline = time.monotonic() + patience
        while True:
            values = {name: value() if callable(value) else value for name, value in properties.items()}
            response = self._exchange({"command": command, "properties": values}, deadline - time.monotonic())
            if response["status"] == "ok":
                return response
            if "already running" not in response["reason"] or time.monotonic() > deadline:
                raise OSError(f"circus refused to {command} {properties['name']}: {response['reason']}")
            time.sleep(0.05)

    def _exchange(self, request, patience):
        """Send circus one request, and return its response."""
        import zmq  # part of Salt; only machines with circus need it

        if not os.path.exists(self.ENDPOINT):
            raise FileNotFoundError("circus is not running")
        context: Any = zmq.Context.instance()
        with context.socket(zmq.DEALER) as channel:
            channel.linger = 0
            channel.connect(f"ipc://{self.ENDPOINT}")
            channel.send_json({**request, "id": "salt"})
            if not channel.poll(max(patience, 0) * 1000):
                raise TimeoutError("circus did not respond in time")
            return channel.recv_json()
