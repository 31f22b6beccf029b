"""
The history of an app: which generation went live when and by which run, what failed and why, and the settings of the
generations that can be rolled back to.

Only root can read ``/var/lib/wsgi/history/<app>/``, as the settings have the values of ``env`` in them.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Collection
from typing import Any, Protocol

import salt.exceptions
import salt.payload
import salt.utils.files
import salt.utils.yaml

from .. import files
from ..host import Host
from ..paths import ETC, LIB
from ..pillar.app import App


class HasSettings(Protocol):
    """A generation."""

    id: str
    release: str
    record: dict[str, Any]


def live_id(name: str) -> str | None:
    """Return the id of the generation that receives an app's traffic, or None."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.basename(os.readlink(f"{LIB}/live/{name}"))
    return None


HISTORY = f"{LIB}/history"

# The entries of an app that are kept.
KEEP_ENTRIES = 200

# The keys that a generation's record has in all versions of the formula, to the types of their values.
RECORD: dict[str, type] = {
    **dict.fromkeys(("server", "process_manager", "protocol", "user", "release", "environment"), str),
    "settings": dict,
}

ERROR_LENGTH = 8000  # characters that are kept of an error's first line, and of the rest

# The settings of an app that a rollback restores, besides those in a generation's record and `env`.
RESTORED = ("server_options", "hooks", "health")


def add(host: Host, name: str, event: str, **facts: Any) -> None:
    """
    Add an entry to an app's history.

    host : Host
    name : str
        The app.
    event, facts
        As ``entry`` takes them.

    A failure like the last one only raises that one's count, so that an hourly run does not push out the other entries.
    """
    _write(name, [*entries(name), entry(host, event, **facts)])


def entry(host: Host, event: str, **facts: Any) -> dict[str, Any]:
    """
    Make an entry for an event of this moment.

    event : str
        ``live``, ``rollback`` or ``failed``.
    facts : dict
        The facts that are known: ``generation``, ``release``, ``source``, ``revision``, ``server``, ``error``;
        ``to``, the generation that was rolled back to; ``change``, an id that no other entry has.
    """
    made = {"event": event, **{fact: value for fact, value in facts.items() if value}}
    if "error" in made:
        made["error"] = _shortened(made["error"])
    return {**made, "at": round(time.time()), "by": current_run(host)}


def settle(name: str) -> None:
    """Write the pending entry of the change that made an app's generation live: see ``going_live``."""
    _write(name, entries(name))


def add_error(name: str, change: str, error: object) -> None:
    """Add to the entry of a change an error that happened after the generation went live."""
    text = _shortened(error)
    _write(name, [{**made, "error": text} if made.get("change") == change else made for made in entries(name)])


def _shortened(error: object) -> str:
    sentence, _, output = str(error).partition("\n")
    # The end of a log has the reason.
    return "\n".join(filter(None, [sentence[:ERROR_LENGTH], output[-ERROR_LENGTH:]]))


def _write(name: str, log: list[dict]) -> None:
    _ensure_folder(name)
    lines = [json.dumps(made) + "\n" for made in _without_repeated_failure(log)[-KEEP_ENTRIES:]]
    files.write(_log(name), "".join(lines), 0o600)


def _without_repeated_failure(log: list[dict]) -> list[dict]:
    """Return the entries, where the last failure replaces an equal one before it and counts how often it happened."""
    for events in (["failed"], ["live", "rollback"]):
        count = len(events)
        last, before = log[-count:], log[-2 * count : -count]
        if (
            [made["event"] for made in last] == events
            and "error" in last[-1]
            and [_timeless(made) for made in last] == [_timeless(made) for made in before]
        ):
            times = before[-1].get("times", 1) + 1
            return [*log[: -2 * count], *last[:-1], {**last[-1], "times": times}]
    return log


def _timeless(entry: dict) -> dict:
    """Return the facts of an entry that are the same when it happens again; of an error, the first line."""
    facts = {fact: value for fact, value in entry.items() if fact not in ("at", "by", "times", "change")}
    return {**facts, "error": facts.get("error", "").partition("\n")[0]}


def entries(name: str) -> list[dict[str, Any]]:
    """
    Return the entries of an app's history, the oldest first, with a pending one that is not written yet.

    Damaged lines are left out and reported: see ``files.note_damage``.
    """
    log: list[dict] = []
    damaged: list[str] = []
    with contextlib.suppress(FileNotFoundError), open(_log(name), "rb") as file:
        for number, line in enumerate(file.read().splitlines(), 1):
            made = _parsed(line)
            if made:
                log.append(made)
            else:
                damaged.append(str(number))
    if damaged:
        files.note_damage(_log(name), f"line {', '.join(damaged)}", "the other entries are kept")
    pending = going_live(name).get("entry")
    if pending and pending["change"] not in [made.get("change") for made in log]:
        log.append(pending)
    return log


def _parsed(line: bytes) -> dict | None:
    """Return the entry of a line, or None where it is damaged."""
    try:
        made = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(made, dict) or not isinstance(made.get("at"), (int, float)):
        return None
    return made if made.get("event") == "failed" or isinstance(made.get("generation"), str) else None


def going_live(name: str) -> dict[str, Any]:
    """
    Return the facts that the change that made an app's generation live has not written to their files yet.

    They are in the generation's record from before the link is renamed until the change, or the next run if that one
    was killed, has settled them: see ``recovery.settle``.

    Returns a dict with ``entry``, an entry of the history, ``at``, a float in seconds since 1970, and perhaps
    ``override``, as ``active_override`` returns it. It is empty where nothing is pending.
    """
    id = live_id(name)
    record = files.read_json(*record_of(name, id)) if id else None
    return (record or {}).get("going_live") or {}


def record_of(name: str, id: str) -> tuple[str, dict[str, type], str]:
    """Return the arguments of ``files.read_json`` for a generation's record."""
    return f"{ETC}/{name}/{id}/generation.json", RECORD, "a new generation takes its place"


def current_run(host: Host) -> dict[str, Any]:
    """Return the ``function``, the ``jid`` and the ``user`` of this run; an empty dict where Salt does not tell."""
    if not host.opts.get("cachedir"):
        return {}
    jobs = os.path.join(host.opts["cachedir"], "proc")
    for jid in files.list_dir(jobs):
        try:
            with salt.utils.files.fopen(os.path.join(jobs, jid), "rb") as file:
                job = salt.payload.load(file)
        except (OSError, ValueError, salt.exceptions.SaltException):  # the job ended meanwhile, or was killed
            continue
        if isinstance(job, dict) and job.get("pid") == os.getpid():
            user = job.get("user") or os.environ.get("SUDO_USER") or "root"
            return {"function": job.get("fun"), "jid": job.get("jid"), "user": user}
    return {}


def keep_settings(generation: HasSettings, app: App) -> None:
    """
    Keep a generation's settings for a rollback.

    generation : Generation
    app : App
        The app that the generation was made from, as ``desired_app`` returned it.
    """
    _ensure_folder(app.name)
    keys = (*generation.record["settings"], "env", *RESTORED)
    kept = {"release": generation.release, "settings": {key: app[key] for key in keys}}
    files.write(f"{HISTORY}/{app.name}/{generation.id}.json", json.dumps(kept) + "\n", 0o600)


def kept_settings(name: str, id: str) -> dict[str, Any] | None:
    """Return the ``release`` and the ``settings`` that are kept of a generation, or None."""
    required = {"release": str, "settings": dict}
    return files.read_json(f"{HISTORY}/{name}/{id}.json", required, "a rollback to it is not possible any more")


def forget_settings(name: str, releases: Collection[str], count: int, *needed: str) -> None:
    """
    Remove the kept settings that no rollback can use any more, as they have secrets in them.

    name : str
        The app.
    releases : set of str
        The ids of the existing releases.
    count : int
        How many settings stay: those of the generations that were live last. The last ones of each release stay, too.
    needed : str
        Generations whose settings stay in any case.
    """
    id_of = {file: file.partition(".")[0] for file in files.list_dir(f"{HISTORY}/{name}") if ".json" in file}
    release_of = {_hash(id): (kept_settings(name, id) or {}).get("release") for id in {*id_of.values()}}
    were_live = [_hash(made["generation"]) for made in reversed(entries(name)) if made["event"] != "failed"]
    targets = [hash for hash in dict.fromkeys(were_live) if release_of.get(hash) in releases]
    last_of_release = {release_of[hash]: hash for hash in reversed(targets)}
    stay = {*targets[:count], *last_of_release.values()}
    for file, id in id_of.items():
        if id not in needed and _hash(id) not in stay:
            files.remove(f"{HISTORY}/{name}/{file}")


def rollback_target(name: str, id: str) -> str | None:
    """
    Return the generation that was live before another one and can be rolled back to, or None.

    name : str
        The app.
    id : str
        The other generation.

    After a rollback from C to B, the generations after B do not count any more: the target of B is A.
    """
    path: list[str] = []  # the generations that led to the live one, the oldest first
    for made in entries(name):
        if made["event"] == "failed":
            continue
        generation, to = made["generation"], made.get("to")
        if to in path:
            path = path[: path.index(to)]
        # A generation is live again where pillar has returned to earlier settings.
        path = [*(earlier for earlier in path if earlier != generation), generation]
    if id in path:
        path = path[: path.index(id)]
    return next(
        (before for before in reversed(path) if _hash(before) != _hash(id) and kept_settings(name, before)), None
    )


def _log(name: str) -> str:
    return f"{HISTORY}/{name}/log"


def _hash(id: str) -> str:
    return id.partition("-")[0]


def _ensure_folder(name: str) -> None:
    for path, mode in ((LIB, 0o755), (HISTORY, 0o700), (f"{HISTORY}/{name}", 0o700)):
        files.ensure_dir(path, mode)
