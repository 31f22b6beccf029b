"""
uWSGI's emperor.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex

from ... import files, process
from ...errors import WsgiError
from ...host import Host
from ...paths import ETC, RUN
from ..unix_http import connect
from .base import BOOT_TIME, ProcessManager, Program, systemctl

VASSALS = f"{ETC}/vassals"

EMPEROR_STATS = f"{RUN}/emperor.stats"


class Emperor(ProcessManager):
    """
    The formula's own uWSGI emperor: each unit is a *vassal*, a link to the server's configuration.

    It runs servers alone: a vassal is told to end over a pipe, which no other program than uWSGI reads. The emperor
    sends no signal but SIGKILL, 30 s later.
    """

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._first_pids: dict[str, int] = {}

    @property
    def folder(self) -> str:
        """Return the folder of the vassals' links."""
        return VASSALS

    @staticmethod
    def _path(unit: str) -> str:
        return f"{VASSALS}/{unit}.ini"

    def files(self, program: Program) -> dict[str, str]:
        """Return what ``wsgi/emperor/vassal`` runs: the distribution's uWSGI, or that of the app's environment."""
        words = program.wrapped(program.command[:1])
        return {f"{program.generation.config_dir}/launch": f'exec {shlex.join(words)} "$@"\n'}

    def start(self, program: Program) -> None:
        """Add a vassal. The emperor scans its folder once a second, and starts it then."""
        process.wait_until(lambda: os.path.exists(EMPEROR_STATS), BOOT_TIME)
        if self._stats().get("emperor_tyrant"):
            self._restart_emperor(program)
        files.ensure_dir(VASSALS, 0o755)
        files.replace_symlink(program.generation.config_file, self._path(program.unit))

    def _restart_emperor(self, program):
        """Restart an emperor that runs since before vassals were started as root: it would refuse each of them."""
        if self._vassals():
            raise WsgiError(
                f"{program.key} can't start: the emperor still runs with an older /etc/wsgi/emperor.ini. "
                "Restart the emperor when its apps may be down for a moment: "
                "systemctl restart wsgi-emperor; then apply again."
            )
        systemctl("restart", "wsgi-emperor")

    def stop(self, unit: str, patience: float) -> None:
        """Remove a vassal, and wait until the emperor has stopped it."""
        files.remove(self._path(unit))
        # Its process would not do: the emperor may just be starting a vassal again that has failed.
        process.wait_until(lambda: f"{unit}.ini" not in self._vassals(), patience, pause=0.1)

    def failure_reason(self, unit: str) -> str | None:
        """Return why a vassal that was just started will not come up: its first process is gone."""
        first = self._first_pids.get(unit)
        if first is None:
            pid = self.pid(unit)
            if pid:
                self._first_pids[unit] = pid
        # Before the emperor starts it again, while its log still ends with the reason.
        elif not process.is_alive(first):
            return "uWSGI ended"
        return None

    def pid(self, unit: str) -> int | None:
        """Return the PID of a vassal's master process, or None."""
        vassal = self._vassals().get(f"{unit}.ini")
        return vassal["pid"] if vassal and vassal["pid"] > 0 else None

    def starts_at_boot(self, unit: str) -> bool:
        """Return whether the vassal's link is there."""
        return os.path.islink(self._path(unit))

    def _vassals(self):
        """Return the vassals that the emperor knows, by the names of their links."""
        return {vassal["id"]: vassal for vassal in self._stats().get("vassals", ())}

    @staticmethod
    def _stats() -> dict:
        """Return the emperor's statistics; an empty dict where it does not run."""
        try:
            with contextlib.closing(connect(EMPEROR_STATS, timeout=10)) as sock, sock.makefile() as stats:
                return json.load(stats)
        except (OSError, ValueError):
            return {}
