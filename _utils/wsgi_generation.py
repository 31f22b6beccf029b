"""
Generations: one release run by one server with one set of settings, and the change from one
to the next, in which no request is lost.

``change`` tells the whole story; what each step does stands below it.
"""

import contextlib
import glob
import http.client
import json
import os
import pwd
import re
import secrets
import shlex
import stat
import subprocess
import time
from dataclasses import dataclass, field

import wsgi_environment
import wsgi_history
import wsgi_hooks
import wsgi_host
import wsgi_lock
import wsgi_maintenance
import wsgi_managers
import wsgi_nginx
import wsgi_probe
import wsgi_programs
import wsgi_release
import wsgi_schema_edge
import wsgi_settings
import wsgi_source_tree
import wsgi_static
import wsgi_step
import wsgi_wanted
from wsgi_host import ETC, LIB, LOG, RUN, TMPFILES, Problem
from wsgi_step import cause, tail

SPAWN = "/usr/local/lib/wsgi/spawn"
# Seconds beyond a request's time-out in which a worker must have accepted a connection that waits.
ACCEPT_SLACK = 15
# What of a server's row decides its process.
DECIDING = ("protocol", "spawned", "keepalive", "notify", "config", "command", "stats")
# How a generation's folders below /run are laid out. In the first way, which records without a number have, there was
# one for all, and it was the app's.
LAYOUT = 2
# Logs of retired generations that stay, for each app.
KEEP_LOGS = 10
# How much of its log tells why a generation failed: gunicorn adds a long traceback of its own.
FAILURE_LINES = 60


class Generation:
    """
    A generation on this machine, or one about to be.

    host : wsgi_host.Host
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
        self.folder = f"{ETC}/{name}/{id}"
        # Root's, in which nginx looks; and the app's, in which its server has its sockets.
        self.run = f"{RUN}/{name}/{id}"
        self.own_dir = f"{self.run}.own" if record.get("layout") else self.run
        self.sockets = _sockets(self.run, record)
        self.bound = _sockets(self.own_dir, record)
        self.live = f"{LIB}/live/{name}"
        self.log = f"{LOG}/{name}/{id}.log"
        # They tell nginx, which can't see sockets, where to go.
        self.markers = [f"{self.run}/{marker}" for marker in record.get("markers", [self.protocol])]
        self.began = {}  # how long its logs were before: equal ones had the same
        self.reopen = f"{self.run}{'.' if record.get('layout') else '/'}reopen"  # touched when logs were rotated
        self.code = wsgi_release.Release(name, self.release).code
        self.environment = wsgi_environment.Environment(name, record["environment"])
        self.config = f"{self.folder}/{host.servers[self.server]['config']}"
        self.programs = wsgi_programs.programs(self)
        self.jobs = wsgi_programs.jobs(self)

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
        """The id without the count of equals."""
        return self.id.partition("-")[0]

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
        return wsgi_managers.processes(self.programs[0].pid)

    def log_tail(self, lines=15, log=None):
        """The last lines of its server's log, or of another one, without the values of the app's environment."""
        return tail(self._said(log or self.log), lines)

    def failure(self, log):
        """What one of its logs tells of why it failed, without those values either."""
        return cause(self._said(log, self.began.get(log, 0)), FAILURE_LINES)

    def _said(self, log, since=0):
        wsgi_managers.written(log)
        text = ""
        with contextlib.suppress(FileNotFoundError), open(log, "rb") as file:
            file.seek(since)
            text = file.read().decode(errors="replace")  # an app may write what it likes
        return wsgi_step.strike(text, _values(wsgi_host.read(f"{self.folder}/env") or ""))


def wanted_id(host, app, release):
    """
    The id of the generation that an app's settings ask for, equal on every host.

    app : dict
        As ``wsgi_settings.Settings.apps`` holds it.
    release : wsgi_release.Release

    Returns a str.
    """
    sources = [*_sources(host, app), *wsgi_programs.templates(app)]
    return wsgi_host.digest(
        LAYOUT,
        release.id,
        wsgi_settings.process_settings(app),
        {key: value for key, value in host.servers[app["server"]].items() if key in DECIDING},
        _guards(host, app),
        [host.file_text(source) for source in sources],
    )


def _sources(host, app):
    """Return what a generation's own files are made from, source to file; one that is no template is copied."""
    if not app["application"]:
        return {}
    config = host.servers[app["server"]]["config"]
    own = config and f"{app['server']}/{config}"
    return {
        "common/wsgi_worker.py": "wsgi_worker.py",
        "common/wsgi_application.py": "wsgi_application.py",
        **({own if own.endswith(".py") else f"{own}.jinja": config} if own else {}),
    }


def command(host, app, generation):
    """
    What starts an app's server.

    app : dict
        As ``wsgi_settings.Settings.apps`` holds it.
    generation : Generation

    Returns a list of words.
    """
    row = host.servers[app["server"]]
    spawned = wsgi_settings.spawned(app, host.servers)
    values = {
        "bin": "/usr/bin" if app["install"] == "distribution" else f"{generation.environment.path}/bin",
        "config": generation.config,
        "folder": generation.folder,
        "environment": generation.environment.path,
        "code": generation.code,
        "application": app["application"],
        "socket": "{socket}" if spawned else generation.bound[0],
        **{setting: app[setting] for setting in wsgi_settings.NEUTRAL_SETTINGS},
    }
    words = [_filled(str(word), values) for word in row["command"] or app["command"]]
    if not spawned:
        return words
    spawn = [SPAWN, "--workers", str(app["workers"]), "--link", f"{generation.own_dir}/{generation.protocol}"]
    spawn += ["--patience", str(app["graceful_timeout"])]
    if row.get("loads_late"):
        check = check_of(app)
        # Without a query, which may hold what no process list should.
        spawn += ["--health-path", check["path"].partition("?")[0], "--health-host", check["host"]]
    spawn += ["--accept-timeout", str(app["request_timeout"] + ACCEPT_SLACK)]
    if app["memory_limit"]:
        spawn += ["--memory-limit", str(app["memory_limit"])]
    return [*spawn, "--", *words]


def _guards(host, app):
    """The settings that the guard keeps for an app's server: a list of names."""
    honours = wsgi_settings.honoured(app, host.servers)
    # Where no successor comes first, the server's own way to end a worn worker is as good, and safer.
    own = ("max_requests", "memory_limit") if wsgi_settings.replaces_late(app, host.servers) else ()
    return [name for name in wsgi_settings.NEUTRAL_SETTINGS if honours.get(name) == "guard" and name not in own]


def _filled(word, values):
    return wsgi_settings.PLACEHOLDER.sub(lambda found: str(values.get(found[1], found[0])), word)


def _sockets(folder, record):
    """A generation's sockets in one of its folders: one, or one for each worker."""
    numbers = [f"-{number}" for number in range(1, record.get("spawned", 0) + 1)] or [""]
    return [f"{folder}/{record['protocol']}{number}.sock" for number in numbers]


def live(host, name):
    """The generation that receives an app's traffic, or None."""
    id = wsgi_host.live_id(name)
    return load(host, name, id) if id else None


def load(host, name, id):
    """
    A generation from its record; where that is damaged or lost, from what runs under its name. None where
    nothing does.
    """
    record = wsgi_host.read_json(*wsgi_history.record_of(name, id)) or _derived_record(host, name, id)
    return record and Generation(host, name, id, record)


def _derived_record(host, name, id):
    """As much of a generation's record as it takes to drain and to retire it; None where nothing of it runs."""
    known = wsgi_programs.known(host, f"{name}.{id}")
    if not known:
        return None
    run = f"{RUN}/{name}/{id}"
    kept = wsgi_history.kept(name, id) or {"release": "", "settings": {}}
    app = {**host.settings.defaults, **host.settings.apps.get(name, {}), **kept["settings"]}
    sockets = re.findall(r"^(http|uwsgi)(-\d+)?\.sock$", "\n".join(wsgi_host.listdir(run)), re.MULTILINE)
    went_live = [each["generation"] for each in wsgi_history.entries(name) if each["event"] != "failed"]
    server = app.get("server")
    return {
        "damaged": True,
        "layout": LAYOUT if os.path.isdir(f"{run}.own") else None,
        "went_live": id in [wsgi_host.live_id(name), *went_live],
        "server": server if server in host.servers else next(iter(host.servers)),
        "process_manager": known["process_manager"],
        "protocol": sockets[0][0] if sockets else "http",
        "spawned": len([number for _, number in sockets if number]),
        "markers": [],
        "user": app.get("user") or f"wsgi-{name}",
        "release": kept["release"],
        "environment": wsgi_release.Release(name, kept["release"]).record.get("environment", ""),
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


def others(host, name, keep=None):
    """The ids of an app's generations on this machine, but for one."""
    return sorted(
        id
        for id in wsgi_host.listdir(f"{ETC}/{name}")
        if os.path.isdir(f"{ETC}/{name}/{id}") and not (keep and id == keep.id)
    )


def replacement(host, current, id):
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
    return wear(host, current)


def wear(host, generation):
    """
    What is wrong with a live generation that should be left alone, or None.

    Returns a sentence: it must be replaced by an equal one.
    """
    if "damaged" in generation.record:
        return "its record was damaged"
    # One at least: a worker that has just died is `spawn`'s to bring back.
    if not any(os.path.realpath(socket) in host.listening for socket in generation.bound):
        return "nothing listens on its socket"
    for marker in generation.markers:
        if not os.path.isfile(marker):
            return f"{marker} is not there"
    for shown, bound in zip(generation.sockets, generation.bound):
        if not _leads_to(shown, bound):
            return f"{shown} does not lead to its server"
    for part in generation.parts:
        if not part.registered():
            return f"{part.description} was not to come back after a reboot"
    for path, known in generation.record["files"].items():
        if _fingerprint(path) != known:
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


@dataclass
class Change:
    """
    What came of a change.

    generation
        The one that is live now.
    printed
        What the app's own commands printed, by command.
    failures
        What failed once it was too late to leave things as they were, sentences.
    """

    generation: Generation
    printed: dict = field(default_factory=dict)
    failures: list = field(default_factory=list)


def change(host, name, app, release, id, back_to=None, override=None):
    """
    Bring a new generation live, and retire those before it.

    app : dict
        Its settings, as ``wsgi_wanted.app`` gives them.
    release : wsgi_release.Release
        Built already.
    id : str
        From ``wanted_id``.
    back_to : str
        The generation that it is a rollback to.
    override : callable
        Takes the new generation's id, and returns what this machine says of the app instead of pillar from
        then on, as ``wsgi_wanted.in_force`` returns it. Without it, what was said stays.

    Returns a ``Change``. Raises ``Problem`` when it will not serve: then it is gone again, and the
    one before serves on.

    What is written down tells the truth at every instant, wherever a run is killed:

    1. *validate*: what an earlier run was killed in is settled first.
    2. *build*, 3. *start*, 4. *ready*: the new generation has a record, and nothing says that it was live.
       Killed until here, it never was, and the next run retires it: no ``before_retire``, no rollback to it.
    5. *live*: all that is to be true from now on is put into the new generation's record, as ``going_live``.
       Then the link is renamed: one step, before which nothing has changed, and after which everything has.
       ``settle`` then writes each thing where it belongs, and takes ``going_live`` from the record as the last
       step. Killed in between, the next run begins with that; ``wsgi_wanted.in_force`` and
       ``wsgi_history.entries`` read it as if it were done.
    6. *drain*, 7. *retire*: only now does the one before go. The next run finishes that, too.

    To go back for ``rollback_on_failure`` is another such change of the link, to a generation that runs already.
    """
    with wsgi_lock.locked(name, "a change"):
        old = recover(host, name)
        facts = {"release": release.id, "server": app["server"]}
        facts.update({fact: release.record.get(fact) for fact in ("source", "revision")})
        before = host.overrides_read.get(name, {})
        try:
            wsgi_wanted.check_unchanged(host, name)
            done = _start(host, name, app, release, id, back_to, facts, override)
        except (Problem, OSError) as error:
            with contextlib.suppress(OSError):  # the disk may be full, and that is what the error says
                wsgi_history.add(host, name, "failed", **facts, to=back_to, error=error)
            raise
        # The new generation is live: from here on a failure is reported, and does not fail the change.
        new = done.generation
        change_id = new.record["going_live"]["entry"]["change"]
        host.__dict__.pop("listening", None)
        done.failures += settle(new)
        if override:
            wsgi_wanted.read_again(host, name)
        if not finish(host, name, app, done) and app["rollback_on_failure"] and old:
            _go_back(old, done, before if override else None)
        finish_retiring(host, name, app, done)
        if done.failures:
            _attempt(done, wsgi_history.add_error, name, change_id, "\n".join(done.failures))
        return done


def _start(host, name, app, release, id, back_to, facts, override):
    """All of a change up to the moment when its generation is live, a ``Change``; or it is taken away again."""
    wsgi_nginx.check(host, name)
    wsgi_programs.check(name, app)
    wsgi_static.check(name, app, release)
    new = _prepare(host, name, app, release, _free_id(name, id))
    done = Change(new)
    try:
        _before_live(new, app, release, done)
        wsgi_programs.start(new)
        _ready(new, app)
        wsgi_static.build(host, name, app, release)
        wsgi_history.keep(name, new, app)
        event = "rollback" if back_to else "live"
        _go_live(new, event, override and override(new.id), **facts, to=back_to)
    except BaseException as error:
        if wsgi_host.live_id(name) == new.id:
            raise
        log = getattr(error, "log", new.log)
        said = new.failure(log)
        retire(host, name, new.id)
        if isinstance(error, (Problem, OSError)) and said:
            raise Problem(f"{error}\n{log} says:\n{said}") from error
        raise
    return done


def recover(host, name):
    """
    Settle what a run that was killed has left open of an app. Other generations are for ``finish_retiring``.

    Every run that touches an app calls it before it asks what is wanted of the app. With ``test=True`` nothing
    is written.

    Returns the generation that is live, or None. Raises ``Problem`` where something can't be written.
    """
    wsgi_wanted.in_force(host, name)
    current = live(host, name)
    stale = f"{LIB}/live/{name}.new"  # of a version of the formula that called a link so while it was made
    unsettled = current and "going_live" in current.record
    if host.opts.get("test") or not (unsettled or os.path.lexists(stale) or wsgi_wanted.is_damaged(name)):
        return current
    with wsgi_lock.locked(name, "what a run before left"):
        for path in (*wsgi_maintenance.shortcuts(f"{name}.new").values(), stale):
            wsgi_host.remove(path)
        wsgi_wanted.set_aside(name)
        current = live(host, name)
        failures = settle(current) if current else []
    if failures:
        raise Problem("\n".join(failures))
    return current


def settle(generation):
    """
    Write down what the change has brought that made a generation live: each thing where it belongs.

    Every step may be done again, and is, by the next run, until all have succeeded.

    Returns what failed, a list of sentences.
    """
    host, name, brought = generation.host, generation.name, generation.record.get("going_live")
    if not brought:
        return []
    done = Change(generation)
    generation.record["went_live"] = True
    _attempt(done, wsgi_maintenance.clear, name)
    _attempt(done, wsgi_history.settle, name)
    if "override" in brought:
        _attempt(done, wsgi_wanted.put, name, brought["override"])
    release = wsgi_release.Release(name, generation.release)
    if release.record:
        _attempt(done, release.remember, wsgi_host.group(f"{release.path}/release.json"), live=brought["at"])
    before = [load(host, name, id) for id in others(host, name, keep=generation)]
    for each in [each for each in before if each] or [None]:
        _attempt(done, wsgi_programs.hand_over, each, generation)
    if not done.failures:
        del generation.record["going_live"]
        if not _attempt(done, _write_record, generation):
            generation.record["going_live"] = brought
    return done.failures


def _attempt(done, function, *arguments, **named):
    """Do what comes too late to fail a change. Returns whether it succeeded; else ``done.failures`` tells."""
    try:
        function(*arguments, **named)
    except (Problem, OSError) as error:
        done.failures.append(str(error))
        return False
    return True


def _go_back(old, done, override):
    """
    Give the traffic back to the generation before a change, and take the new one away.

    override : dict or None
        As ``_go_live`` takes it.

    Raises ``Problem`` in any case, with what made the change fail.
    """
    host, name = old.host, old.name
    release = wsgi_release.Release(name, old.release)
    facts = {fact: release.record.get(fact) for fact in ("source", "revision")}
    facts.update({"release": old.release, "server": old.server, "to": old.id, "error": "\n".join(done.failures)})
    try:
        _go_live(old, "rollback", override, **facts)
    except (Problem, OSError) as error:
        why = f"rollback_on_failure: generation {old.id} did not get the traffic back: {error}"
        raise Problem("\n".join([*done.failures, why])) from error
    done.failures += settle(old)
    wsgi_wanted.read_again(host, name)
    _attempt(done, withdraw, host, name, done.generation, done)
    raise Problem("\n".join([*done.failures, "rollback_on_failure: it was live, and is gone again"]))


def finish_retiring(host, name, app, done):
    """
    Retire all generations of an app but the live one, and forget what there is no rollback to any more.

    app : dict
        Its settings, as ``wsgi_wanted.app`` gives them.
    done : Change
        What went wrong is added to it.
    """
    current = done.generation
    for before in others(host, name, keep=current):
        _attempt(done, withdraw, host, name, load(host, name, before) or before, done)
    _attempt(done, wsgi_maintenance.clear, name)
    _attempt(done, _prune, host, name, app, current)


def _prune(host, name, app, current):
    _prune_logs(name, keep=current)
    kept = wsgi_release.prune(name, app["keep_releases"], _in_use(host, name))
    pinned = wsgi_wanted.in_force(host, name).get("pinned")
    wsgi_history.forget(name, kept, app["keep_releases"], current.id, pinned)
    wsgi_static.prune(name)
    wsgi_host.sweep(
        TMPFILES,
        f"{ETC}/{name}",
        current.folder,
        wsgi_release.Release(name, current.release).path,
        f"{wsgi_history.HISTORY}/{name}",
        f"{LOG}/{name}",
        f"{LIB}/live",
        wsgi_maintenance.SHORTCUTS,
        *wsgi_programs.folders(host).values(),
        *glob.glob(f"{wsgi_managers.Systemd.SYSTEM}/*.wants"),
    )


def finish(host, name, app, done):
    """
    Run an app's after_live commands. As long as they have not all succeeded, the next run does so again.

    app : dict
        Its settings, as ``wsgi_wanted.app`` gives them.
    done : Change
        What they printed, and the first that failed, is added to it.

    Returns whether all have succeeded.
    """
    generation = done.generation
    release = wsgi_release.Release(name, generation.release)
    try:
        _run_hooks(generation, app, "after_live", release, done)
    except (Problem, OSError) as error:
        done.failures.append(str(error))
        return False
    if generation.record.pop("owed", None):
        _attempt(done, _write_record, generation)
    return True


def withdraw(host, name, generation, done):
    """
    Take an app's generation away that has no traffic any more, once its last request is answered.

    generation : Generation or str
        It, or the id of one of which only remains are there.
    done : Change
        What the app's before_retire commands printed, and what failed, is added to it. They are
        pillar's, in its code and with its environment.
    """
    if isinstance(generation, str):
        return retire(host, name, generation)
    _drain(generation)
    kept = wsgi_history.kept(name, generation.id)
    if kept and generation.record.get("went_live"):
        own = {"user": generation.user, **kept["settings"], "hooks": host.settings.apps[name]["hooks"]}
        try:
            _run_hooks(generation, own, "before_retire", wsgi_release.Release(name, generation.release), done)
        except (Problem, OSError) as error:
            done.failures.append(str(error))
    return retire(host, name, generation.id)


def _before_live(generation, app, release, done):
    """Run an app's before_live commands, those that are to run once per release only if they have not yet."""
    ran = release.record.get("ran", [])
    hooks = [hook for hook in app["hooks"]["before_live"] if hook["every"] == "change" or hook["command"] not in ran]
    for hook, printed in _hooks(generation, {**app, "hooks": {"before_live": hooks}}, "before_live", release):
        done.printed.update(printed)
        ran = [*ran, hook["command"]]
        release.remember(generation.gid, ran=ran)


def _run_hooks(generation, app, moment, release, done):
    for _, printed in _hooks(generation, app, moment, release):
        done.printed.update(printed)


def _hooks(generation, app, moment, release):
    return wsgi_hooks.run(generation.name, app, moment, release, generation.environment, generation.uid, generation.gid)


def _in_use(host, name):
    """The ids of the releases that some generation on this machine runs, or is to run."""
    found = {load(host, name, id) for id in others(host, name)}
    return {generation.release for generation in found if generation}


def retire(host, name, id):
    """
    Stop a generation and take away all of it but its release and its log.

    name, id : str
        The app and the generation, whole or the remains of one whose change was cut off.
    """
    generation = load(host, name, id)
    unit = f"{name}.{id}"
    if generation:
        wsgi_programs.stop(generation)
    wsgi_host.remove(f"{TMPFILES}/wsgi-{unit}.conf")
    for path in ("", ".own", ".reopen"):
        wsgi_host.remove(f"{RUN}/{name}/{id}{path}")
    wsgi_host.remove(f"{ETC}/{name}/{id}")


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
        env={"PATH": wsgi_host.PATH, "HOME": "/nonexistent"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    found = re.search(r"\d[\w.+-]*", done.stdout)
    if done.returncode or not found:
        raise Problem(f"{' '.join(command)} failed:\n{tail(done.stdout)}")
    return found.group()


def _free_id(name, id):
    """The id, counted up where an equal generation is there."""
    found, count = id, 1
    while os.path.lexists(f"{ETC}/{name}/{found}"):
        count += 1
        found = f"{id}-{count}"
    return found


def record_of(host, app, release, version):
    """
    What is kept of a generation.

    app : dict
        As ``wsgi_settings.Settings.apps`` holds it.
    release : wsgi_release.Release
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
        "spawned": app["workers"] if wsgi_settings.spawned(app, host.servers) else 0,
        "markers": _markers(app, host.servers),
        "check": check_of(app),
        "owed": ["after_live"] if app["hooks"]["after_live"] else [],
        "settings": {k: v for k, v in recorded.items() if k != "env"},
        "env": recorded["env"],
    }


def files_of(generation, app):
    """
    Return the files that a generation is made of, except for its record: a dict of paths to texts.

    app : dict
        As ``wsgi_settings.Settings.apps`` holds it.

    A server's template knows ``app``; ``generation``, its ``Generation``; ``options``, the app's ``server_options`` for
    that server; and ``guards``, the names of the settings that the guard keeps for it.
    """
    host = generation.host
    generation.programs[0].command = command(host, app, generation)
    values = {
        "app": app,
        "generation": generation,
        "options": wsgi_settings.process_settings(app)["server_options"],
        "guards": _guards(host, app),
    }
    sources = _sources(host, app)
    settings = {"settings.json": json.dumps(program_settings(generation, app), indent=1) + "\n"} if sources else {}
    made = {
        file: host.render(source, **values) if source.endswith(".jinja") else host.file_text(source)
        for source, file in sources.items()
    }
    return {
        f"{generation.folder}/env": environment_text(generation, app),
        **{f"{generation.folder}/{file}": text for file, text in {**settings, **made}.items()},
        f"{TMPFILES}/wsgi-{generation.unit}.conf": _tmpfiles(generation),
        **{path: text for part in generation.parts for path, text in part.files().items()},
    }


def program_settings(generation, app):
    """
    Return what the programs of a generation read from ``settings.json``, as ``wsgi/common/wsgi_worker.py`` explains it.

    app : dict
        As ``wsgi_settings.Settings.apps`` holds it.
    """
    host = generation.host
    options = wsgi_settings.process_settings(app)["server_options"]
    return {
        "app": generation.name,
        "unit": generation.unit,
        "server": app["server"],
        "interface": app["interface"],
        "application": app["application"],
        "code": generation.code,
        "environment": generation.environment.path,
        "socket": None if wsgi_settings.spawned(app, host.servers) else generation.bound[0],
        "own_dir": generation.own_dir,
        "runtime_dir": generation.run,
        "live_link": generation.live,
        **{setting: app[setting] for setting in wsgi_settings.NEUTRAL_SETTINGS},
        "guarded": [setting for setting in _guards(host, app) if app[setting]],
        "statsd": f"127.0.0.1:{wsgi_schema_edge.METRICS_PORT}" if app["metrics"] else None,
        "server_options": options,
        "option_words": wsgi_settings.long_options(options),
        "distribution": host.family.get(app["server"], {}),
    }


def _prepare(host, name, app, release, id):
    """Write down all that a generation is made of; nothing runs yet."""
    new = Generation(host, name, id, record_of(host, app, release, _version(host, app, release)))
    uid, gid = new.uid, new.gid
    texts = files_of(new, app)
    wsgi_host.folder(f"{ETC}/{name}", 0o755)
    wsgi_host.folder(new.folder, 0o750, 0, gid)
    # First of all, so that whatever a killed run leaves can be retired by the next.
    _write_record(new)
    for path, text in texts.items():
        ours = path.startswith(new.folder)
        wsgi_host.write(path, text, 0o640 if ours else 0o644, 0, gid if ours else 0)
    new.record["files"] = {path: _fingerprint(path) for path in texts}
    _write_record(new)
    wsgi_host.folder(LOG, 0o755)
    wsgi_host.folder(f"{LOG}/{name}", 0o750, 0, gid)
    # Root's folder, so no link can be planted there; the files are its own, to be written to.
    for log in {part.log for part in new.parts}:
        if not os.path.exists(log):
            wsgi_host.write(log, "", 0o640)
        os.chown(log, uid, gid)
        new.began[log] = os.path.getsize(log)
    for path, mode, owner, group in _folders(new):
        wsgi_host.folder(path, mode, owner, group)
    for path in (*new.markers, new.reopen):
        wsgi_host.write(path, "", 0o644)
    return new


def _markers(app, servers):
    """The names of the files that tell nginx which upstream to ask, and how."""
    row = servers[app["server"]]
    upstream = "workers" if wsgi_settings.spawned(app, servers) else row["protocol"]
    return [upstream, *(["keepalive"] if app["interface"] in row.get("keepalive", []) else [])]


def settings_record(app):
    """An app's process settings as a generation remembers them: of the environment, no value."""
    settings = wsgi_settings.process_settings(app)
    settings["env"] = {name: wsgi_host.digest(str(value)) for name, value in app["env"].items()}
    return settings


def _folders(generation):
    """The folders below /run, parents first. No app may write where nginx looks, nor look where another app may write."""
    nginx = _group_of(generation.host.family["nginx"]["user"])
    return (
        (RUN, 0o755, 0, 0),
        (f"{RUN}/{generation.name}", 0o755, 0, 0),
        (generation.run, 0o750, 0, nginx),
        (generation.own_dir, 0o700, generation.uid, generation.gid),
    )


def _tmpfiles(generation):
    """What makes the folders below /run again after a reboot."""
    lines = [f"d {path} {mode:04o} {uid} {gid} -\n" for path, mode, uid, gid in _folders(generation)]
    lines += [f"f {path} 0644 root root -\n" for path in (*generation.markers, generation.reopen)]
    return "".join(lines)


def environment_text(generation, app):
    """The app's environment as a file that a shell can read."""
    variables = wsgi_hooks.variables(generation.name, app, generation.environment)
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in variables.items())


def _values(text):
    """The values of an environment file, but for those that are on every machine."""
    for assignment in shlex.split(text):
        name, _, value = assignment.partition("=")
        if name not in ("PATH", "HOME", "USER", "LOGNAME", "LANG"):
            yield value


def check_of(app):
    """An app's health check, as a generation remembers it: ``path``, ``host`` and ``status``."""
    health = app["health"]
    return {"path": health["path"], "host": wsgi_settings.health_host(app), "status": health["status"]}


def _ready(generation, app):
    """Wait until the health check passes, or can't any more, or its deadline has come; then for the rest."""
    health = app["health"]
    host = wsgi_settings.health_host(app)
    deadline = time.monotonic() + health["deadline"]
    last = "nothing listened on its socket"
    waiting = list(generation.sockets)
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise Problem(
                f"generation {generation.id} under {generation.server} was not healthy within "
                f"{health['deadline']} s (wsgi:apps:{generation.name}:health): {last}."
            )
        wsgi_programs.watch(generation.programs[:1])
        # One after the other, so that each has passed once.
        while waiting and os.path.exists(waiting[0]):
            try:
                status = wsgi_probe.status(generation.protocol, waiting[0], health["path"], host, min(left, 10))
            except (OSError, http.client.HTTPException) as error:
                last = f"GET {health['path']}: {error or type(error).__name__}"
                break
            if status != health["status"]:
                last = f"GET {health['path']} answered {status} instead of {health['status']}"
                break
            waiting.pop(0)
        if not waiting:
            return wsgi_programs.settle(generation)
        time.sleep(0.1)


def _go_live(generation, event, override, **facts):
    """
    Move the traffic by one rename: nginx follows the link at every connect. What that means is written down first.

    event, facts
        As ``wsgi_history.entry`` takes them.
    override : dict or None
        What this machine says instead of pillar from then on, empty for nothing; None where that stays.
    """
    host, name = generation.host, generation.name
    # Before the first page that names them; those of the generation before it are there still.
    wsgi_static.publish(host, name, host.settings.apps[name], wsgi_release.Release(name, generation.release))
    change = {"generation": generation.id, "change": secrets.token_hex(8)}
    brought = {"at": time.time(), "entry": wsgi_history.entry(host, event, **change, **facts)}
    if override is not None:
        brought["override"] = wsgi_wanted.dated(host, override)
    generation.record["going_live"] = brought
    _write_record(generation)
    for folder in (LIB, f"{LIB}/live"):
        wsgi_host.folder(folder, 0o755)
    wsgi_maintenance.block(name)
    try:
        wsgi_host.link(generation.run, generation.live)
    except OSError:
        wsgi_maintenance.clear(name)
        raise


def _drain(generation):
    """Wait until nothing is connected to a generation that is live no more."""
    wsgi_managers.wait_until(
        lambda: wsgi_probe.connections(generation.own_dir) == 0,
        generation.record["settings"]["graceful_timeout"],
    )


def _prune_logs(name, keep):
    logs = [f"{LOG}/{name}/{log}" for log in wsgi_host.listdir(f"{LOG}/{name}")]
    logs.sort(key=os.path.getmtime, reverse=True)
    kept = {}
    for log in logs:
        id = re.match(r"[^.]+", os.path.basename(log)).group()
        if id == keep.id or id in kept or len(kept) < KEEP_LOGS:
            kept[id] = True
        else:
            wsgi_host.remove(log)


def leave(host, name):
    """
    Take an app off this machine, its site first: its traffic ends, then its processes.

    Code, logs and its home folder stay.
    """
    with wsgi_lock.locked(name, "its removal"):
        wsgi_nginx.withdraw(host, name)
        last = live(host, name)
        if last:
            _drain(last)
        wsgi_host.remove(f"{LIB}/live/{name}")
        wsgi_host.remove(f"{LIB}/live/{name}.new")
        for id in others(host, name):
            retire(host, name, id)
        wsgi_host.remove(f"{RUN}/{name}")


def _group_of(user):
    return pwd.getpwnam(user).pw_gid


def _write_record(generation):
    text = json.dumps(generation.record, indent=1) + "\n"
    wsgi_host.write(f"{generation.folder}/generation.json", text, 0o600)


def _fingerprint(path):
    """Owner, mode and contents of a file, or None where there is none."""
    try:
        found = os.lstat(path)
        return [found.st_uid, found.st_gid, found.st_mode, wsgi_source_tree.sha256(path)]
    except FileNotFoundError:
        return None
