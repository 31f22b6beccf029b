"""
Generations: one release run by one server with one set of settings.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import shlex
import stat
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .. import files, process
from ..app import history
from ..app.release import Release
from ..build.environment import Environment
from ..host import Host
from ..paths import ETC, LIB, LOG, RUN, TMPFILES
from ..redact import failure_excerpt, redact, tail
from . import unit_processes
from .jobs import Job
from .managers import process_manager
from .managers.base import BOOT_TIME, Program
from .programs import BESIDE, ProgramFailed, check_running, words_of
from .record import derived_record, fingerprint

# How many lines of a log tell why a generation failed: gunicorn adds a long traceback of its own.
FAILURE_LINES = 60

# Seconds from SIGTERM until a server is killed, beyond its graceful_timeout, which it keeps by itself.
STOP_MARGIN = 10

# Seconds for which the processes beside a server must have run before their generation goes live: unlike the server,
# they have no health check.
MIN_UPTIME = 1


class Generation:
    """
    A generation on this machine, or one that is being prepared.

    host : Host
    name : str
        The app.
    id : str
        Its ``desired_id``, and ``-2``, ``-3``, … where another generation of that id was there already.
    record : dict
        Its record; see ``record``.
    """

    def __init__(self, host: Host, name: str, id: str, record: dict[str, Any]) -> None:
        self.host = host
        self.name = name
        self.id = id
        self.record = record
        if "owed" in record:  # the name of the key before version 1.0
            record["pending_hooks"] = record.pop("owed")
        self.server: str = record["server"]
        self.protocol: str = record["protocol"]
        self.user: str = record["user"]
        self.release: str = record["release"]
        self.code = Release(name, self.release).code
        self.environment = Environment(name, record["environment"])
        # The name of its server under the process manager.
        self.unit = f"{name}.{id}"
        self.config_dir = f"{ETC}/{name}/{id}"
        self.config_file = f"{self.config_dir}/{host.servers[self.server]['config']}"
        # nginx finds the sockets in runtime_dir, which is root's. The server makes them in server_dir, which is the
        # app's. In the first layout, both were one folder.
        self.runtime_dir = f"{RUN}/{name}/{id}"
        self.server_dir = f"{self.runtime_dir}.own" if record.get("layout") else self.runtime_dir
        self.sockets = _sockets(self.runtime_dir, record)
        self.server_sockets = _sockets(self.server_dir, record)
        # nginx can't see what a socket speaks: these files tell it.
        self.markers = [f"{self.runtime_dir}/{marker}" for marker in record.get("markers", [self.protocol])]
        # The link to the runtime_dir of the app's live generation.
        self.live_link = f"{LIB}/live/{name}"
        self.log = self.log_of()
        # The size of each log file before this generation: an earlier one with the same id wrote to the same file.
        self.log_offsets: dict[str, int] = {}
        # Touched when its logs were rotated.
        self.reopen_file = f"{self.runtime_dir}{'.' if record.get('layout') else '/'}reopen"
        self.server_program = self._server_program()
        self.processes = self._processes()
        self.jobs = self._jobs()

    @property
    def socket(self) -> str:
        """Return the path of its socket, or of the first of them."""
        return self.sockets[0]

    @property
    def version(self) -> tuple[int, ...]:
        """Return its server's version, as the numbers that it begins with; an empty tuple where it is not known."""
        return tuple(int(number) for number in re.findall(r"\d+", self.record.get("version") or "")[:3])

    @property
    def desired_id(self) -> str:
        """Return the ``desired_id`` that it was made for, or adopted as; see ``prepare.adopt``."""
        return self.record.get("desired_id") or self.id.partition("-")[0]

    @property
    def uid(self) -> int:
        """Return the numeric id of the user that runs it."""
        return pwd.getpwnam(self.user).pw_uid

    @property
    def gid(self) -> int:
        """Return the numeric id of that user's group."""
        return pwd.getpwnam(self.user).pw_gid

    @property
    def programs(self) -> list[Program]:
        """Return its server and the processes beside it."""
        return [self.server_program, *self.processes]

    @property
    def parts(self) -> list[Program | Job]:
        """Return all that is kept running for it: its programs and its scheduled commands."""
        return [*self.programs, *self.jobs]

    @property
    def pids(self) -> list[int]:
        """Return the PIDs of its server's master and of all its workers."""
        return process.descendants(self.server_program.pid)

    def log_of(self, name: str | None = None) -> str:
        """Return the path of its server's log, or of the one that the processes or the scheduled command of a name share."""
        return f"{LOG}/{self.name}/{'.'.join(filter(None, [self.id, name]))}.log"

    def log_tail(self, lines: int = 15, log: str | None = None) -> str:
        """Return the last lines of its server's log, or of another one, without the values of the app's environment."""
        return tail(self._logged(log or self.log), lines)

    def failure(self, log: str) -> str:
        """Return what one of its logs tells of a failure, without the values of the app's environment."""
        return failure_excerpt(self._logged(log, self.log_offsets.get(log, 0)), FAILURE_LINES)

    def _logged(self, log: str, offset: int = 0) -> str:
        unit_processes.wait_for_log(log)
        text = ""
        with contextlib.suppress(FileNotFoundError), open(log, "rb") as file:
            file.seek(offset)
            text = file.read().decode(errors="replace")  # an app may write any bytes
        return redact(text, _values(files.read(f"{self.config_dir}/env") or ""))

    def write_record(self) -> None:
        """Write its record to the disk."""
        files.write(f"{self.config_dir}/generation.json", json.dumps(self.record, indent=1) + "\n", 0o600)

    def start(self) -> None:
        """Start its programs. Its scheduled commands wait for the traffic: see ``take_over_schedule``."""
        for program in self.programs:
            program.start()

    def wait_for_processes(self) -> None:
        """
        Wait until the processes beside its server have run for ``MIN_UPTIME``.

        Raises ``ProgramFailed`` for a program that has not. This comes after the server's health check: a uWSGI that
        is told to stop while it starts may take 30 s for it.
        """
        waiting = self.processes
        deadline = time.monotonic() + MIN_UPTIME + BOOT_TIME
        while waiting:
            check_running(self.programs)
            waiting = [program for program in waiting if process.uptime(program.pid) < MIN_UPTIME]
            if waiting and time.monotonic() >= deadline:
                raise ProgramFailed(f"{waiting[0].key} does not keep running.", waiting[0].log)
            time.sleep(0.1)

    def take_over_schedule(self, others: Iterable[Generation]) -> None:
        """Run its scheduled commands at their times from now on, and those of other generations no more."""
        for job in [job for other in others for job in other.jobs]:
            job.pause()
        for job in self.jobs:
            job.start()

    def stop(self) -> None:
        """Stop its programs and its scheduled commands, all at once, and remove them from their process managers."""
        with ThreadPoolExecutor(len(self.parts)) as pool:
            list(pool.map(lambda part: part.stop(), self.parts))

    def program_status(self) -> dict[str, Any]:
        """
        Return what runs beside its server.

        Returns a dict: ``processes``, names to lists of PIDs, with None for each that is down; and ``schedule``, names
        to ``Job.status``. Either is left out where there is none.
        """
        found: dict[str, Any] = {}
        for name in self.record["settings"].get("processes", {}):
            pids = [program.pid for program in self.processes if program.log == self.log_of(name)]
            found.setdefault("processes", {})[name] = pids
        for job in self.jobs:
            found.setdefault("schedule", {})[job.name] = job.status()
        return found

    def drift_reason(self) -> str | None:
        """
        Return what is wrong with it although it is the desired one, so that an equal one must replace it; or None.

        Returns a clause, for a state's comment.
        """
        if "damaged" in self.record:
            return "the record of the one before was damaged"
        # One at least: `spawn` replaces a worker that has just died.
        if not any(os.path.realpath(socket) in self.host.listening for socket in self.server_sockets):
            return "nothing listened on the socket of the one before"
        for marker in self.markers:
            if not os.path.isfile(marker):
                return f"{marker} was missing"
        for published, bound in zip(self.sockets, self.server_sockets):
            if not _is_published(published, bound):
                return f"{published} was not the socket of its server"
        for part in self.parts:
            if not part.starts_at_boot():
                return f"{part.description} would not have started after a reboot"
        for path, recorded in self.record["files"].items():
            if fingerprint(path) != recorded:
                return f"{path} was changed by hand"
        return None

    def _server_program(self) -> Program:
        row = self.host.servers[self.server]
        settings = self.record["settings"]
        stats = [row["stats"]] if settings.get("metrics") and row.get("stats") else []
        return Program(
            generation=self,
            manager=process_manager(self.host, self.record["process_manager"]),
            unit=self.unit,
            log=self.log,
            description=f"{self.name} under {self.server}",
            key=f"generation {self.id} under {self.server}",
            stop_timeout=settings["graceful_timeout"] + STOP_MARGIN,
            command=[],
            notify=row.get("notify", False),
            published=[*map(os.path.basename, self.sockets), *stats],
            publishes_on_request=bool(self.record.get("spawned")),
        )

    def _processes(self) -> list[Program]:
        settings, manager = self.record["settings"], self.record["process_manager"]
        return [
            Program(
                generation=self,
                manager=process_manager(self.host, BESIDE.get(manager, manager)),
                unit=f"{self.unit}.{name}.{number}",
                log=self.log_of(name),
                description=f"{self.name}'s {name} {number}",
                key=f"wsgi:apps:{self.name}:processes:{name}: number {number} of generation {self.id}",
                stop_timeout=own.get("graceful_timeout", settings["graceful_timeout"]),
                command=words_of(own["command"]),
            )
            # A record of before there were any has no such key.
            for name, own in settings.get("processes", {}).items()
            for number in range(1, own["count"] + 1)
        ]

    def _jobs(self) -> list[Job]:
        schedule = self.record["settings"].get("schedule", {})
        return [
            Job(self, name, words_of(own["command"]), own["calendar"], own["timeout"], self.log_of(name))
            for name, own in schedule.items()
        ]


def _sockets(folder: str, record: dict[str, Any]) -> list[str]:
    """Return the paths of a generation's sockets in one of its folders: one, or one for each worker."""
    numbers = [f"-{number}" for number in range(1, record.get("spawned", 0) + 1)] or [""]
    return [f"{folder}/{record['protocol']}{number}.sock" for number in numbers]


def _values(text: str) -> Iterator[str]:
    """Yield the values of an environment file, except for those that every machine has."""
    for assignment in shlex.split(text):
        name, _, value = assignment.partition("=")
        if name not in ("PATH", "HOME", "USER", "LOGNAME", "LANG"):
            yield value


def _is_published(published: str, bound: str) -> bool:
    """Return whether the socket that nginx finds is the one that the server has bound, or the latter is gone."""
    for _ in range(2):
        with contextlib.suppress(FileNotFoundError):
            found = os.lstat(published)
            if not stat.S_ISSOCK(found.st_mode):
                return False
            try:
                if os.path.samestat(found, os.stat(bound)):
                    return True
            except FileNotFoundError:
                return True
        time.sleep(0.1)  # a worker may just be replaced
    return False


def live_generation(host: Host, name: str) -> Generation | None:
    """Return the generation that receives an app's traffic, or None."""
    id = history.live_id(name)
    return load_generation(host, name, id) if id else None


def load_generation(host: Host, name: str, id: str) -> Generation | None:
    """
    Return a generation of an app from its record; where that is damaged or lost, from what runs under its name.

    Returns None where there is neither.
    """
    record = files.read_json(*history.record_of(name, id)) or derived_record(host, name, id)
    return Generation(host, name, id, record) if record else None


def generation_ids(name: str, keep: Generation | None = None) -> list[str]:
    """Return the ids of an app's generations on this machine, except for one."""
    return sorted(
        id
        for id in files.list_dir(f"{ETC}/{name}")
        if os.path.isdir(f"{ETC}/{name}/{id}") and not (keep and id == keep.id)
    )


def retire_generation(host: Host, name: str, id: str) -> None:
    """
    Stop a generation, and remove all of it but its release and its logs.

    name, id : str
        The app and the generation, whole or what a killed run has left of it.
    """
    generation = load_generation(host, name, id)
    if generation:
        generation.stop()
    files.remove(f"{TMPFILES}/wsgi-{name}.{id}.conf")
    for suffix in ("", ".own", ".reopen"):
        files.remove(f"{RUN}/{name}/{id}{suffix}")
    files.remove(f"{ETC}/{name}/{id}")
