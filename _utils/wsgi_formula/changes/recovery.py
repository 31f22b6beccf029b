"""
Recovery: what a change was killed in is settled by the next run.

The change puts all that is to be true from the moment of the switch into the new generation's record, as
``going_live``, before it renames the link. ``settle`` writes each fact where it belongs, and takes ``going_live`` from
the record last. Until then ``active_override`` and ``history.entries`` read the record as if that were done.
"""

from __future__ import annotations

import os

from .. import files
from ..app import history
from ..app.override import active_override, is_override_damaged, set_override_aside, write_override
from ..app.release import Release
from ..edge import maintenance
from ..errors import WsgiError
from ..host import Host
from ..lock import app_lock
from ..paths import LIB
from ..run.generation import Generation, generation_ids, live_generation, load_generation
from .outcome import Outcome


def recover(host: Host, name: str) -> Generation | None:
    """
    Settle what a killed run has left open of an app. Generations that are not live are left to ``retire_others``.

    Every run that touches an app calls it before it reads what is desired of the app. With ``test=True`` nothing is
    written.

    Returns the live generation, or None. Raises ``WsgiError`` where something cannot be written.
    """
    active_override(host, name)
    current = live_generation(host, name)
    stale_link = f"{LIB}/live/{name}.new"  # the formula of another version left it when it was killed
    unsettled = current and "going_live" in current.record
    if host.opts.get("test") or not (unsettled or os.path.lexists(stale_link) or is_override_damaged(name)):
        return current
    with app_lock(name, "the recovery of a killed run"):
        for path in (*maintenance.fast_paths(f"{name}.new").values(), stale_link):
            files.remove(path)
        set_override_aside(name)
        current = live_generation(host, name)
        failures = settle(current) if current else []
    if failures:
        raise WsgiError("\n".join(failures))
    return current


def settle(generation: Generation) -> list[str]:
    """
    Write down what became true when a generation went live: each fact where it belongs.

    Every step may be repeated, and is, by the next run, until all have succeeded.

    Returns what failed, a list of sentences.
    """
    host, name, facts = generation.host, generation.name, generation.record.get("going_live")
    if not facts:
        return []
    outcome = Outcome(generation)
    generation.record["went_live"] = True
    outcome.attempt(maintenance.enable_fast_path, name)
    outcome.attempt(history.settle, name)
    if "override" in facts:
        outcome.attempt(write_override, name, facts["override"])
    release = Release(name, generation.release)
    if release.record:
        outcome.attempt(release.remember, files.group_of(f"{release.path}/release.json"), live=facts["at"])
    others = [load_generation(host, name, id) for id in generation_ids(name, keep=generation)]
    outcome.attempt(generation.take_over_schedule, [other for other in others if other])
    if not outcome.failures:
        del generation.record["going_live"]
        if not outcome.attempt(generation.write_record):
            generation.record["going_live"] = facts
    return outcome.failures
