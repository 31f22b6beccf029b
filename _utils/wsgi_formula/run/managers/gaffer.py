"""
Gaffer.
"""

import configparser
import contextlib
import json
import re
import shlex

from ... import files, process
from ...paths import ETC, RUN
from .base import LOGGED, Daemon, wait_for_socket
from .supervisor import _UnixTransport


class Gaffer(Daemon):
    """A gaffer of the formula's own."""

    JOBS = f"{ETC}/gaffer/jobs"
    API = f"{RUN}/gaffer/api"
    templates = ("gaffer/job.ini.jinja",)

    def _path(self, unit):
        return f"{self.JOBS}/{unit}.ini"

    def _logged(self, program):
        return [LOGGED, f"{program.generation.server_dir}/log", program.log]

    @staticmethod
    def line(command):
        """A command as a job has it: it expands % and $, and a comment begins in quotes too."""
        quoted = shlex.join(command).replace("%", "%%").replace("$", "$$")
        return re.sub(r"(?<=\s)(?=;)", "''", quoted)

    def start(self, program):
        """Have gaffer run the job that its section tells of, which it reads itself at boot."""
        unit = program.unit
        wait_for_socket(self.API, "wsgi-gaffer")
        name, id = self._names(unit)
        section = configparser.ConfigParser()
        section.read(self._path(unit), encoding="utf-8")
        job = section[f"job:{self._section(unit)}"]
        patience = job.getint("graceful_timeout")
        self._ask(
            "POST", f"jobs/{name}", name=id, cmd=job["cmd"], args=job["args"], os_env=False, graceful_timeout=patience
        )
        self._first_pids[unit] = self.pid(unit)

    def stop(self, unit, patience):
        """Have gaffer stop a job and forget it, and wait until it has ended."""
        files.remove(self._path(unit))
        pid = self.pid(unit)
        self._ask("DELETE", self._job(unit))
        process.wait_until(lambda: not pid or not process.is_alive(pid), patience)

    def pid(self, unit):
        """The PID of a job's process, or None."""
        try:
            for number in self._ask("GET", f"{self._job(unit)}/pids").get("pids", ()):
                return self._ask("GET", str(number)).get("os_pid")
        except OSError:
            pass
        return None

    def _section(self, unit):
        return ".".join(reversed(self._names(unit)))

    @staticmethod
    def _names(unit):
        """The app, and the job among its own, in which a dot would be the one between the two."""
        name, _, id = unit.partition(".")
        return name, id.replace(".", "-")

    @staticmethod
    def _job(unit):
        return f"jobs/{'/'.join(Gaffer._names(unit))}"

    def _ask(self, method, path, **body):
        """gaffer's answer; an empty one for what it doesn't know."""
        with contextlib.closing(_UnixTransport(self.API, 10).make_connection("gaffer")) as connection:
            connection.request(method, f"/{path}", json.dumps(body) if body else None)
            with connection.getresponse() as answer:
                text = answer.read()
        if answer.status not in (200, 404):
            raise OSError(f"gaffer answered {answer.status} to {method} {path}: {text.decode(errors='replace')}")
        return json.loads(text) if answer.status == 200 else {}
