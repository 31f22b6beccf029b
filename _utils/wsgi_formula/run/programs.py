"""
What belongs to a generation and runs: its server, the processes beside it, and the commands that
systemd runs at times.
"""

import contextlib
import os
import re
import shlex
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

from .. import files, process
from ..errors import WsgiError
from ..paths import LOG
from . import managers, processes
from .managers import MANAGERS
from .managers.base import BOOT_TIME, LAUNCH, WITH_ENVIRONMENT, systemctl
from .managers.circus import Circus
from .managers.emperor import VASSALS
from .managers.gaffer import Gaffer
from .managers.systemd import Systemd

# Seconds that a server is given beyond its graceful_timeout, which it keeps by itself; then its process
# manager kills it.
SERVER_MARGIN = 10

# Seconds that a process manager is given to do so.
STOP_MARGIN = 5

# For how long the processes beside a server must have been up before their generation goes live: a
# server answers its health check, and these answer nobody.
SETTLED = 1  # second

# Who keeps the processes beside a server, where that is not who keeps the server.
KEEPERS = {"emperor": "systemd"}


class Failed(WsgiError):
    """A program that does not come up; ``log`` is the file that tells why."""

    def __init__(self, sentence, log):
        super().__init__(sentence)
        self.log = log


@dataclass
class Program:
    """
    One process that a process manager keeps for a generation.

    generation : Generation
    manager : object
        From ``managers.manager_of``.
    unit : str
        Its name there.
    log : str
        The file that it writes to.
    description, key : str
        What to call it, and where pillar has it.
    stop_timeout : int
        Seconds that it gets to end, before its process manager kills it.
    command : list of str
        A server's is known while its generation is prepared.
    notify : bool
        Whether it tells systemd when it is up.
    published : list of str
        The names of its sockets that nginx is to find.
    asks : bool
        Whether it says itself when each of them is there.
    """

    generation: Any
    manager: Any
    unit: str
    log: str
    description: str
    key: str
    stop_timeout: int
    command: list
    notify: bool = False
    published: tuple = ()
    asks: bool = False

    @property
    def launch(self):
        """What its process manager is to start as root: the words that go before its command, which make it its user's."""
        generation = self.generation
        words = [LAUNCH, "--unit", self.unit, "--user", generation.user]
        words += ["--patience", str(self.stop_timeout)]
        if self.published:
            words += ["--own", generation.server_dir, "--into", generation.runtime_dir]
            words += [word for name in self.published for word in ("--publish", name)]
            words += ["--asked"] * self.asks
        return [*words, "--"]

    def files(self):
        """What its process manager needs of it, path to text."""
        return self.manager.files(self)

    def start(self):
        """Have its process manager start it, now and at boot."""
        self.manager.start(self)

    def stop(self):
        """Have its process manager stop it and forget it, and kill what is left of it then, whoever its parent is."""
        births = {pid: process.start_ticks(pid) for pid in process.descendants(self.pid)}
        with contextlib.suppress(OSError):  # its process manager is not running, nor is it then
            self.manager.stop(self.unit, self.stop_timeout + STOP_MARGIN)
        processes.kill_survivors(births)
        processes.wait_for_log(self.log)
        processes.kill_unit(self.unit, self.generation.user)

    def registered(self):
        """Whether it comes back by itself after a reboot."""
        return self.manager.registered(self.unit)

    @property
    def pid(self):
        """Its PID, or None."""
        return self.manager.pid(self.unit)


@dataclass
class Job:
    """
    A command that systemd runs at times for a generation, whatever keeps its server: a timer, which
    comes and goes with the traffic, and a service, which may finish after that.

    generation : Generation
    name : str
        Its key in ``schedule``.
    command : list of str
    calendar : str
        As ``systemd-analyze calendar`` takes it.
    timeout : int
        Seconds that it may take.
    """

    SERVICE: ClassVar = "systemd/job.service.jinja"
    TIMER: ClassVar = "systemd/job.timer.jinja"

    generation: Any
    name: str
    command: list
    calendar: str
    timeout: int

    def __post_init__(self):
        self.log = log_of(self.generation, self.name)
        self.description = f"{self.generation.name}'s {self.name}"
        self.service = f"wsgi-{self.generation.unit}.{self.name}.service"
        self.timer = f"wsgi-{self.generation.unit}.{self.name}.timer"
        self._link = f"{Systemd.SYSTEM}/timers.target.wants/{self.timer}"
        self._paths = {f"{Systemd.SYSTEM}/{self.service}": self.SERVICE, f"{Systemd.SYSTEM}/{self.timer}": self.TIMER}

    def files(self):
        """Its service and its timer, path to text."""
        command = Systemd.line([WITH_ENVIRONMENT, self.generation.config_dir, *self.command])
        render = self.generation.host.render
        return {path: render(template, job=self, command=command) for path, template in self._paths.items()}

    def start(self):
        """Have systemd run it at its times; from now on, and after a reboot."""
        files.replace_symlink(f"{Systemd.SYSTEM}/{self.timer}", self._link)
        systemctl("daemon-reload")
        systemctl("start", self.timer)

    def rest(self):
        """Have systemd start it no more. If it runs just now, it goes on."""
        files.remove(self._link)
        systemctl("stop", self.timer)

    def stop(self):
        """Let it finish, for as long as a request might take to; leave no trace of it."""
        self.rest()
        patience = self.generation.record["settings"]["graceful_timeout"]
        process.wait_until(lambda: self._shown()["ActiveState"] not in RUNNING, patience, pause=0.2)
        systemctl("stop", self.service)
        for path in self._paths:
            files.remove(path)
        systemctl("daemon-reload")
        systemctl("reset-failed", self.service)

    def registered(self):
        """Whether it is run after a reboot, too."""
        return os.path.islink(self._link)

    def status(self):
        """A dict: ``calendar``, ``next`` and ``last`` (local times, or None) and ``result``, systemd's word."""
        shown = self._shown()
        result = shown["Result"] if shown["ExecMainStartTimestamp"] else None
        return {
            "calendar": self.calendar,
            "next": _time(self._shown(self.timer, "NextElapseUSecRealtime")["NextElapseUSecRealtime"]),
            "last": _time(shown["ExecMainStartTimestamp"]),
            "result": "running" if shown["ActiveState"] in RUNNING else result,
        }

    def _shown(self, unit=None, properties="ActiveState,Result,ExecMainStartTimestamp"):
        shown = dict.fromkeys(properties.split(","), "")
        lines = systemctl("show", f"--property={properties}", unit or self.service).splitlines()
        return {**shown, **dict(line.split("=", 1) for line in lines)}


# Of a service that is `oneshot`.
RUNNING = ("activating", "deactivating")


def _time(text):
    """systemd's `Mon 2026-11-23 06:10:00 UTC` without the first and the last, None for `n/a`."""
    return " ".join(text.split()[1:3]) or None


def words(command):
    """
    A command as a list of words.

    command : str or list
        As pillar has it. No shell runs a str; it is split as one would.

    .. code-block:: python

        >>> words("celery -A shop worker --hostname 'worker 1'")
        ['celery', '-A', 'shop', 'worker', '--hostname', 'worker 1']
    """
    return shlex.split(command) if isinstance(command, str) else [str(word) for word in command]


def log_of(generation, name):
    """The file that all processes of one name, or a scheduled command, write to."""
    return f"{LOG}/{generation.name}/{generation.id}.{name}.log"


def programs_of(generation):
    """A generation's programs: its server, then the processes beside it. A list of ``Program``."""
    name, settings = generation.name, generation.record["settings"]
    manager = generation.record["process_manager"]
    server = Program(
        generation=generation,
        manager=managers.manager_of(generation.host, manager),
        unit=generation.unit,
        log=generation.log,
        description=f"{name} under {generation.server}",
        key=f"generation {generation.id} under {generation.server}",
        stop_timeout=settings["graceful_timeout"] + SERVER_MARGIN,
        command=[],
        notify=generation.host.servers[generation.server].get("notify", False),
        published=generation.published,
        asks=bool(generation.record.get("spawned")),
    )
    keeper = managers.manager_of(generation.host, KEEPERS[manager]) if manager in KEEPERS else server.manager
    return [
        server,
        *(
            Program(
                generation=generation,
                manager=keeper,
                unit=f"{generation.unit}.{process}.{number}",
                log=log_of(generation, process),
                description=f"{name}'s {process} {number}",
                key=f"wsgi:apps:{name}:processes:{process}: number {number} of generation {generation.id}",
                stop_timeout=said.get("graceful_timeout", settings["graceful_timeout"]),
                command=words(said["command"]),
            )
            # A generation from before there were any has no such key.
            for process, said in settings.get("processes", {}).items()
            for number in range(1, said["count"] + 1)
        ),
    ]


def jobs_of(generation):
    """The commands that systemd runs at times for a generation, a list of ``Job``."""
    return [
        Job(generation, name, words(said["command"]), said["calendar"], said["timeout"])
        for name, said in generation.record["settings"].get("schedule", {}).items()
    ]


def program_folders(host):
    """Where process managers look for what they are to run, name of the process manager to folder."""
    return {
        "emperor": VASSALS,
        "supervisor": host.family["supervisor"]["conf_dir"],
        "systemd": Systemd.SYSTEM,
        "circus": Circus.WATCHERS,
        "gaffer": Gaffer.JOBS,
    }


def known_programs(host, unit):
    """
    What process managers and systemd are to run under the name of a generation, whatever its record says.

    unit : str
        The generation's server, as process managers call it.

    Returns a dict as the record has it: ``process_manager``, ``processes`` and ``schedule``; or None where there
    is nothing.
    """
    program = re.compile(rf"(?:wsgi-)?{re.escape(unit)}(?:\.([^.]+)\.(\d+))?\.(?:ini|conf|service)")
    timer = re.compile(rf"wsgi-{re.escape(unit)}\.([^.]+)\.timer")
    found, processes, schedule = [], {}, {}
    for manager, folder in program_folders(host).items():
        for file in files.list_dir(folder):
            match = program.fullmatch(file)
            if match:
                found.append(manager)
                if match[1]:
                    process = processes.setdefault(match[1], {"command": "", "count": 0})
                    process["count"] = max(process["count"], int(match[2]))
            match = timer.fullmatch(file)
            if match:
                schedule[match[1]] = {"command": "", "calendar": "", "timeout": 0}
    if not found and not schedule:
        return None
    # The emperor comes first: systemd keeps the processes beside its servers.
    return {"process_manager": (found or ["systemd"])[0], "processes": processes, "schedule": schedule}


def managers_of(app):
    """The names of the process managers that an app makes use of, that of its server first."""
    return list(dict.fromkeys([*_keepers(app), *(["systemd"] if app["schedule"] else [])]))


def program_templates(app):
    """What an app's programs and jobs are rendered from: a generation's id changes with them."""
    found = [template for name in _keepers(app) for template in MANAGERS[name].templates]
    return [*found, *((Job.SERVICE, Job.TIMER) if app["schedule"] else ())]


def _keepers(app):
    manager = app["process_manager"]
    return [manager, *([KEEPERS[manager]] if app["processes"] and manager in KEEPERS else [])]


def check_programs(name, app):
    """
    Raise a ``WsgiError`` for times of an app's ``schedule`` that systemd, who alone knows, does not take.

    name : str
        The app.
    app : dict
        As ``Settings.apps`` holds it.
    """
    found = []
    for job, said in app["schedule"].items():
        done = subprocess.run(
            ["systemd-analyze", "calendar", "--", said["calendar"]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            found.append(
                f"wsgi:apps:{name}:schedule:{job}:calendar: {said['calendar']!r} is no time that systemd takes; "
                f"`systemd-analyze calendar` explains them: {' '.join(done.stdout.split())}"
            )
    if found:
        raise WsgiError("\n".join(found))


def start_programs(generation):
    """Start all of a generation's programs; its jobs wait for the traffic."""
    for program in generation.programs:
        program.start()


def check_running(programs):
    """Raise ``Failed`` for the first of some programs that will not come up."""
    for program in programs:
        failed = program.manager.failed(program.unit)
        if failed:
            raise Failed(f"{program.key} did not start: {failed}.", program.log)


def wait_until_settled(generation):
    """
    Wait until the processes beside a server have been up for a moment; raise ``Failed`` for one that
    has not. Comes after the server's own health check: a uWSGI that is told to stop while it starts
    may do so 30 s later.
    """
    waiting = generation.programs[1:]
    deadline = time.monotonic() + SETTLED + BOOT_TIME
    while waiting:
        check_running(generation.programs)
        waiting = [program for program in waiting if process.uptime(program.pid) < SETTLED]
        if waiting and time.monotonic() >= deadline:
            raise Failed(f"{waiting[0].key} has no process that stays.", waiting[0].log)
        time.sleep(0.1)


def hand_over_schedule(old, new):
    """
    Have scheduled commands run for a new generation, and for the one before no more.

    old : Generation or None
    new : Generation
    """
    for job in old.jobs if old else ():
        job.rest()
    for job in new.jobs:
        job.start()


def stop_programs(generation):
    """Stop all of a generation's programs and jobs, side by side, and leave no trace of them."""
    parts = generation.parts
    with ThreadPoolExecutor(len(parts)) as pool:
        list(pool.map(lambda part: part.stop(), parts))


def program_status(generation):
    """
    What runs beside a generation's server.

    Returns a dict: ``processes``, names to lists of PIDs, with None for one that is down, and
    ``schedule``, names to what ``Job.status`` says; neither where there is none.
    """
    found = {}
    for name in generation.record["settings"].get("processes", {}):
        units = [program for program in generation.programs[1:] if program.log == log_of(generation, name)]
        found.setdefault("processes", {})[name] = [program.pid for program in units]
    for job in generation.jobs:
        found.setdefault("schedule", {})[job.name] = job.status()
    return found
