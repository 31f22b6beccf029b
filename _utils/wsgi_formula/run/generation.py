"""
Generations: one release run by one server with one set of settings.
"""

import contextlib
import json
import os
import pwd
import re
import shlex
import stat
import subprocess
import time

from .. import files, process, untrusted
from ..app import history
from ..app.release import Release
from ..build.environment import Environment
from ..build.hooks import hook_variables
from ..errors import WsgiError
from ..paths import ETC, LIB, LOG, PATH, RUN, TMPFILES
from ..pillar.edge import METRICS_PORT
from ..pillar.schema import PLACEHOLDER
from ..pillar.servers import (
    PORTABLE_SETTINGS,
    health_host,
    long_options,
    process_settings,
    replaces_late,
    single_process,
    supported,
)
from ..redact import failure_excerpt, redact, tail
from . import processes
from .programs import jobs_of, known_programs, program_templates, programs_of, stop_programs

SPAWN = "/usr/local/lib/wsgi/spawn"

# Seconds beyond a request's time-out in which a worker must have accepted a connection that waits.
ACCEPT_SLACK = 15

# What of a server's row decides its process.
DECIDING = ("protocol", "spawned", "keepalive", "notify", "config", "command", "stats")

# What of a record says what the generation does, in records of every version of the formula.
DECIDED = (
    "server",
    "process_manager",
    "protocol",
    "user",
    "release",
    "environment",
    "spawned",
    "markers",
    "settings",
    "env",
)
# How a generation's folders below /run are laid out. In the first way, which records without a number have, there was
# one for all, and it was the app's.
LAYOUT = 2

# How much of its log tells why a generation failed: gunicorn adds a long traceback of its own.
FAILURE_LINES = 60


class Generation:
    """
    A generation on this machine, or one about to be.

    host : Host
    name : str
        The app.
    id : str
        The hash of what decides its process, and ``-2``, ``-3``, … where an equal one was
        there already.
    record : dict
        What is kept of it in ``generation.json``: all that is needed to report on it and to
        retire it, whatever pillar says by then.
    """

    def __init__(self, host, name, id, record):
        self.host = host
        self.name = name
        self.id = id
        self.record = record
        self.server = record["server"]
        self.protocol = record["protocol"]
        self.user = record["user"]
        self.release = record["release"]
        self.unit = f"{name}.{id}"
        self.config_dir = f"{ETC}/{name}/{id}"
        # Root's, in which nginx looks; and the app's, in which its server has its sockets.
        self.runtime_dir = f"{RUN}/{name}/{id}"
        self.server_dir = f"{self.runtime_dir}.own" if record.get("layout") else self.runtime_dir
        self.sockets = _sockets(self.runtime_dir, record)
        self.server_sockets = _sockets(self.server_dir, record)
        self.live_link = f"{LIB}/live/{name}"
        self.log = f"{LOG}/{name}/{id}.log"
        # They tell nginx, which can't see sockets, where to go.
        self.markers = [f"{self.runtime_dir}/{marker}" for marker in record.get("markers", [self.protocol])]
        self.log_offsets = {}  # how long its logs were before: equal ones had the same
        # touched when logs were rotated
        self.reopen_file = f"{self.runtime_dir}{'.' if record.get('layout') else '/'}reopen"
        self.code = Release(name, self.release).code
        self.environment = Environment(name, record["environment"])
        self.config_file = f"{self.config_dir}/{host.servers[self.server]['config']}"
        if "owed" in record:  # the key's name before version 1.0
            record["pending_hooks"] = record.pop("owed")
        # The names of before, until every template and every branch has the new ones.
        self.folder, self.run, self.own_dir = self.config_dir, self.runtime_dir, self.server_dir
        self.bound, self.live, self.config = self.server_sockets, self.live_link, self.config_file
        self.began, self.reopen = self.log_offsets, self.reopen_file
        self.programs = programs_of(self)
        self.jobs = jobs_of(self)

    @property
    def socket(self):
        """Its socket, or the first of them."""
        return self.sockets[0]

    @property
    def published(self):
        """The names of all its sockets that others than its own processes come to."""
        stats = self.record["settings"].get("metrics") and self.host.servers[self.server].get("stats")
        return [*map(os.path.basename, self.sockets), *([stats] if stats else [])]

    @property
    def version(self):
        """Its server's version: a tuple of the numbers that it begins with, empty where it is not known."""
        return tuple(int(number) for number in re.findall(r"\d+", self.record.get("version") or "")[:3])

    @property
    def hash(self):
        """The ``desired_id`` that it was made for, or adopted as; see ``adopt``."""
        return self.record.get("desired_id") or self.id.partition("-")[0]

    @property
    def uid(self):
        """The numeric id of the user that runs it."""
        return pwd.getpwnam(self.user).pw_uid

    @property
    def gid(self):
        """The numeric id of that user's group."""
        return pwd.getpwnam(self.user).pw_gid

    @property
    def parts(self):
        """All that is kept or run for it: its programs, its server first, and its jobs."""
        return [*self.programs, *self.jobs]

    @property
    def pids(self):
        """The PIDs of its master and of all its workers."""
        return process.descendants(self.programs[0].pid)

    def log_tail(self, lines=15, log=None):
        """The last lines of its server's log, or of another one, without the values of the app's environment."""
        return tail(self._said(log or self.log), lines)

    def failure(self, log):
        """What one of its logs tells of why it failed, without those values either."""
        return failure_excerpt(self._said(log, self.log_offsets.get(log, 0)), FAILURE_LINES)

    def _said(self, log, since=0):
        processes.wait_for_log(log)
        text = ""
        with contextlib.suppress(FileNotFoundError), open(log, "rb") as file:
            file.seek(since)
            text = file.read().decode(errors="replace")  # an app may write what it likes
        return redact(text, _values(files.read(f"{self.config_dir}/env") or ""))


def desired_id(host, app, release):
    """
    The id of the generation that an app's settings ask for, equal on every host.

    app : dict
        As ``Settings.apps`` holds it.
    release : Release

    Returns a str.
    """
    templates = [*_templates(host, app), *program_templates(app)]
    return files.digest(
        LAYOUT,
        release.id,
        process_settings(app),
        {key: value for key, value in host.servers[app["server"]].items() if key in DECIDING},
        _guards(host, app),
        [host.template_text(template) for template in templates],
    )


def _templates(host, app):
    """What a generation's own files are rendered from, template to file."""
    config = host.servers[app["server"]]["config"]
    files = {"common/wsgi_application.py.jinja": "wsgi_application.py"} if app["application"] else {}
    return {**files, **({f"{app['server']}/{config}.jinja": config} if config else {})}


def server_command(host, app, generation):
    """
    What starts an app's server.

    app : dict
        As ``Settings.apps`` holds it.
    generation : Generation

    Returns a list of words.
    """
    row = host.servers[app["server"]]
    spawned = single_process(app, host.servers)
    values = {
        "bin": "/usr/bin" if app["install"] == "distribution" else f"{generation.environment.path}/bin",
        "config": generation.config_file,
        "folder": generation.config_dir,
        "environment": generation.environment.path,
        "code": generation.code,
        "application": app["application"],
        "socket": "{socket}" if spawned else generation.server_sockets[0],
        **{setting: app[setting] for setting in PORTABLE_SETTINGS},
    }
    words = [_filled(str(word), values) for word in row["command"] or app["command"]]
    if not spawned:
        return words
    spawn = [SPAWN, "--workers", str(app["workers"]), "--link", f"{generation.server_dir}/{generation.protocol}"]
    spawn += ["--patience", str(app["graceful_timeout"])]
    if row.get("loads_late"):
        check = health_check_of(app)
        # Without a query, which may hold what no process list should.
        spawn += ["--health-path", check["path"].partition("?")[0], "--health-host", check["host"]]
    spawn += ["--accept-timeout", str(app["request_timeout"] + ACCEPT_SLACK)]
    if app["memory_limit"]:
        spawn += ["--memory-limit", str(app["memory_limit"])]
    return [*spawn, "--", *words]


def _guards(host, app):
    """The settings that the guard keeps for an app's server: a list of names."""
    honours = supported(app, host.servers)
    # Where no successor comes first, the server's own way to end a worn worker is as good, and safer.
    own = ("max_requests", "memory_limit") if replaces_late(app, host.servers) else ()
    return [name for name in PORTABLE_SETTINGS if honours.get(name) == "guard" and name not in own]


def _filled(word, values):
    return PLACEHOLDER.sub(lambda found: str(values.get(found[1], found[0])), word)


def _sockets(folder, record):
    """A generation's sockets in one of its folders: one, or one for each worker."""
    numbers = [f"-{number}" for number in range(1, record.get("spawned", 0) + 1)] or [""]
    return [f"{folder}/{record['protocol']}{number}.sock" for number in numbers]


def live_generation(host, name):
    """The generation that receives an app's traffic, or None."""
    id = history.live_id(name)
    return load_generation(host, name, id) if id else None


def load_generation(host, name, id):
    """
    A generation from its record; where that is damaged or lost, from what runs under its name. None where
    nothing does.
    """
    record = files.read_json(*history.record_of(name, id)) or _derived_record(host, name, id)
    return record and Generation(host, name, id, record)


def _derived_record(host, name, id):
    """As much of a generation's record as it takes to drain and to retire it; None where nothing of it runs."""
    known = known_programs(host, f"{name}.{id}")
    if not known:
        return None
    run = f"{RUN}/{name}/{id}"
    kept = history.kept_settings(name, id) or {"release": "", "settings": {}}
    app = {**host.settings.defaults, **host.settings.apps.get(name, {}), **kept["settings"]}
    sockets = re.findall(r"^(http|uwsgi)(-\d+)?\.sock$", "\n".join(files.list_dir(run)), re.MULTILINE)
    went_live = [each["generation"] for each in history.entries(name) if each["event"] != "failed"]
    server = app.get("server")
    return {
        "damaged": True,
        "layout": LAYOUT if os.path.isdir(f"{run}.own") else None,
        "went_live": id in [history.live_id(name), *went_live],
        "server": server if server in host.servers else next(iter(host.servers)),
        "process_manager": known["process_manager"],
        "protocol": sockets[0][0] if sockets else "http",
        "spawned": len([number for _, number in sockets if number]),
        "markers": [],
        "user": app.get("user") or f"wsgi-{name}",
        "release": kept["release"],
        "environment": Release(name, kept["release"]).record.get("environment", ""),
        "version": None,
        "check": {"path": "/", "host": "localhost", "status": 200},
        "files": {},
        "env": {},
        "settings": {
            **{setting: app[setting] for setting in ("workers", "request_timeout", "graceful_timeout")},
            "processes": known["processes"],
            "schedule": known["schedule"],
        },
    }


def generation_ids(host, name, keep=None):
    """The ids of an app's generations on this machine, but for one."""
    return sorted(
        id
        for id in files.list_dir(f"{ETC}/{name}")
        if os.path.isdir(f"{ETC}/{name}/{id}") and not (keep and id == keep.id)
    )


def adopt(current, id, app, release):
    """
    Keep a live generation that a formula before version 1.0 made, where it does what is desired.

    Its programs were rendered from other templates, which did the same; that alone has changed its id.

    current : Generation
    id : str
        From ``desired_id``.
    app : dict
        As ``Settings.apps`` holds it.
    release : Release
    """
    record = current.record
    if "desired_id" in record or record.get("layout") != LAYOUT:
        return
    desired = new_record(current.host, app, release, record.get("version"))
    if all(record.get(key) == desired[key] for key in DECIDED):
        record["desired_id"] = id
        if not current.host.opts.get("test"):
            write_record(current)


def replacement_reason(host, current, id):
    """
    Why an app's live generation must give way to one with this id, or None.

    current : Generation or None
    id : str
        From ``wanted_id``.

    Returns a sentence's end.
    """
    if current is None:
        return "none was live"
    if current.hash != id:
        return "another one is asked for"
    return drift_reason(host, current)


def drift_reason(host, generation):
    """
    What is wrong with a live generation that should be left alone, or None.

    Returns a sentence: it must be replaced by an equal one.
    """
    if "damaged" in generation.record:
        return "its record was damaged"
    # One at least: a worker that has just died is `spawn`'s to bring back.
    if not any(os.path.realpath(socket) in host.listening for socket in generation.server_sockets):
        return "nothing listens on its socket"
    for marker in generation.markers:
        if not os.path.isfile(marker):
            return f"{marker} is not there"
    for shown, bound in zip(generation.sockets, generation.server_sockets):
        if not _leads_to(shown, bound):
            return f"{shown} does not lead to its server"
    for part in generation.parts:
        if not part.registered():
            return f"{part.description} was not to come back after a reboot"
    for path, known in generation.record["files"].items():
        if fingerprint(path) != known:
            return f"{path} was changed by hand"
    return None


def _leads_to(shown, bound):
    """Return whether nginx's link is the socket in the server's own folder, or that socket's file is gone."""
    for _ in range(2):
        with contextlib.suppress(FileNotFoundError):
            found = os.lstat(shown)
            if not stat.S_ISSOCK(found.st_mode):
                return False
            try:
                if os.path.samestat(found, os.stat(bound)):
                    return True
            except FileNotFoundError:
                return True
        time.sleep(0.1)  # a worker is being replaced, perhaps
    return False


def retire_generation(host, name, id):
    """
    Stop a generation and take away all of it but its release and its log.

    name, id : str
        The app and the generation, whole or the remains of one whose change was cut off.
    """
    generation = load_generation(host, name, id)
    unit = f"{name}.{id}"
    if generation:
        stop_programs(generation)
    files.remove(f"{TMPFILES}/wsgi-{unit}.conf")
    for path in ("", ".own", ".reopen"):
        files.remove(f"{RUN}/{name}/{id}{path}")
    files.remove(f"{ETC}/{name}/{id}")


def _version(host, app, release):
    """The server's version: what pip installed, or what the distribution's says of itself."""
    row = host.servers[app["server"]]
    if app["install"] == "environment":
        return release.environment.installed(row["package"]) if row["package"] else None
    command, user = row["show_version"], app["user"]
    account = pwd.getpwnam(user)
    done = subprocess.run(
        command,
        user=account.pw_uid,
        group=account.pw_gid,
        extra_groups=[],
        cwd="/",
        env={"PATH": PATH, "HOME": "/nonexistent"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    found = re.search(r"\d[\w.+-]*", done.stdout)
    if done.returncode or not found:
        raise WsgiError(f"{' '.join(command)} failed:\n{tail(done.stdout)}")
    return found.group()


def free_id(name, id):
    """The id, counted up where an equal generation is there."""
    found, count = id, 1
    while os.path.lexists(f"{ETC}/{name}/{found}"):
        count += 1
        found = f"{id}-{count}"
    return found


def new_record(host, app, release, version):
    """
    What is kept of a generation.

    app : dict
        As ``Settings.apps`` holds it.
    release : Release
    version : str or None
        The server's.

    Returns a dict for ``Generation``, without a secret in it.
    """
    recorded = settings_record(app)
    return {
        "layout": LAYOUT,
        "server": app["server"],
        "process_manager": app["process_manager"],
        "protocol": host.servers[app["server"]]["protocol"],
        "user": app["user"],
        "release": release.id,
        "environment": release.environment.id,
        "version": version,
        "spawned": app["workers"] if single_process(app, host.servers) else 0,
        "markers": _markers(app, host.servers),
        "check": health_check_of(app),
        "pending_hooks": ["after_live"] if app["hooks"]["after_live"] else [],
        "settings": {k: v for k, v in recorded.items() if k != "env"},
        "env": recorded["env"],
    }


def generation_files(generation, app):
    """
    What a generation is made of, but for its record.

    app : dict
        As ``Settings.apps`` holds it.

    Returns a dict of paths to texts.
    """
    host = generation.host
    generation.programs[0].command = server_command(host, app, generation)
    options = process_settings(app)["server_options"]
    values = {
        "app": app,
        "generation": generation,
        "options": options,
        "long_options": long_options(options),
        "guards": _guards(host, app),
        "metrics_port": METRICS_PORT,
    }
    return {
        f"{generation.config_dir}/env": environment_text(generation, app),
        **{
            f"{generation.config_dir}/{file}": host.render(template, **values)
            for template, file in _templates(host, app).items()
        },
        f"{TMPFILES}/wsgi-{generation.unit}.conf": _tmpfiles(generation),
        **{path: text for part in generation.parts for path, text in part.files().items()},
    }


def prepare_generation(host, name, app, release, id):
    """Write down all that a generation is made of; nothing runs yet."""
    record = new_record(host, app, release, _version(host, app, release))
    record["desired_id"] = id.partition("-")[0]
    new = Generation(host, name, id, record)
    uid, gid = new.uid, new.gid
    texts = generation_files(new, app)
    files.ensure_dir(f"{ETC}/{name}", 0o755)
    files.ensure_dir(new.config_dir, 0o750, 0, gid)
    # First of all, so that whatever a killed run leaves can be retired by the next.
    write_record(new)
    for path, text in texts.items():
        ours = path.startswith(new.config_dir)
        files.write(path, text, 0o640 if ours else 0o644, 0, gid if ours else 0)
    new.record["files"] = {path: fingerprint(path) for path in texts}
    write_record(new)
    files.ensure_dir(LOG, 0o755)
    files.ensure_dir(f"{LOG}/{name}", 0o750, 0, gid)
    # Root's folder, so no link can be planted there; the files are its own, to be written to.
    for log in {part.log for part in new.parts}:
        if not os.path.exists(log):
            files.write(log, "", 0o640)
        os.chown(log, uid, gid)
        new.log_offsets[log] = os.path.getsize(log)
    for path, mode, owner, group in _folders(new):
        files.ensure_dir(path, mode, owner, group)
    for path in (*new.markers, new.reopen_file):
        files.write(path, "", 0o644)
    return new


def _markers(app, servers):
    """The names of the files that tell nginx which upstream to ask, and how."""
    row = servers[app["server"]]
    upstream = "workers" if single_process(app, servers) else row["protocol"]
    return [upstream, *(["keepalive"] if app["interface"] in row.get("keepalive", []) else [])]


def settings_record(app):
    """An app's process settings as a generation remembers them: of the environment, no value."""
    settings = process_settings(app)
    settings["env"] = {name: files.digest(str(value)) for name, value in app["env"].items()}
    return settings


def _folders(generation):
    """The folders below /run, parents first. No app may write where nginx looks, nor look where another app may write."""
    nginx = _gid_of(generation.host.family["nginx"]["user"])
    return (
        (RUN, 0o755, 0, 0),
        (f"{RUN}/{generation.name}", 0o755, 0, 0),
        (generation.runtime_dir, 0o750, 0, nginx),
        (generation.server_dir, 0o700, generation.uid, generation.gid),
    )


def _tmpfiles(generation):
    """What makes the folders below /run again after a reboot."""
    lines = [f"d {path} {mode:04o} {uid} {gid} -\n" for path, mode, uid, gid in _folders(generation)]
    lines += [f"f {path} 0644 root root -\n" for path in (*generation.markers, generation.reopen_file)]
    return "".join(lines)


def environment_text(generation, app):
    """The app's environment as a file that a shell can read."""
    variables = hook_variables(generation.name, app, generation.environment)
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in variables.items())


def _values(text):
    """The values of an environment file, but for those that are on every machine."""
    for assignment in shlex.split(text):
        name, _, value = assignment.partition("=")
        if name not in ("PATH", "HOME", "USER", "LOGNAME", "LANG"):
            yield value


def health_check_of(app):
    """An app's health check, as a generation remembers it: ``path``, ``host`` and ``status``."""
    health = app["health"]
    return {"path": health["path"], "host": health_host(app), "status": health["status"]}


def _gid_of(user):
    return pwd.getpwnam(user).pw_gid


def write_record(generation):
    text = json.dumps(generation.record, indent=1) + "\n"
    files.write(f"{generation.config_dir}/generation.json", text, 0o600)


def fingerprint(path):
    """Owner, mode and contents of a file, or None where there is none."""
    try:
        found = os.lstat(path)
        return [found.st_uid, found.st_gid, found.st_mode, untrusted.sha256(path)]
    except FileNotFoundError:
        return None
