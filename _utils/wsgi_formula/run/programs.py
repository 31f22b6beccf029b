"""
The programs of a generation, its server and the processes beside it, and what their process managers know of them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from .. import files
from ..errors import WsgiError
from ..host import Host
from .jobs import Job
from .managers import MANAGERS, process_manager
from .managers.base import Program

# The process managers that keep servers alone, to those that keep the processes beside their servers.
BESIDE = {"emperor": "systemd"}


class ProgramFailed(WsgiError):
    """A program does not come up; ``log`` is the path of the log that tells why."""

    def __init__(self, message: str, log: str) -> None:
        super().__init__(message)
        self.log = log


def words_of(command: str | Sequence[Any]) -> list[str]:
    """
    Return a command of pillar as a list of words. No shell runs a str, which is split as a shell would.

    .. code-block:: python

        >>> words_of("celery -A shop worker --hostname 'worker 1'")
        ['celery', '-A', 'shop', 'worker', '--hostname', 'worker 1']
    """
    return shlex.split(command) if isinstance(command, str) else [str(word) for word in command]


def check_running(programs: Sequence[Program]) -> None:
    """Raise ``ProgramFailed`` for the first of some programs that will not come up."""
    for program in programs:
        reason = program.manager.failure_reason(program.unit)
        if reason:
            raise ProgramFailed(f"{program.key} did not start: {reason}.", program.log)


def managers_of(app: Mapping[str, Any]) -> list[str]:
    """Return the names of the process managers that an app needs, that of its server first."""
    return list(dict.fromkeys([*_program_managers(app), *(["systemd"] if app["schedule"] else [])]))


def program_templates(app: Mapping[str, Any]) -> list[str]:
    """Return the templates of an app's programs and jobs, by their paths below ``wsgi/``."""
    found = [template for name in _program_managers(app) for template in MANAGERS[name].templates]
    return [*found, *((Job.SERVICE, Job.TIMER) if app["schedule"] else ())]


def _program_managers(app):
    """Return the names of the process managers of an app's server and, where there are any, of the processes beside it."""
    manager = app["process_manager"]
    return [manager, *([BESIDE[manager]] if app["processes"] and manager in BESIDE else [])]


def program_folders(host: Host) -> dict[str, str]:
    """Return the folders in which process managers find their units, by the process managers' names."""
    return {name: process_manager(host, name).folder for name in MANAGERS}


def known_programs(host: Host, unit: str) -> dict[str, Any] | None:
    """
    Return what process managers and systemd run under the name of a generation, whatever its record says.

    unit : str
        The unit of its server: ``<app>.<generation>``.

    Returns ``process_manager``, ``processes`` and ``schedule``, as in a record; None where there is nothing.
    """
    program = re.compile(rf"(?:wsgi-)?{re.escape(unit)}(?:\.([^.]+)\.(\d+))?\.(?:ini|conf|service)")
    timer = re.compile(rf"wsgi-{re.escape(unit)}\.([^.]+)\.timer")
    managers: list[str] = []
    processes: dict[str, dict] = {}
    schedule: dict[str, dict] = {}
    for manager, folder in program_folders(host).items():
        for file in files.list_dir(folder):
            match = program.fullmatch(file)
            if match:
                managers.append(manager)
                if match[1]:
                    process = processes.setdefault(match[1], {"command": "", "count": 0})
                    process["count"] = max(process["count"], int(match[2]))
            match = timer.fullmatch(file)
            if match:
                schedule[match[1]] = {"command": "", "calendar": "", "timeout": 0}
    if not managers and not schedule:
        return None
    # The emperor comes first: systemd keeps the processes beside its servers.
    return {"process_manager": (managers or ["systemd"])[0], "processes": processes, "schedule": schedule}
