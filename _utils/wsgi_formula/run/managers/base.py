"""
The interface of the process managers, the programs that they run, and what several of them share.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ... import process
from ...errors import WsgiError
from ...host import Host
from .. import unit_processes

# Starts a program as its user, in a cgroup of its own, and shows nginx its sockets.
LAUNCH = "/usr/local/lib/wsgi/launch"

# Gives a program the app's environment.
WITH_ENVIRONMENT = "/usr/local/lib/wsgi/with-environment"

# Writes what a program prints to the program's log.
LOGGED = "/usr/local/lib/wsgi/logged"

BOOT_TIME = 10  # seconds for a process manager to come up

# Seconds in which a process manager must have killed a program that does not end within its `stop_timeout`.
KILL_MARGIN = 5


@dataclass
class Program:
    """
    One process that a process manager keeps running for a generation: its server, or a process beside it.

    generation : Generation
    manager : ProcessManager
    unit : str
        The program's name under its process manager.
    log : str
        The file that it writes to.
    description, key : str
        What to call it in a sentence, and where pillar has it.
    stop_timeout : int
        Seconds from SIGTERM until its process manager kills it.
    command : list of str
        For a server, it is empty until ``generation_files`` sets it.
    notify : bool
        Whether it tells systemd when it is ready.
    published : list of str
        The names of the sockets that nginx, or another service, is to find.
    publishes_on_request : bool
        Whether ``launch`` waits for its request to publish each of them.
    """

    generation: Any
    manager: ProcessManager
    unit: str
    log: str
    description: str
    key: str
    stop_timeout: int
    command: list[str]
    notify: bool = False
    published: Sequence[str] = ()
    publishes_on_request: bool = False

    def wrapped(self, command: Sequence[str], logger: Sequence[str] = ()) -> list[str]:
        """
        Return the words with which a process manager, as root, runs a command as the app's user in the app's environment.

        logger : list of str
            Words that have the output logged, where the process manager does not.
        """
        generation = self.generation
        words = [LAUNCH, "--unit", self.unit, "--user", generation.user]
        words += ["--patience", str(self.stop_timeout)]
        if self.published:
            words += ["--own", generation.server_dir, "--into", generation.runtime_dir]
            words += [word for name in self.published for word in ("--publish", name)]
            words += ["--asked"] * self.publishes_on_request
        return [*words, "--", *logger, WITH_ENVIRONMENT, generation.config_dir, *command]

    def files(self) -> dict[str, str]:
        """Return the files that its process manager needs, path to text."""
        return self.manager.files(self)

    def start(self) -> None:
        """Start it, now and after each reboot; raise ``WsgiError`` or OSError where its process manager does not."""
        self.manager.start(self)

    def stop(self) -> None:
        """Stop it for good: then no process of it is left, whichever process is its parent."""
        births = {pid: process.start_ticks(pid) for pid in process.descendants(self.pid)}
        with contextlib.suppress(OSError):  # the process manager does not run, so neither does the program
            self.manager.stop(self.unit, self.stop_timeout + KILL_MARGIN)
        unit_processes.kill_survivors(births)
        unit_processes.wait_for_log(self.log)
        unit_processes.kill_unit(self.unit, self.generation.user)

    def starts_at_boot(self) -> bool:
        """Return whether its process manager starts it after a reboot."""
        return self.manager.starts_at_boot(self.unit)

    @property
    def pid(self) -> int | None:
        """Return its PID, or None where it does not run."""
        return self.manager.pid(self.unit)


class ProcessManager(ABC):
    """
    What keeps the programs of generations running, and starts them again after a reboot.

    A *unit* is the name of a ``Program`` under its process manager: ``<app>.<generation>`` for a server, and
    ``<app>.<generation>.<process>.<number>`` for a process beside it. A change calls the methods in this order: it
    writes what ``files`` returns, calls ``start``, asks ``failure_reason`` until the program is ready, and in the end
    ``stop``. After a run that was killed, the next one calls ``stop`` again.

    host : Host
    """

    # The templates of `files`, by their paths below `wsgi/`: a generation's id changes with their text.
    templates: ClassVar[tuple[str, ...]] = ()

    def __init__(self, host: Host) -> None:
        self.host = host

    @property
    @abstractmethod
    def folder(self) -> str:
        """Return the folder in which the process manager finds the file of each unit."""

    @abstractmethod
    def files(self, program: Program) -> dict[str, str]:
        """Return the files that make a program known to the process manager, path to text."""

    @abstractmethod
    def start(self, program: Program) -> None:
        """
        Start a program whose files are there, now and after each reboot. Do not wait until it is ready.

        Raises ``WsgiError`` or OSError where the process manager does not accept it.
        """

    @abstractmethod
    def stop(self, unit: str, patience: float) -> None:
        """
        Stop a program with SIGTERM, and make the process manager forget it, after a reboot, too.

        patience : float
            Seconds to wait until the program has ended. The process manager kills it before they are over.

        Raises OSError where the process manager does not run. Even then, it does not start the unit at boot any more.
        """

    @abstractmethod
    def failure_reason(self, unit: str) -> str | None:
        """Return why a unit that was just started will not come up, a clause; None as long as it may."""

    @abstractmethod
    def pid(self, unit: str) -> int | None:
        """Return the PID of a unit's program, or None where none runs."""

    @abstractmethod
    def starts_at_boot(self, unit: str) -> bool:
        """Return whether the process manager starts a unit after a reboot."""


class SocketManager(ProcessManager):
    """
    A process manager that takes requests over a socket, so that a change concerns one unit alone.

    At boot, it reads a file for each unit, which the first of ``templates`` renders.
    """

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._first_pids: dict[str, int | None] = {}

    @staticmethod
    @abstractmethod
    def command_line(command: Sequence[str]) -> str:
        """Return a command, a list of words, as the file has it: quoted, and with nothing left to expand."""

    @abstractmethod
    def _path(self, unit: str) -> str:
        """Return the path of the unit's file."""

    def _section(self, unit: str) -> str:
        """Return the name of the unit in its file."""
        return unit

    def _logger(self, program: Program) -> Sequence[str]:
        """Return the words before a command that have its output logged; none where the process manager logs it."""
        return ()

    def files(self, program: Program) -> dict[str, str]:
        """Return the file of a program, path to text."""
        section = self._section(program.unit)
        command = self.command_line(program.wrapped(program.command, self._logger(program)))
        text = self.host.render(self.templates[0], program=program, section=section, command=command)
        return {self._path(program.unit): text}

    def failure_reason(self, unit: str) -> str | None:
        """Return why a unit that was just started will not come up: its first process is gone."""
        first = self._first_pids.get(unit)
        return None if first and process.is_alive(first) else "its process ended"

    def starts_at_boot(self, unit: str) -> bool:
        """Return whether the unit's file is there."""
        return os.path.exists(self._path(unit))


def wait_for_socket(path: str, service: str) -> None:
    """
    Wait until a process manager listens, which this run may have started.

    path : str
        Its socket.
    service : str
        Its systemd service.

    Raises ``WsgiError`` where the socket does not appear: a process manager whose socket was removed makes no other.
    """
    if not process.wait_until(lambda: os.path.exists(path), BOOT_TIME):
        raise WsgiError(
            f"{service} has no socket {path}: was it removed? `systemctl restart {service}` makes it again, and "
            "restarts the apps that it runs."
        )


def systemctl(*arguments: str) -> str:
    """Return what ``systemctl`` prints to stdout. Its errors, such as those for an unknown unit, are ignored."""
    result = subprocess.run(
        ["systemctl", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    return result.stdout
