"""
Scheduled commands: those of ``schedule``, which systemd runs at times.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .. import files, process
from ..errors import WsgiError
from .managers.base import WITH_ENVIRONMENT, systemctl
from .managers.systemd import Systemd

# The states of a service of the type `oneshot` whose command runs.
RUNNING = ("activating", "deactivating")


@dataclass
class Job:
    """
    A command that systemd runs at times for a generation, whichever process manager keeps its server.

    It is a timer, which comes and goes with the traffic, and a service, which may finish after that.

    generation : Generation
    name : str
        Its key in ``schedule``.
    command : list of str
    calendar : str
        As ``systemd-analyze calendar`` takes it.
    timeout : int
        Seconds that the command may take.
    log : str
        The file that it writes to.
    """

    SERVICE: ClassVar = "systemd/job.service.jinja"
    TIMER: ClassVar = "systemd/job.timer.jinja"

    generation: Any
    name: str
    command: list[str]
    calendar: str
    timeout: int
    log: str

    def __post_init__(self) -> None:
        self.description = f"{self.generation.name}'s {self.name}"
        self.service = f"wsgi-{self.generation.unit}.{self.name}.service"
        self.timer = f"wsgi-{self.generation.unit}.{self.name}.timer"
        self._link = f"{Systemd.SYSTEM}/timers.target.wants/{self.timer}"
        self._templates = {
            f"{Systemd.SYSTEM}/{self.service}": self.SERVICE,
            f"{Systemd.SYSTEM}/{self.timer}": self.TIMER,
        }

    def files(self) -> dict[str, str]:
        """Return its service and its timer, path to text."""
        command = Systemd.command_line([WITH_ENVIRONMENT, self.generation.config_dir, *self.command])
        render = self.generation.host.render
        return {path: render(template, job=self, command=command) for path, template in self._templates.items()}

    def start(self) -> None:
        """Run it at its times from now on, after a reboot, too."""
        files.replace_symlink(f"{Systemd.SYSTEM}/{self.timer}", self._link)
        systemctl("daemon-reload")
        systemctl("start", self.timer)

    def pause(self) -> None:
        """Run it no more. If it runs just now, it goes on."""
        files.remove(self._link)
        systemctl("stop", self.timer)

    def stop(self) -> None:
        """Remove it, after it has had the app's ``graceful_timeout`` to finish."""
        self.pause()
        patience = self.generation.record["settings"]["graceful_timeout"]
        process.wait_until(lambda: self._properties()["ActiveState"] not in RUNNING, patience, pause=0.2)
        systemctl("stop", self.service)
        for path in self._templates:
            files.remove(path)
        systemctl("daemon-reload")
        systemctl("reset-failed", self.service)

    def starts_at_boot(self) -> bool:
        """Return whether it runs at its times after a reboot."""
        return os.path.islink(self._link)

    def status(self) -> dict[str, Any]:
        """
        Return how it fares: ``calendar``; ``next`` and ``last``, local times or None; and ``result``, as systemd has it.
        """
        shown = self._properties()
        result = shown["Result"] if shown["ExecMainStartTimestamp"] else None
        return {
            "calendar": self.calendar,
            "next": _time(self._properties(self.timer, "NextElapseUSecRealtime")["NextElapseUSecRealtime"]),
            "last": _time(shown["ExecMainStartTimestamp"]),
            "result": "running" if shown["ActiveState"] in RUNNING else result,
        }

    def _properties(self, unit=None, names="ActiveState,Result,ExecMainStartTimestamp"):
        lines = systemctl("show", f"--property={names}", unit or self.service).splitlines()
        return {**dict.fromkeys(names.split(","), ""), **dict(line.split("=", 1) for line in lines)}


def _time(text: str) -> str | None:
    """Return systemd's `Mon 2026-11-23 06:10:00 UTC` without the first and the last word; None for `n/a`."""
    return " ".join(text.split()[1:3]) or None


def check_schedule(name: str, app: Mapping[str, Any]) -> None:
    """
    Raise ``WsgiError`` for times of an app's ``schedule`` that systemd, which alone can tell, does not accept.

    name : str
        The app.
    app : App
        Its settings, as ``desired_app`` gives them.
    """
    problems = []
    for job, settings in app["schedule"].items():
        result = subprocess.run(
            ["systemd-analyze", "calendar", "--", settings["calendar"]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if result.returncode:
            problems.append(
                f"wsgi:apps:{name}:schedule:{job}:calendar: systemd does not accept {settings['calendar']!r}; "
                f"`man systemd.time` explains what it accepts: {' '.join(result.stdout.split())}"
            )
    if problems:
        raise WsgiError("\n".join(problems))
