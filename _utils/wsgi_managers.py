"""
What keeps a generation's programs alive: one class per process manager, all with one interface.

A *unit* is a ``wsgi_programs.Program`` as its process manager knows it: a generation's server is
named ``<app>.<generation>``, the others ``<app>.<generation>.<name>.<number>``.
"""

import array
import configparser
import contextlib
import fcntl
import glob
import http.client
import json
import os
import pwd
import re
import shlex
import signal
import socket
import stat
import subprocess
import termios
import time
import xmlrpc.client

import wsgi_host

VASSALS = f"{wsgi_host.ETC}/vassals"
EMPEROR_STATS = f"{wsgi_host.RUN}/emperor.stats"
# Starts a program as its user, in a cgroup of its own, and has nginx find its sockets.
LAUNCH = "/usr/local/lib/wsgi/launch"
# What it marks the processes of a unit with, for those that are in no such cgroup.
MARK = "WSGI_UNIT"
CGROUPS = "/sys/fs/cgroup"
# Hands a program its environment.
WITH_ENVIRONMENT = "/usr/local/lib/wsgi/with-environment"
# Has what a program prints written to its log.
LOGGED = "/usr/local/lib/wsgi/logged"
APPEND = "/usr/local/lib/wsgi/append"
BOOT_TIME = 10  # seconds for a process manager to come up


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
        words = [*program.launch, WITH_ENVIRONMENT, program.generation.folder, program.command[0]]
        return {f"{program.generation.folder}/launch": f'exec {shlex.join(words)} "$@"\n'}

    def start(self, program):
        """Have the emperor start a vassal, at its next look (once a second)."""
        wait_until(lambda: os.path.exists(EMPEROR_STATS), BOOT_TIME)
        if self._stats().get("emperor_tyrant"):
            self._renew(program)
        wsgi_host.folder(VASSALS, 0o755)
        wsgi_host.link(program.generation.config, self._path(program.unit))

    def _renew(self, program):
        """An emperor that runs since before vassals were started as root would refuse each of them."""
        if self._vassals():
            raise wsgi_host.Problem(
                f"{program.key} can't start: the emperor still runs with an older /etc/wsgi/emperor.ini. "
                "Restart it, and the apps that it holds, when they may be away for a moment: "
                "systemctl restart wsgi-emperor; then apply again."
            )
        systemctl("restart", "wsgi-emperor")

    def stop(self, unit, patience):
        """Have the emperor stop a vassal, and wait until it has, at most ``patience`` seconds."""
        wsgi_host.remove(self._path(unit))
        # Its list and not the process: a vassal that failed may be on its way up again.
        wait_until(lambda: f"{unit}.ini" not in self._vassals(), patience, pause=0.1)

    def failed(self, unit):
        """Why a vassal that was just started will not come up, or None."""
        first = self._first_pids.get(unit)
        if first is None:
            pid = self.pid(unit)
            if pid:
                self._first_pids[unit] = pid
        # Looked at before the emperor starts it again, while the log still ends with the reason.
        elif not alive(first):
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


class _Daemon:
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
        return [*program.launch, *self._logged(program), WITH_ENVIRONMENT, program.generation.folder, *program.command]

    def files(self, program):
        """The unit's section, path to text."""
        section, command = self._section(program.unit), self.line(self._wrapped(program))
        text = self.host.render(self.templates[0], program=program, section=section, command=command)
        return {self._path(program.unit): text}

    def failed(self, unit):
        """Why a unit that was just started will not come up, or None."""
        first = self._first_pids.get(unit)
        return None if first and alive(first) else "its process ended"

    def registered(self, unit):
        """Whether the unit comes back by itself after a reboot."""
        return os.path.exists(self._path(unit))


class Supervisor(_Daemon):
    """The distribution's supervisord."""

    # Of https://supervisord.org/subprocess.html#process-states, those a start can't recover from.
    FAILED = ("BACKOFF", "EXITED", "FATAL")
    ALREADY_ADDED = 90  # http://supervisord.org/api.html
    templates = ("supervisor/program.conf.jinja",)

    def _path(self, unit):
        return f"{self.host.family['supervisor']['conf_dir']}/wsgi-{unit}.conf"

    @staticmethod
    def line(command):
        """
        A command as a program's section has it: it expands %, and a comment begins in quotes too. Before that it puts
        a folder in the place of %(here)s, whatever stands before it: quotes that end and begin keep that apart.
        """
        quoted = shlex.join(command).replace("%", "%%").replace("%(here)s", "%''(here)s")
        return re.sub(r"(?<=\s)(?=[;#])", "''", quoted)

    def start(self, program):
        """Have supervisord read the program's section, and start that program alone."""
        wait_until(self._answers, BOOT_TIME)
        with self._rpc() as rpc:
            rpc.supervisor.reloadConfig()
            try:
                rpc.supervisor.addProcessGroup(program.unit)
            except xmlrpc.client.Fault as fault:
                if fault.faultCode != self.ALREADY_ADDED:  # as it has where it has come up this moment
                    raise

    def stop(self, unit, patience):
        """Stop a program and take it away; supervisord waits its own stopwaitsecs and kills."""
        wsgi_host.remove(self._path(unit))
        with self._rpc(patience) as rpc:
            with contextlib.suppress(xmlrpc.client.Fault):  # it isn't known, or is stopped already
                rpc.supervisor.stopProcessGroup(unit)
            with contextlib.suppress(xmlrpc.client.Fault):
                rpc.supervisor.removeProcessGroup(unit)
            rpc.supervisor.reloadConfig()

    def failed(self, unit):
        """Why a program that was just started will not come up, or None."""
        info = self._info(unit)
        if info is None:
            return "supervisord does not know it"
        if info["statename"] in self.FAILED:
            return f"supervisord says {info['statename']}: {info['spawnerr'] or info['description']}"
        return None

    def pid(self, unit):
        """The PID of a program, or None."""
        info = self._info(unit)
        return (info and info["pid"]) or None

    def _answers(self):
        try:
            with self._rpc() as rpc:
                return bool(rpc.supervisor.getState())
        except (OSError, xmlrpc.client.Fault):
            return False

    def _info(self, unit):
        try:
            with self._rpc() as rpc:
                return rpc.supervisor.getProcessInfo(unit)
        except (OSError, xmlrpc.client.Fault):
            return None

    def _rpc(self, patience=10):
        transport = _UnixTransport(self.host.family["supervisor"]["socket"], patience)
        return xmlrpc.client.ServerProxy("http://localhost", transport=transport)


class _UnixTransport(xmlrpc.client.Transport):
    def __init__(self, path, timeout):
        super().__init__()
        self._path = path
        self._timeout = timeout

    def make_connection(self, host):
        connection = http.client.HTTPConnection(host, timeout=self._timeout)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(self._timeout)
        connection.sock.connect(self._path)
        return connection


class Systemd:
    """
    systemd itself, with two services for each unit: the program, and what writes its log.

    systemd would write to a log itself, but never open it anew when it was rotated.
    """

    SYSTEM = "/etc/systemd/system"
    templates = ("systemd/program.service.jinja", "systemd/log.service.jinja")

    def __init__(self, host):
        self.host = host

    @staticmethod
    def _services(unit):
        return f"wsgi-{unit}.service", f"wsgi-{unit}.log.service"

    @staticmethod
    def _link(unit):
        return f"{Systemd.SYSTEM}/multi-user.target.wants/wsgi-{unit}.service"

    @staticmethod
    def _pipe(unit):
        name, _, id = unit.partition(".")
        return f"{wsgi_host.RUN}/{name}/{id}.log"

    @staticmethod
    def _tmpfiles(unit):
        return f"{wsgi_host.TMPFILES}/wsgi-{unit}.log.conf"

    def files(self, program):
        """The two services, and what makes the pipe between them at boot, path to text."""
        generation, services, pipe = program.generation, self._services(program.unit), self._pipe(program.unit)
        units = {
            f"{self.SYSTEM}/{service}": self.host.render(
                template,
                program=program,
                command=self.line([*program.launch, WITH_ENVIRONMENT, generation.folder, *program.command]),
                pipe=pipe,
                log_service=services[1],
            )
            for service, template in zip(services, self.templates)
        }
        # In a folder of root's: systemd opens it as root.
        return {**units, self._tmpfiles(program.unit): f"p {pipe} 0600 {generation.uid} {generation.gid} -\n"}

    @staticmethod
    def line(command):
        """A command as a unit has it: it expands % and $."""
        for special in ("\\", '"'):
            command = [word.replace(special, f"\\{special}") for word in command]
        return " ".join(f'"{word}"' for word in command).replace("%", "%%").replace("$", "$$")

    def start(self, program):
        """Have systemd start the program's service, which wants that of its log; now, and at boot."""
        unit, generation = program.unit, program.generation
        service = self._services(unit)[0]
        wsgi_host.remove(self._pipe(unit))
        os.mkfifo(self._pipe(unit), 0o600)
        os.chown(self._pipe(unit), generation.uid, generation.gid)
        wsgi_host.link(f"{self.SYSTEM}/{service}", self._link(unit))
        systemctl("daemon-reload")
        systemctl("start", "--no-block", service)

    def stop(self, unit, patience):
        """Stop a program and then its log, which waits for the last line; leave no trace of them."""
        wsgi_host.remove(self._link(unit))
        systemctl("stop", *self._services(unit))
        units = [f"{self.SYSTEM}/{service}" for service in self._services(unit)]
        for path in (*units, self._tmpfiles(unit), self._pipe(unit)):
            wsgi_host.remove(path)
        systemctl("daemon-reload")
        systemctl("reset-failed", *self._services(unit))

    def failed(self, unit):
        """Why a unit that was just started will not come up, or None."""
        shown = self._shown(unit)
        if shown.get("LoadState") != "loaded":
            return f"systemd says {shown.get('LoadState', 'nothing')}"
        if shown["SubState"] in ("auto-restart", "failed") or shown["NRestarts"] != "0":
            return f"systemd says {shown['Result']}, status {shown['ExecMainStatus']}"
        return None

    def pid(self, unit):
        """The PID of a program, or None."""
        return int(self._shown(unit).get("MainPID", 0)) or None

    @staticmethod
    def registered(unit):
        """Whether the unit comes back by itself after a reboot."""
        return os.path.islink(Systemd._link(unit))

    def _shown(self, unit):
        properties = "LoadState,SubState,Result,NRestarts,ExecMainStatus,MainPID"
        shown = systemctl("show", f"--property={properties}", self._services(unit)[0])
        return dict(line.split("=", 1) for line in shown.splitlines())


class Circus(_Daemon):
    """A circus of the formula's own."""

    WATCHERS = f"{wsgi_host.ETC}/circus"
    ENDPOINT = f"{wsgi_host.RUN}/circus/endpoint"
    templates = ("circus/watcher.ini.jinja",)

    def _path(self, unit):
        return f"{self.WATCHERS}/{unit}.ini"

    def _logged(self, program):
        return [LOGGED, f"{program.generation.own_dir}/log", program.log]

    @staticmethod
    def line(command):
        """A command as a watcher has it: it expands $(circus.…), and a comment begins in quotes too."""
        return re.sub(r"(?<=\()(?=circus\.)|(?<=\s)(?=;)", "''", shlex.join(command), flags=re.IGNORECASE)

    def start(self, program):
        """Have circus run the watcher that its section tells of, which it reads itself at boot."""
        unit = program.unit
        _wait_for_its_socket(self.ENDPOINT, "wsgi-circus")
        section = configparser.RawConfigParser()
        section.read(self._path(unit))
        watcher = dict(section[f"watcher:{unit}"])
        command = {name: watcher.pop(name) for name in ("cmd", "args")}
        options = {name: int(value) if value.lstrip("-").isdigit() else value for name, value in watcher.items()}
        try:
            self._ask("add", name=unit, start=True, waiting=True, options=options, **command)
        except OSError as error:
            if "already exist" not in str(error):  # as it does where circus has come up this moment
                raise
        self._first_pids[unit] = self.pid(unit)

    def stop(self, unit, patience):
        """Have circus forget a watcher, and stop its program: circus would do nothing else meanwhile."""
        wsgi_host.remove(self._path(unit))
        pid = None

        def runs():
            nonlocal pid
            pid = self.pid(unit)
            return bool(pid) and alive(pid)

        # What has ended circus starts again meanwhile, and would leave running: it must stop that itself.
        self._ask("rm", patience, name=unit, nostop=runs, waiting=True)
        if pid and alive(pid):
            os.kill(pid, signal.SIGTERM)
            wait_until(lambda: not alive(pid), patience)

    def pid(self, unit):
        """The PID of a watcher's process, or None."""
        try:
            return next(iter(self._ask("list", name=unit)["pids"]), None)
        except OSError:
            return None

    def _ask(self, command, patience=10, **properties):
        """
        circus's answer; it refuses all but questions while it is busy. OSError when it says no. A property
        that can be called is, for each try.
        """
        deadline = time.monotonic() + patience
        while True:
            said = {name: value() if callable(value) else value for name, value in properties.items()}
            answer = self._answer({"command": command, "properties": said}, deadline - time.monotonic())
            if answer["status"] == "ok":
                return answer
            if "already running" not in answer["reason"] or time.monotonic() > deadline:
                raise OSError(f"circus refused to {command} {properties['name']}: {answer['reason']}")
            time.sleep(0.05)

    def _answer(self, question, patience):
        import zmq  # Salt's, and of no use to any other machine.

        if not os.path.exists(self.ENDPOINT):
            raise FileNotFoundError("circus is not running")
        with zmq.Context.instance().socket(zmq.DEALER) as channel:
            channel.linger = 0
            channel.connect(f"ipc://{self.ENDPOINT}")
            channel.send_json({**question, "id": "salt"})
            if not channel.poll(max(patience, 0) * 1000):
                raise TimeoutError("circus does not answer")
            return channel.recv_json()


class Gaffer(_Daemon):
    """A gaffer of the formula's own."""

    JOBS = f"{wsgi_host.ETC}/gaffer/jobs"
    API = f"{wsgi_host.RUN}/gaffer/api"
    templates = ("gaffer/job.ini.jinja",)

    def _path(self, unit):
        return f"{self.JOBS}/{unit}.ini"

    def _logged(self, program):
        return [LOGGED, f"{program.generation.own_dir}/log", program.log]

    @staticmethod
    def line(command):
        """A command as a job has it: it expands % and $, and a comment begins in quotes too."""
        quoted = shlex.join(command).replace("%", "%%").replace("$", "$$")
        return re.sub(r"(?<=\s)(?=;)", "''", quoted)

    def start(self, program):
        """Have gaffer run the job that its section tells of, which it reads itself at boot."""
        unit = program.unit
        _wait_for_its_socket(self.API, "wsgi-gaffer")
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
        wsgi_host.remove(self._path(unit))
        pid = self.pid(unit)
        self._ask("DELETE", self._job(unit))
        wait_until(lambda: not pid or not alive(pid), patience)

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


def _wait_for_its_socket(path, service):
    """A process manager that this run has started may not listen yet; one that has lost its socket never will."""
    if not wait_until(lambda: os.path.exists(path), BOOT_TIME):
        raise wsgi_host.Problem(
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


MANAGERS = {"emperor": Emperor, "supervisor": Supervisor, "systemd": Systemd, "circus": Circus, "gaffer": Gaffer}


def manager(host, name):
    """
    A process manager.

    host : wsgi_host.Host
    name : str
        A key of ``MANAGERS``.

    Returns an object with ``templates``, ``files`` and ``start``, which take a program, and ``stop``,
    ``failed``, ``pid`` and ``registered``, which take a unit.
    """
    return MANAGERS[name](host)


def processes(pid):
    """
    A process and all that descend from it.

    pid : int or None

    Returns a list of PIDs; an empty one for None, or where it is gone.
    """
    if not pid or not alive(pid):
        return []
    children = {}
    for each in wsgi_host.pids():
        fields = _stat(each)
        if fields:
            children.setdefault(int(fields[1]), []).append(each)
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return sorted(found)


def started(pid):
    """
    When a process began, in clock ticks since boot: with its PID, what tells it from any other.

    Returns an int, or None where it is gone.
    """
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def uptime(pid):
    """For how many seconds a process has run, a float; 0.0 where it is gone."""
    ticks = started(pid)
    if ticks is None:
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def alive(pid):
    """Whether a process is there and is no zombie."""
    fields = _stat(pid)
    return bool(fields) and fields[0] not in ("Z", "X")


def written(log, patience=5):
    """
    Wait until a log holds all that was said: `append` may be some lines behind.

    log : str
    patience : float
        Seconds.

    Returns whether it does.
    """
    return wait_until(lambda: not any(_reads(pid) for pid in _running(APPEND, log)), patience)


def _running(*words):
    """The PIDs of scripts whose command line ends in these words."""
    ending = "\0".join(["", *words, ""]).encode()
    for pid in wsgi_host.pids():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            if file.read().endswith(ending):
                yield pid


def _reads(pid):
    """Whether a process has something left to read from its standard input, a pipe, or is busy with it."""
    fields = _stat(pid)
    with contextlib.ExitStack() as opened:
        try:
            # An app may call a process of its own so, with anything as its input: it is only opened as a pipe.
            found = os.open(f"/proc/{pid}/fd/0", os.O_PATH)
            opened.callback(os.close, found)
            if not stat.S_ISFIFO(os.fstat(found).st_mode):
                return False
            pipe = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK)
            opened.callback(os.close, pipe)
        except OSError:
            return False
        left = array.array("i", [0])
        fcntl.ioctl(pipe, termios.FIONREAD, left)
        return left[0] > 0 or bool(fields and fields[0] == "R")


def memory(pids):
    """The resident memory of processes in bytes, what they share counted once in parts (PSS)."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as rollup:
            for line in rollup:
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def kill(births):
    """
    Kill what is left of processes, and no other that took over a PID.

    births : dict
        PIDs to what ``started`` said of them.
    """
    for process in births:
        wsgi_host.kill(process, lambda pid: started(pid) == births[pid])


def end(unit, user, patience=10):
    """
    Kill all processes of a unit: those in the cgroup that ``launch``, or systemd, made for it, and those of its user
    that have its mark, whoever their parent is by now.

    unit, user : str
    patience : float
        Seconds that it tries.
    """
    groups, mark, uid = {f"wsgi-{unit}", f"wsgi-{unit}.service"}, f"{MARK}={unit}".encode(), _uid(user)

    def belongs(pid):
        status = wsgi_host.status_of(pid)
        if str(uid).encode() not in status.get(b"Uid", b"").split():
            # The publisher is root's.
            return wsgi_host.is_of_this_machine(status) and _in_cgroup(pid, groups)
        return wsgi_host.is_local(pid, status) and (_in_cgroup(pid, groups) or _marked(pid, mark))

    def none_left():
        found = [pid for pid in wsgi_host.all_pids() if belongs(pid) and alive(pid)]
        for pid in found:
            wsgi_host.kill(pid, belongs)
        return not found

    wait_until(none_left, patience)
    for path in _cgroups(unit):
        with contextlib.suppress(OSError):  # the last process is still on its way out
            os.rmdir(path)


def _in_cgroup(pid, names):
    table = wsgi_host.read(f"/proc/{pid}/cgroup", errors="surrogateescape") or ""
    return any(names & {*line.partition("/")[2].split("/")} for line in table.splitlines())


def _marked(pid, mark):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as environ:
        return mark in environ.read().split(b"\0")
    return False


def _uid(user):
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        return None


def _cgroups(unit):
    """The cgroups that ``launch`` made for a unit, below those of the machine's services."""
    lines = (wsgi_host.read("/proc/1/cgroup") or "").splitlines()
    ours = [line.split(":", 2)[1:] for line in lines]
    roots = {path.replace("/init.scope", "").rstrip("/") for kind, path in ours if kind in ("", "name=systemd")}
    for mount in (CGROUPS, f"{CGROUPS}/systemd", f"{CGROUPS}/unified"):
        for root in roots:
            yield from glob.glob(f"{glob.escape(mount + root)}/*.slice/*.service/wsgi-{glob.escape(unit)}")


def wait_until(condition, patience, pause=0.05):
    """
    Wait for something to become true.

    condition : callable
    patience, pause : float
        Seconds: in all, and between two looks.

    Returns whether it did.
    """
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause)
    return True


def _stat(pid):
    """The fields of /proc/<pid>/stat from the state on, past the name in parentheses; None where it is gone."""
    try:
        # A process may call itself anything.
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
