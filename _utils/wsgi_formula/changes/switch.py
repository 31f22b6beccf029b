"""
The switch: the change from one generation of an app to the next, in which no request is lost.
"""

import contextlib
import glob
import http.client
import os
import re
import secrets
import time
from dataclasses import dataclass, field

from .. import files, process
from ..app import history
from ..app.history import HISTORY
from ..app.override import (
    active_override,
    check_override_unchanged,
    dated_override,
    forget_cached,
    is_override_damaged,
    set_override_aside,
    write_override,
)
from ..app.release import Release, prune_releases
from ..build.hooks import run_hooks
from ..edge import maintenance, static
from ..edge.maintenance import FAST_PATHS
from ..edge.nginx import Nginx
from ..errors import Problem
from ..lock import app_lock
from ..paths import ETC, LIB, LOG, TMPFILES
from ..pillar.servers import health_host
from ..run import probe
from ..run.generation import (
    Generation,
    free_id,
    generation_ids,
    live_generation,
    load_generation,
    prepare_generation,
    retire_generation,
    write_record,
)
from ..run.managers.systemd import Systemd
from ..run.programs import (
    check_programs,
    check_running,
    hand_over_schedule,
    program_folders,
    start_programs,
    wait_until_settled,
)

# Logs of retired generations that stay, for each app.
KEEP_LOGS = 10


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
        Its settings, as ``desired_app`` gives them.
    release : Release
        Built already.
    id : str
        From ``wanted_id``.
    back_to : str
        The generation that it is a rollback to.
    override : callable
        Takes the new generation's id, and returns what this machine says of the app instead of pillar from
        then on, as ``active_override`` returns it. Without it, what was said stays.

    Returns a ``Change``. Raises ``Problem`` when it will not serve: then it is gone again, and the
    one before serves on.

    What is written down tells the truth at every instant, wherever a run is killed:

    1. *validate*: what an earlier run was killed in is settled first.
    2. *build*, 3. *start*, 4. *ready*: the new generation has a record, and nothing says that it was live.
       Killed until here, it never was, and the next run retires it: no ``before_retire``, no rollback to it.
    5. *live*: all that is to be true from now on is put into the new generation's record, as ``going_live``.
       Then the link is renamed: one step, before which nothing has changed, and after which everything has.
       ``settle`` then writes each thing where it belongs, and takes ``going_live`` from the record as the last
       step. Killed in between, the next run begins with that; ``active_override`` and
       ``history.entries`` read it as if it were done.
    6. *drain*, 7. *retire*: only now does the one before go. The next run finishes that, too.

    To go back for ``rollback_on_failure`` is another such change of the link, to a generation that runs already.
    """
    with app_lock(name, "a change"):
        old = recover(host, name)
        facts = {"release": release.id, "server": app["server"]}
        facts.update({fact: release.record.get(fact) for fact in ("source", "revision")})
        before = host.overrides_read.get(name, {})
        try:
            check_override_unchanged(host, name)
            done = _start(host, name, app, release, id, back_to, facts, override)
        except (Problem, OSError) as error:
            with contextlib.suppress(OSError):  # the disk may be full, and that is what the error says
                history.add(host, name, "failed", **facts, to=back_to, error=error)
            raise
        # The new generation is live: from here on a failure is reported, and does not fail the change.
        new = done.generation
        change_id = new.record["going_live"]["entry"]["change"]
        host.__dict__.pop("listening", None)
        done.failures += settle(new)
        if override:
            forget_cached(host, name)
        if not finish(host, name, app, done) and app["rollback_on_failure"] and old:
            _go_back(old, done, before if override else None)
        finish_retiring(host, name, app, done)
        if done.failures:
            _attempt(done, history.add_error, name, change_id, "\n".join(done.failures))
        return done


def _start(host, name, app, release, id, back_to, facts, override):
    """All of a change up to the moment when its generation is live, a ``Change``; or it is taken away again."""
    host.once(Nginx).check(name)
    check_programs(name, app)
    static.check(name, app, release)
    new = prepare_generation(host, name, app, release, free_id(name, id))
    done = Change(new)
    try:
        _before_live(new, app, release, done)
        start_programs(new)
        _ready(new, app)
        static.build(host, name, app, release)
        history.keep_settings(name, new, app)
        event = "rollback" if back_to else "live"
        _go_live(new, event, override and override(new.id), **facts, to=back_to)
    except BaseException as error:
        if history.live_id(name) == new.id:
            raise
        log = getattr(error, "log", new.log)
        said = new.failure(log)
        retire_generation(host, name, new.id)
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
    active_override(host, name)
    current = live_generation(host, name)
    stale = f"{LIB}/live/{name}.new"  # of a version of the formula that called a link so while it was made
    unsettled = current and "going_live" in current.record
    if host.opts.get("test") or not (unsettled or os.path.lexists(stale) or is_override_damaged(name)):
        return current
    with app_lock(name, "what a run before left"):
        for path in (*maintenance.fast_paths(f"{name}.new").values(), stale):
            files.remove(path)
        set_override_aside(name)
        current = live_generation(host, name)
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
    _attempt(done, maintenance.enable_fast_path, name)
    _attempt(done, history.settle, name)
    if "override" in brought:
        _attempt(done, write_override, name, brought["override"])
    release = Release(name, generation.release)
    if release.record:
        _attempt(done, release.remember, files.group_of(f"{release.path}/release.json"), live=brought["at"])
    before = [load_generation(host, name, id) for id in generation_ids(host, name, keep=generation)]
    for each in [each for each in before if each] or [None]:
        _attempt(done, hand_over_schedule, each, generation)
    if not done.failures:
        del generation.record["going_live"]
        if not _attempt(done, write_record, generation):
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
    release = Release(name, old.release)
    facts = {fact: release.record.get(fact) for fact in ("source", "revision")}
    facts.update({"release": old.release, "server": old.server, "to": old.id, "error": "\n".join(done.failures)})
    try:
        _go_live(old, "rollback", override, **facts)
    except (Problem, OSError) as error:
        why = f"rollback_on_failure: generation {old.id} did not get the traffic back: {error}"
        raise Problem("\n".join([*done.failures, why])) from error
    done.failures += settle(old)
    forget_cached(host, name)
    _attempt(done, drain_and_retire, host, name, done.generation, done)
    raise Problem("\n".join([*done.failures, "rollback_on_failure: it was live, and is gone again"]))


def finish_retiring(host, name, app, done):
    """
    Retire all generations of an app but the live one, and forget what there is no rollback to any more.

    app : dict
        Its settings, as ``desired_app`` gives them.
    done : Change
        What went wrong is added to it.
    """
    current = done.generation
    for before in generation_ids(host, name, keep=current):
        _attempt(done, drain_and_retire, host, name, load_generation(host, name, before) or before, done)
    _attempt(done, maintenance.enable_fast_path, name)
    _attempt(done, _prune, host, name, app, current)


def _prune(host, name, app, current):
    _prune_logs(name, keep=current)
    kept = prune_releases(name, app["keep_releases"], _in_use(host, name))
    pinned = active_override(host, name).get("pinned")
    history.forget_settings(name, kept, app["keep_releases"], current.id, pinned)
    static.prune(name)
    files.remove_staged(
        TMPFILES,
        f"{ETC}/{name}",
        current.config_dir,
        Release(name, current.release).path,
        f"{HISTORY}/{name}",
        f"{LOG}/{name}",
        f"{LIB}/live",
        FAST_PATHS,
        *program_folders(host).values(),
        *glob.glob(f"{Systemd.SYSTEM}/*.wants"),
    )


def finish(host, name, app, done):
    """
    Run an app's after_live commands. As long as they have not all succeeded, the next run does so again.

    app : dict
        Its settings, as ``desired_app`` gives them.
    done : Change
        What they printed, and the first that failed, is added to it.

    Returns whether all have succeeded.
    """
    generation = done.generation
    release = Release(name, generation.release)
    try:
        _run_hooks(generation, app, "after_live", release, done)
    except (Problem, OSError) as error:
        done.failures.append(str(error))
        return False
    if generation.record.pop("pending_hooks", None):
        _attempt(done, write_record, generation)
    return True


def drain_and_retire(host, name, generation, done):
    """
    Take an app's generation away that has no traffic any more, once its last request is answered.

    generation : Generation or str
        It, or the id of one of which only remains are there.
    done : Change
        What the app's before_retire commands printed, and what failed, is added to it. They are
        pillar's, in its code and with its environment.
    """
    if isinstance(generation, str):
        return retire_generation(host, name, generation)
    _drain(generation)
    kept = history.kept_settings(name, generation.id)
    if kept and generation.record.get("went_live"):
        own = {"user": generation.user, **kept["settings"], "hooks": host.settings.apps[name]["hooks"]}
        try:
            _run_hooks(generation, own, "before_retire", Release(name, generation.release), done)
        except (Problem, OSError) as error:
            done.failures.append(str(error))
    return retire_generation(host, name, generation.id)


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
    return run_hooks(generation.name, app, moment, release, generation.environment, generation.uid, generation.gid)


def _in_use(host, name):
    """The ids of the releases that some generation on this machine runs, or is to run."""
    found = {load_generation(host, name, id) for id in generation_ids(host, name)}
    return {generation.release for generation in found if generation}


def _ready(generation, app):
    """Wait until the health check passes, or can't any more, or its deadline has come; then for the rest."""
    health = app["health"]
    host = health_host(app)
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
        check_running(generation.programs[:1])
        # One after the other, so that each has passed once.
        while waiting and os.path.exists(waiting[0]):
            try:
                status = probe.request_status(generation.protocol, waiting[0], health["path"], host, min(left, 10))
            except (OSError, http.client.HTTPException) as error:
                last = f"GET {health['path']}: {error or type(error).__name__}"
                break
            if status != health["status"]:
                last = f"GET {health['path']} answered {status} instead of {health['status']}"
                break
            waiting.pop(0)
        if not waiting:
            return wait_until_settled(generation)
        time.sleep(0.1)


def _go_live(generation, event, override, **facts):
    """
    Move the traffic by one rename: nginx follows the link at every connect. What that means is written down first.

    event, facts
        As ``history.entry`` takes them.
    override : dict or None
        What this machine says instead of pillar from then on, empty for nothing; None where that stays.
    """
    host, name = generation.host, generation.name
    # Before the first page that names them; those of the generation before it are there still.
    static.publish(host, name, host.settings.apps[name], Release(name, generation.release))
    change = {"generation": generation.id, "change": secrets.token_hex(8)}
    brought = {"at": time.time(), "entry": history.entry(host, event, **change, **facts)}
    if override is not None:
        brought["override"] = dated_override(host, override)
    generation.record["going_live"] = brought
    write_record(generation)
    for folder in (LIB, f"{LIB}/live"):
        files.ensure_dir(folder, 0o755)
    maintenance.disable_fast_path(name)
    try:
        files.replace_symlink(generation.runtime_dir, generation.live_link)
    except OSError:
        maintenance.enable_fast_path(name)
        raise


def _drain(generation):
    """Wait until nothing is connected to a generation that is live no more."""
    process.wait_until(
        lambda: probe.count_connections(generation.server_dir) == 0,
        generation.record["settings"]["graceful_timeout"],
    )


def _prune_logs(name, keep):
    logs = [f"{LOG}/{name}/{log}" for log in files.list_dir(f"{LOG}/{name}")]
    logs.sort(key=os.path.getmtime, reverse=True)
    kept = {}
    for log in logs:
        id = re.match(r"[^.]+", os.path.basename(log)).group()
        if id == keep.id or id in kept or len(kept) < KEEP_LOGS:
            kept[id] = True
        else:
            files.remove(log)
