"""
What became of an app: what went live when, from what, by which run, what failed and why; and the
settings of the generations that there is a way back to.

``/var/lib/wsgi/history/<app>/`` is root's alone: the settings have the values of ``env`` in them.
"""

import contextlib
import json
import os
import time

import salt.exceptions
import salt.payload
import salt.utils.files
import salt.utils.yaml

from .. import files
from ..paths import ETC, LIB


def live_id(name):
    """The id of the generation that receives an app's traffic, or None."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.basename(os.readlink(f"{LIB}/live/{name}"))
    return None


HISTORY = f"{LIB}/history"

# Entries that stay, for each app.
KEEP_ENTRIES = 200

# What a generation's record has, whichever version of the formula wrote it.
RECORD = {
    **dict.fromkeys(("server", "process_manager", "protocol", "user", "release", "environment"), str),
    "settings": dict,
}

REASON = 8000  # characters of what failed, and of why: all that a comment quotes, unless its lines are very long

# What of an app's settings is a generation's own: it comes back with it.
OWN = ("server_options", "hooks", "health")


def add(host, name, event, **facts):
    """
    Write down what happened.

    host : Host
    name : str
        The app.
    event, facts
        As ``entry`` takes them.

    A failure that is the last one again is counted, so that an hourly run does not push out the rest.
    """
    _write(name, [*entries(name), entry(host, event, **facts)])


def entry(host, event, **facts):
    """
    Make an entry of what happens now.

    event : str
        ``live``, ``rollback`` or ``failed``.
    facts : dict
        What is known of it: ``generation``, ``release``, ``source``, ``revision``, ``server``, ``error``;
        of a rollback, ``to`` which generation; ``change``, an id that no other entry has.

    Returns a dict.
    """
    made = {"event": event, **{fact: value for fact, value in facts.items() if value}}
    if "error" in made:
        made["error"] = _shortened(made["error"])
    return {**made, "at": round(time.time()), "by": current_run(host)}


def settle(name):
    """Write down the entry of the change that brought an app's live generation, unless it is there already."""
    _write(name, entries(name))


def add_error(name, change, error):
    """Add to the entry of a change what failed when it was live already."""
    error = _shortened(error)
    _write(name, [{**each, "error": error} if each.get("change") == change else each for each in entries(name)])


def _shortened(error):
    what, _, why = str(error).partition("\n")
    # The end of a log tells why.
    return "\n".join(filter(None, [what[:REASON], why[-REASON:]]))


def _write(name, found):
    _folder(name)
    lines = [json.dumps(each) + "\n" for each in _counted(found)[-KEEP_ENTRIES:]]
    files.write(_log(name), "".join(lines), 0o600)


def _counted(found):
    """Entries, without what failed for the last time but one in the same way as for the last time."""
    for events in (["failed"], ["live", "rollback"]):
        count = len(events)
        last, before = found[-count:], found[-2 * count : -count]
        if (
            [each["event"] for each in last] == events
            and "error" in last[-1]
            and [_what(each) for each in last] == [_what(each) for each in before]
        ):
            times = before[-1].get("times", 1) + 1
            return [*found[: -2 * count], *last[:-1], {**last[-1], "times": times}]
    return found


def _what(entry):
    """What happened, whenever it did: of an error, its first line, since logs tell the time."""
    facts = {fact: value for fact, value in entry.items() if fact not in ("at", "by", "times", "change")}
    return {**facts, "error": facts.get("error", "").partition("\n")[0]}


def entries(name):
    """
    Return all that is written down of an app, and is to be: a list of dicts, the oldest first.

    A line that is no entry is left out.
    """
    found, bad = [], []
    with contextlib.suppress(FileNotFoundError), open(_log(name), "rb") as file:
        for number, line in enumerate(file.read().splitlines(), 1):
            each = _parsed(line)
            if each:
                found.append(each)
            else:
                bad.append(str(number))
    if bad:
        files.note_damage(_log(name), f"line {', '.join(bad)}", "the other entries are kept")
    pending = going_live(name).get("entry")
    if pending and pending["change"] not in [each.get("change") for each in found]:
        found.append(pending)
    return found


def _parsed(line):
    """The entry of a line, or None where it is damaged."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(found, dict) and isinstance(found.get("at"), (int, float))
    return found if whole and (found.get("event") == "failed" or isinstance(found.get("generation"), str)) else None


def going_live(name):
    """
    Return what the change that brought an app's live generation has still to write down.

    It is so from the moment that the link is renamed until the change, or the next run where that one was
    killed, has settled it: see ``recovery.settle``.

    Returns a dict: ``entry``, of the history; ``at``, a float; and perhaps ``override``, as
    ``active_override`` returns it. It is empty where there is nothing.
    """
    id = live_id(name)
    record = files.read_json(*record_of(name, id)) if id else None
    return (record or {}).get("going_live") or {}


def record_of(name, id):
    """The arguments of ``files.read_json`` for a generation's record."""
    return f"{ETC}/{name}/{id}/generation.json", RECORD, "a new generation takes its place"


def current_run(host):
    """Which run this is: ``function``, ``jid`` and ``user``, as far as Salt tells."""
    if not host.opts.get("cachedir"):
        return {}
    jobs = os.path.join(host.opts["cachedir"], "proc")
    for jid in files.list_dir(jobs):
        try:
            with salt.utils.files.fopen(os.path.join(jobs, jid), "rb") as file:
                job = salt.payload.load(file)
        except (OSError, ValueError, salt.exceptions.SaltException):  # it ended this moment, or was killed
            continue
        if isinstance(job, dict) and job.get("pid") == os.getpid():
            user = job.get("user") or os.environ.get("SUDO_USER") or "root"
            return {"function": job.get("fun"), "jid": job.get("jid"), "user": user}
    return {}


def keep_settings(name, generation, app):
    """
    Keep a generation's settings for a way back.

    name : str
        The app.
    generation : Generation
    app : dict
        Its settings, as ``desired_app`` gave them.
    """
    _folder(name)
    own = (*generation.record["settings"], "env", *OWN)
    settings = {"release": generation.release, "settings": {key: app[key] for key in own}}
    files.write(f"{HISTORY}/{name}/{generation.id}.json", json.dumps(settings) + "\n", 0o600)


def kept_settings(name, id):
    """A generation's ``release`` and its ``settings``, as ``keep`` kept them, or None."""
    needs = {"release": str, "settings": dict}
    return files.read_json(f"{HISTORY}/{name}/{id}.json", needs, "there is no rollback to it any more")


def forget_settings(name, releases, count, *needed):
    """
    Forget the settings that there is no rollback to any more: they have secrets in them.

    name : str
        The app.
    releases : set of str
        The ids of those that are there.
    count : int
        ``keep_releases``. Of so many generations, those that were live last, the settings stay, and of the
        last one of each release that is there.
    needed : str
        The generations whose settings stay in any case.
    """
    found = {file: file.partition(".")[0] for file in files.list_dir(f"{HISTORY}/{name}") if ".json" in file}
    release_of = {_hash(id): (kept_settings(name, id) or {}).get("release") for id in {*found.values()}}
    went = [_hash(entry["generation"]) for entry in reversed(entries(name)) if entry["event"] != "failed"]
    ways = [hash for hash in dict.fromkeys(went) if release_of.get(hash) in releases]
    last_of_release = {release_of[hash]: hash for hash in reversed(ways)}
    stay = {*ways[:count], *last_of_release.values()}
    for file, id in found.items():
        if id not in needed and _hash(id) not in stay:
            files.remove(f"{HISTORY}/{name}/{file}")


def rollback_target(name, id):
    """
    The generation that was live before this one, and that there is a way back to; or None.

    A way back leaves no way forward: after one from C to B, A is before B.
    """
    way = []
    for entry in entries(name):
        if entry["event"] == "failed":
            continue
        generation, to = entry["generation"], entry.get("to")
        if to in way:
            way = way[: way.index(to)]
        # Live again, by a pillar that says what it said before.
        way = [*(each for each in way if each != generation), generation]
    if id in way:
        way = way[: way.index(id)]
    return next((each for each in reversed(way) if _hash(each) != _hash(id) and kept_settings(name, each)), None)


def _log(name):
    return f"{HISTORY}/{name}/log"


def _hash(id):
    return id.partition("-")[0]


def _folder(name):
    for path, mode in ((LIB, 0o755), (HISTORY, 0o700), (f"{HISTORY}/{name}", 0o700)):
        files.ensure_dir(path, mode)
