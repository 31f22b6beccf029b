"""
Gaffer.
"""

from __future__ import annotations

import configparser
import contextlib
import json
import re
import shlex
from collections.abc import Sequence
from typing import Any

from ... import files, process
from ...paths import ETC, RUN
from ..unix_http import UnixConnection
from .base import LOGGED, Program, SocketManager, wait_for_socket


class Gaffer(SocketManager):
    """The formula's own gafferd: each unit is a *job* in the *session* of its app."""

    JOBS = f"{ETC}/gaffer/jobs"
    API = f"{RUN}/gaffer/api"
    templates = ("gaffer/job.ini.jinja",)

    @property
    def folder(self) -> str:
        """Return the folder of the jobs' files."""
        return self.JOBS

    def _path(self, unit):
        return f"{self.JOBS}/{unit}.ini"

    def _logger(self, program):
        return [LOGGED, f"{program.generation.server_dir}/log", program.log]

    @staticmethod
    def command_line(command: Sequence[str]) -> str:
        """Return a command for a job: gaffer expands ``%`` and ``$``, and a comment begins within quotes, too."""
        quoted = shlex.join(command).replace("%", "%%").replace("$", "$$")
        return re.sub(r"(?<=\s)(?=;)", "''", quoted)

    def start(self, program: Program) -> None:
        """Add the job that a program's file describes; gaffer itself reads that file only at boot."""
        unit = program.unit
        wait_for_socket(self.API, "wsgi-gaffer")
        session, name = self._names(unit)
        section = configparser.ConfigParser()
        section.read(self._path(unit), encoding="utf-8")
        job = section[f"job:{self._section(unit)}"]
        options = {"os_env": False, "graceful_timeout": job.getint("graceful_timeout")}
        self._call("POST", f"jobs/{session}", name=name, cmd=job["cmd"], args=job["args"], **options)
        self._first_pids[unit] = self.pid(unit)

    def stop(self, unit: str, patience: float) -> None:
        """Stop a job, and wait until its process has ended."""
        files.remove(self._path(unit))
        pid = self.pid(unit)
        self._call("DELETE", self._job(unit))
        process.wait_until(lambda: not pid or not process.is_alive(pid), patience)

    def pid(self, unit: str) -> int | None:
        """Return the PID of a job's process, or None."""
        with contextlib.suppress(OSError):
            for number in self._call("GET", f"{self._job(unit)}/pids").get("pids", ()):
                return self._call("GET", str(number)).get("os_pid")
        return None

    def _section(self, unit):
        return ".".join(reversed(self._names(unit)))

    @staticmethod
    def _names(unit: str) -> tuple[str, str]:
        """Return a unit's session and the name of its job, in which a dot would end the name."""
        session, _, name = unit.partition(".")
        return session, name.replace(".", "-")

    @staticmethod
    def _job(unit: str) -> str:
        return f"jobs/{'/'.join(Gaffer._names(unit))}"

    def _call(self, method: str, path: str, **body: Any) -> dict:
        """Return gaffer's response, empty where gaffer does not know the path; raise OSError where it refuses."""
        with contextlib.closing(UnixConnection(self.API, 10)) as connection:
            connection.request(method, f"/{path}", json.dumps(body) if body else None)
            with connection.getresponse() as response:
                text = response.read()
        if response.status not in (200, 404):
            raise OSError(f"gaffer responded {response.status} to {method} {path}: {text.decode(errors='replace')}")
        return json.loads(text) if response.status == 200 else {}
