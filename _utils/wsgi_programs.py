"""
What belongs to a generation and runs: its server, and whatever else pillar names.
"""

import contextlib
from dataclasses import dataclass, field
from typing import Any

import wsgi_managers

# Beyond what a program is allowed for a graceful stop, before what is left of it is killed.
STOP_MARGIN = 15  # seconds


@dataclass
class Program:
    """
    One process that a process manager keeps for a generation.

    generation : wsgi_generation.Generation
    manager : object
        Its process manager, from ``wsgi_managers.manager``.
    unit : str
        Its name there.
    log : str
        The file that it writes to.
    description : str
    graceful_timeout : int
        Seconds that it gets to finish what it does when it is to end.
    notify : bool
        Whether it tells systemd when it is up.
    command : list of str
        Known while the generation is prepared.
    """

    generation: Any
    manager: Any
    unit: str
    log: str
    description: str
    graceful_timeout: int
    notify: bool = False
    command: list = field(default_factory=list)

    def start(self):
        """Have its process manager start it, now and at boot."""
        self.manager.start(self)

    def files(self):
        """What its process manager needs of it, path to text."""
        return self.manager.files(self)

    def stop(self):
        """Have its process manager stop it and forget it, and kill what is left of it then."""
        births = {pid: wsgi_managers.started(pid) for pid in wsgi_managers.processes(self.pid)}
        with contextlib.suppress(OSError):  # its process manager is not running, nor is it then
            self.manager.stop(self.unit, self.graceful_timeout + STOP_MARGIN)
        wsgi_managers.kill(births)

    @property
    def pid(self):
        """Its PID, or None."""
        return self.manager.pid(self.unit)


def server(generation):
    """The ``Program`` that is a generation's server."""
    return Program(
        generation=generation,
        manager=generation.manager,
        unit=generation.unit,
        log=generation.log,
        description=f"{generation.name} under {generation.server}",
        graceful_timeout=generation.record["settings"]["graceful_timeout"],
        notify=generation.host.servers[generation.server].get("notify", False),
    )


def stop(generation):
    """Stop all of a generation's programs."""
    for program in generation.programs:
        program.stop()
