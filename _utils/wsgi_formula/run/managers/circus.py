"""
Circus.
"""

import configparser
import os
import re
import shlex
import signal
import time

from ... import files, process
from ...paths import ETC, RUN
from .base import LOGGED, Daemon, wait_for_socket


class Circus(Daemon):
    """A circus of the formula's own."""

    WATCHERS = f"{ETC}/circus"
    ENDPOINT = f"{RUN}/circus/endpoint"
    templates = ("circus/watcher.ini.jinja",)

    def _path(self, unit):
        return f"{self.WATCHERS}/{unit}.ini"

    def _logged(self, program):
        return [LOGGED, f"{program.generation.server_dir}/log", program.log]

    @staticmethod
    def line(command):
        """A command as a watcher has it: it expands $(circus.…), and a comment begins in quotes too."""
        return re.sub(r"(?<=\()(?=circus\.)|(?<=\s)(?=;)", "''", shlex.join(command), flags=re.IGNORECASE)

    def start(self, program):
        """Have circus run the watcher that its section tells of, which it reads itself at boot."""
        unit = program.unit
        wait_for_socket(self.ENDPOINT, "wsgi-circus")
        section = configparser.RawConfigParser()
        section.read(self._path(unit))
        watcher = dict(section[f"watcher:{unit}"])
        command = {name: watcher.pop(name) for name in ("cmd", "args")}
        options = {name: int(value) if value.lstrip("-").isdigit() else value for name, value in watcher.items()}
        try:
            self._ask("add", name=unit, start=True, waiting=True, options=options, **command)
        except OSError as error:
            if "already exist" not in str(error):  # as it does where circus has come up this moment
                raise
        self._first_pids[unit] = self.pid(unit)

    def stop(self, unit, patience):
        """Have circus forget a watcher, and stop its program: circus would do nothing else meanwhile."""
        files.remove(self._path(unit))
        pid = None

        def runs():
            nonlocal pid
            pid = self.pid(unit)
            return bool(pid) and process.is_alive(pid)

        # What has ended circus starts again meanwhile, and would leave running: it must stop that itself.
        self._ask("rm", patience, name=unit, nostop=runs, waiting=True)
        if pid and process.is_alive(pid):
            os.kill(pid, signal.SIGTERM)
            process.wait_until(lambda: not process.is_alive(pid), patience)

    def pid(self, unit):
        """The PID of a watcher's process, or None."""
        try:
            return next(iter(self._ask("list", name=unit)["pids"]), None)
        except OSError:
            return None

    def _ask(self, command, patience=10, **properties):
        """
        circus's answer; it refuses all but questions while it is busy. OSError when it says no. A property
        that can be called is, for each try.
        """
        deadline = time.monotonic() + patience
        while True:
            said = {name: value() if callable(value) else value for name, value in properties.items()}
            answer = self._answer({"command": command, "properties": said}, deadline - time.monotonic())
            if answer["status"] == "ok":
                return answer
            if "already running" not in answer["reason"] or time.monotonic() > deadline:
                raise OSError(f"circus refused to {command} {properties['name']}: {answer['reason']}")
            time.sleep(0.05)

    def _answer(self, question, patience):
        import zmq  # Salt's, and of no use to any other machine.

        if not os.path.exists(self.ENDPOINT):
            raise FileNotFoundError("circus is not running")
        with zmq.Context.instance().socket(zmq.DEALER) as channel:
            channel.linger = 0
            channel.connect(f"ipc://{self.ENDPOINT}")
            channel.send_json({**question, "id": "salt"})
            if not channel.poll(max(patience, 0) * 1000):
                raise TimeoutError("circus does not answer")
            return channel.recv_json()
