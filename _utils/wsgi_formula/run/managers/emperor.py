"""
uWSGI's emperor.
"""

import contextlib
import json
import os
import shlex
import socket

from ... import files, process
from ...errors import WsgiError
from ...paths import ETC, RUN
from .base import BOOT_TIME, WITH_ENVIRONMENT, systemctl

VASSALS = f"{ETC}/vassals"

EMPEROR_STATS = f"{RUN}/emperor.stats"


class Emperor:
    """
    The formula's own uWSGI emperor: a vassal is a link to its configuration, beside which lies what starts it.

    It holds servers alone. That it is to end, a vassal reads from a pipe, as uWSGI does and no other
    program; the emperor sends it no signal but SIGKILL, 30 s later.
    """

    # What it renders: a generation's id changes with them.
    templates = ()

    def __init__(self, host):
        self.host = host
        self._first_pids = {}

    @staticmethod
    def _path(unit):
        return f"{VASSALS}/{unit}.ini"

    @staticmethod
    def files(program):
        """What the vassal is to run, path to text: the distribution's uWSGI, or that of its environment."""
        words = [*program.launch, WITH_ENVIRONMENT, program.generation.config_dir, program.command[0]]
        return {f"{program.generation.config_dir}/launch": f'exec {shlex.join(words)} "$@"\n'}

    def start(self, program):
        """Have the emperor start a vassal, at its next look (once a second)."""
        process.wait_until(lambda: os.path.exists(EMPEROR_STATS), BOOT_TIME)
        if self._stats().get("emperor_tyrant"):
            self._renew(program)
        files.ensure_dir(VASSALS, 0o755)
        files.replace_symlink(program.generation.config_file, self._path(program.unit))

    def _renew(self, program):
        """An emperor that runs since before vassals were started as root would refuse each of them."""
        if self._vassals():
            raise WsgiError(
                f"{program.key} can't start: the emperor still runs with an older /etc/wsgi/emperor.ini. "
                "Restart it, and the apps that it holds, when they may be away for a moment: "
                "systemctl restart wsgi-emperor; then apply again."
            )
        systemctl("restart", "wsgi-emperor")

    def stop(self, unit, patience):
        """Have the emperor stop a vassal, and wait until it has, at most ``patience`` seconds."""
        files.remove(self._path(unit))
        # Its list and not the process: a vassal that failed may be on its way up again.
        process.wait_until(lambda: f"{unit}.ini" not in self._vassals(), patience, pause=0.1)

    def failed(self, unit):
        """Why a vassal that was just started will not come up, or None."""
        first = self._first_pids.get(unit)
        if first is None:
            pid = self.pid(unit)
            if pid:
                self._first_pids[unit] = pid
        # Looked at before the emperor starts it again, while the log still ends with the reason.
        elif not process.is_alive(first):
            return "uWSGI ended"
        return None

    def pid(self, unit):
        """The PID of a vassal's master, or None."""
        vassal = self._vassals().get(f"{unit}.ini")
        return vassal["pid"] if vassal and vassal["pid"] > 0 else None

    @staticmethod
    def registered(unit):
        """Whether the unit comes back by itself after a reboot."""
        return os.path.islink(Emperor._path(unit))

    @staticmethod
    def _vassals():
        return {vassal["id"]: vassal for vassal in Emperor._stats().get("vassals", ())}

    @staticmethod
    def _stats():
        try:
            with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock:
                sock.settimeout(10)
                sock.connect(EMPEROR_STATS)
                with sock.makefile() as stats:
                    return json.load(stats)
        except (OSError, ValueError):
            return {}
