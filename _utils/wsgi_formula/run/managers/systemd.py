"""
systemd.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from ... import files
from ...paths import RUN, TMPFILES
from .base import ProcessManager, Program, systemctl


class Systemd(ProcessManager):
    """
    systemd itself: each unit is two services, one for the program and one that writes its log.

    systemd could write the log itself, but would never open it again after a rotation.
    """

    SYSTEM = "/etc/systemd/system"
    templates = ("systemd/program.service.jinja", "systemd/log.service.jinja")

    @property
    def folder(self) -> str:
        """Return the folder of the administrator's units."""
        return self.SYSTEM

    @staticmethod
    def _services(unit: str) -> tuple[str, str]:
        """Return the names of the program's service and of its log's."""
        return f"wsgi-{unit}.service", f"wsgi-{unit}.log.service"

    @staticmethod
    def _link(unit: str) -> str:
        """Return the path of the link that starts the program at boot."""
        return f"{Systemd.SYSTEM}/multi-user.target.wants/wsgi-{unit}.service"

    @staticmethod
    def _pipe(unit: str) -> str:
        """Return the path of the pipe from the program to its log's service."""
        # In a folder of root's: systemd opens it as root.
        name, _, id = unit.partition(".")
        return f"{RUN}/{name}/{id}.log"

    @staticmethod
    def _tmpfiles(unit: str) -> str:
        """Return the path of the file from which systemd makes the pipe at boot."""
        return f"{TMPFILES}/wsgi-{unit}.log.conf"

    def files(self, program: Program) -> dict[str, str]:
        """Return the two services, and what makes the pipe between them at boot, path to text."""
        generation, services, pipe = program.generation, self._services(program.unit), self._pipe(program.unit)
        command = self.command_line(program.wrapped(program.command))
        values = {"program": program, "command": command, "pipe": pipe, "log_service": services[1]}
        units = {
            f"{self.SYSTEM}/{service}": self.host.render(template, **values)
            for service, template in zip(services, self.templates)
        }
        return {**units, self._tmpfiles(program.unit): f"p {pipe} 0600 {generation.uid} {generation.gid} -\n"}

    @staticmethod
    def command_line(command: Sequence[str]) -> str:
        """Return a command, a list of words, for a service: systemd expands ``%`` and ``$``."""
        for special in ("\\", '"'):
            command = [word.replace(special, f"\\{special}") for word in command]
        return " ".join(f'"{word}"' for word in command).replace("%", "%%").replace("$", "$$")

    def start(self, program: Program) -> None:
        """Start the program's service, which pulls in its log's."""
        unit, generation, pipe = program.unit, program.generation, self._pipe(program.unit)
        service = self._services(unit)[0]
        files.remove(pipe)
        os.mkfifo(pipe, 0o600)
        os.chown(pipe, generation.uid, generation.gid)
        files.replace_symlink(f"{self.SYSTEM}/{service}", self._link(unit))
        systemctl("daemon-reload")
        systemctl("start", "--no-block", service)

    def stop(self, unit: str, patience: float) -> None:
        """Stop a program and then its log's service, which waits for the last line; remove both."""
        files.remove(self._link(unit))
        systemctl("stop", *self._services(unit))
        units = [f"{self.SYSTEM}/{service}" for service in self._services(unit)]
        for path in (*units, self._tmpfiles(unit), self._pipe(unit)):
            files.remove(path)
        systemctl("daemon-reload")
        systemctl("reset-failed", *self._services(unit))

    def failure_reason(self, unit: str) -> str | None:
        """Return why a unit that was just started will not come up: its service is unknown, or has failed once."""
        properties = self._properties(unit)
        if properties.get("LoadState") != "loaded":
            return f"systemd reports {properties.get('LoadState', 'nothing')}"
        if properties["SubState"] in ("auto-restart", "failed") or properties["NRestarts"] != "0":
            return f"systemd reports {properties['Result']}, status {properties['ExecMainStatus']}"
        return None

    def pid(self, unit: str) -> int | None:
        """Return the PID of a service's main process, or None."""
        return int(self._properties(unit).get("MainPID", 0)) or None

    def starts_at_boot(self, unit: str) -> bool:
        """Return whether the link that starts the service at boot is there."""
        return os.path.islink(self._link(unit))

    def _properties(self, unit):
        names = "LoadState,SubState,Result,NRestarts,ExecMainStatus,MainPID"
        shown = systemctl("show", f"--property={names}", self._services(unit)[0])
        return dict(line.split("=", 1) for line in shown.splitlines())
