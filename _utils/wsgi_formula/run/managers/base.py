"""
What the process managers have in common.
"""

import os
import subprocess

from ... import process
from ...errors import WsgiError

# Starts a program as its user, in a cgroup of its own, and has nginx find its sockets.
LAUNCH = "/usr/local/lib/wsgi/launch"

# Hands a program its environment.
WITH_ENVIRONMENT = "/usr/local/lib/wsgi/with-environment"

# Has what a program prints written to its log.
LOGGED = "/usr/local/lib/wsgi/logged"

BOOT_TIME = 10  # seconds for a process manager to come up


class Daemon:
    """
    A process manager with a socket to be spoken to over, so that nothing else is restarted. At boot it
    reads a file for each unit.
    """

    templates = ()

    def __init__(self, host):
        self.host = host
        self._first_pids = {}

    def _path(self, unit):
        raise NotImplementedError

    def _section(self, unit):
        """What the unit is called in its file."""
        return unit

    def _logged(self, program):
        """What writes a program's log, where its process manager does not: words that go before its command."""
        return []

    def _wrapped(self, program):
        """A program's command, with what goes before it: it takes over the process in the end."""
        return [
            *program.launch,
            *self._logged(program),
            WITH_ENVIRONMENT,
            program.generation.config_dir,
            *program.command,
        ]

    def files(self, program):
        """The unit's section, path to text."""
        section, command = self._section(program.unit), self.line(self._wrapped(program))
        text = self.host.render(self.templates[0], program=program, section=section, command=command)
        return {self._path(program.unit): text}

    def failed(self, unit):
        """Why a unit that was just started will not come up, or None."""
        first = self._first_pids.get(unit)
        return None if first and process.is_alive(first) else "its process ended"

    def registered(self, unit):
        """Whether the unit comes back by itself after a reboot."""
        return os.path.exists(self._path(unit))


def wait_for_socket(path, service):
    """A process manager that this run has started may not listen yet; one that has lost its socket never will."""
    if not process.wait_until(lambda: os.path.exists(path), BOOT_TIME):
        raise WsgiError(
            f"{service} has no socket {path}: was it removed? `systemctl restart {service}` makes it again, and "
            "restarts the apps that it holds."
        )


def systemctl(*arguments):
    """What systemctl prints; what it says besides, such as that a unit isn't there, is of no account."""
    done = subprocess.run(
        ["systemctl", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    return done.stdout
