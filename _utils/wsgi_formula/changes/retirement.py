"""
Retirement: generations that receive no traffic any more are drained, stopped and removed.
"""

from __future__ import annotations

import glob
import os

from .. import files, process
from ..app import history
from ..app.override import active_override
from ..app.release import Release, prune_releases
from ..build.hooks import run_hooks
from ..edge import maintenance, static
from ..edge.nginx import Nginx
from ..host import Host
from ..lock import app_lock
from ..paths import ETC, LIB, LOG, RUN, TMPFILES
from ..pillar.app import App
from ..run import probe
from ..run.generation import Generation, generation_ids, live_generation, load_generation, retire_generation
from ..run.managers.systemd import Systemd
from ..run.programs import program_folders
from .outcome import Outcome

# Logs of retired generations that stay, for each app.
KEEP_LOGS = 10


def drain(generation: Generation) -> None:
    """Wait until a generation has no connection any more, at most its ``graceful_timeout``."""
    process.wait_until(
        lambda: probe.count_connections(generation.server_dir) == 0,
        generation.record["settings"]["graceful_timeout"],
    )


def retire(host: Host, name: str, id: str, outcome: Outcome) -> None:
    """
    Run an app's before_retire commands in a drained generation; then stop it and remove all but its release and logs.

    id : str
        The generation, whole or the remains of one whose change was killed.
    outcome : Outcome
        Gets what the commands printed, and what failed. The commands are those of pillar, and run with the code and the
        environment of the generation.
    """
    generation = load_generation(host, name, id)
    settings = history.kept_settings(name, id)
    if generation and settings and generation.record.get("went_live"):
        pillars = host.settings.apps[name]
        app = pillars.replace(**{"user": generation.user, **settings["settings"], "hooks": pillars["hooks"]})
        outcome.attempt(run_generation_hooks, generation, app, "before_retire", outcome)
    retire_generation(host, name, id)


def drain_others(host: Host, name: str, outcome: Outcome) -> list[str]:
    """
    Drain all generations of an app but the live one.

    outcome : Outcome
        Gets what failed.

    Returns the ids of those that may be retired: generations without a connection, and remains of others.
    """
    drained = []
    for id in generation_ids(name, keep=outcome.generation):
        generation = load_generation(host, name, id)
        if generation is None or outcome.attempt(drain, generation):
            drained.append(id)
    return drained


def retire_others(host: Host, name: str, app: App, ids: list[str], outcome: Outcome) -> None:
    """
    Retire drained generations of an app, and forget what no rollback leads to any more.

    app : App
        Its settings, as ``desired_app`` gives them.
    ids : list of str
        From ``drain_others``.
    outcome : Outcome
        Gets what the before_retire commands printed, and what failed.
    """
    for id in ids:
        outcome.attempt(retire, host, name, id, outcome)
    outcome.attempt(maintenance.enable_fast_path, name)
    outcome.attempt(_prune, host, name, app, outcome.generation)


def remove_app(host: Host, name: str) -> None:
    """
    Take an app off this machine, its site first: its traffic ends, then its processes.

    Code, logs and its home folder stay. Raises ``WsgiError`` where nginx does not accept its files without the site.
    """
    with app_lock(name, "its removal"):
        host.once(Nginx).remove_site(name)
        last = live_generation(host, name)
        if last:
            drain(last)
        files.remove(f"{LIB}/live/{name}")
        files.remove(f"{LIB}/live/{name}.new")
        for id in generation_ids(name):
            retire_generation(host, name, id)
        files.remove(f"{RUN}/{name}")


def run_generation_hooks(generation: Generation, app: App, moment: str, outcome: Outcome) -> None:
    """
    Run the commands of an app for one moment, as its user, with a generation's code and environment.

    moment : str
        One of ``HOOKS``.
    outcome : Outcome
        Gets what they printed.

    Raises ``WsgiError`` with the last lines of the first command that fails.
    """
    release = Release(generation.name, generation.release)
    account = (generation.uid, generation.gid)
    for _, printed in run_hooks(app, moment, release, generation.environment, *account):
        outcome.printed.update(printed)


def _prune(host, name, app, current):
    """Remove logs, releases and kept settings that are too old, and files that killed runs were writing."""
    _prune_logs(name, keep=current)
    kept = prune_releases(name, app["keep_releases"], _releases_in_use(host, name))
    pinned = active_override(host, name).get("pinned")
    history.forget_settings(name, kept, app["keep_releases"], *filter(None, (current.id, pinned)))
    static.prune(name)
    files.remove_staged(
        TMPFILES,
        f"{ETC}/{name}",
        current.config_dir,
        Release(name, current.release).path,
        f"{history.HISTORY}/{name}",
        f"{LOG}/{name}",
        f"{LIB}/live",
        maintenance.FAST_PATHS,
        *program_folders(host).values(),
        *glob.glob(f"{Systemd.SYSTEM}/*.wants"),
    )


def _releases_in_use(host, name):
    """Return the ids of the releases that a generation on this machine runs."""
    generations = [load_generation(host, name, id) for id in generation_ids(name)]
    return {generation.release for generation in generations if generation}


def _prune_logs(name, keep):
    # A file whose name begins with a dot was being written by a run that was killed.
    logs = [f"{LOG}/{name}/{log}" for log in files.list_dir(f"{LOG}/{name}") if not log.startswith(".")]
    logs.sort(key=os.path.getmtime, reverse=True)
    kept: set[str] = set()
    for log in logs:
        id = os.path.basename(log).partition(".")[0]
        if id == keep.id or id in kept or len(kept) < KEEP_LOGS:
            kept.add(id)
        else:
            files.remove(log)
