"""
What became of an app: what went live when, from what, by which run, what failed and why; and the
settings of the generations that there is a way back to.

``/var/lib/wsgi/history/<app>/`` is root's alone: the settings have the values of ``env`` in them.
"""

import json
import os
import time

import salt.payload
import salt.utils.files
import wsgi_host
from wsgi_host import LIB

HISTORY = f"{LIB}/history"
# Entries that stay, for each app.
KEEP_ENTRIES = 200
# Generations whose settings stay, as long as their release does.
KEEP_SETTINGS = 10
REASON = 8000  # characters of what failed, and of why: all that a comment quotes, unless its lines are very long
# What of an app's settings is a generation's own: it comes back with it.
OWN = ("server_options", "hooks", "health")


def add(host, name, event, **facts):
    """
    Write down what happened.

    host : wsgi_host.Host
    name : str
        The app.
    event : str
        ``live``, ``rollback`` or ``failed``.
    facts : dict
        What is known of it: ``generation``, ``release``, ``source``, ``revision``, ``server``, ``error``;
        of a rollback, ``to`` which generation.

    A failure that is the last one again is counted, so that an hourly run does not push out the rest.
    """
    found = entries(name)
    entry = {"event": event, **{fact: value for fact, value in facts.items() if value}}
    if "error" in entry:
        what, _, why = str(entry["error"]).partition("\n")
        # The end of a log tells why.
        entry["error"] = "\n".join(filter(None, [what[:REASON], why[-REASON:]]))
    if event == "failed" and found and _what(found[-1]) == _what(entry):
        entry["times"] = found.pop().get("times", 1) + 1
    entry["at"] = round(time.time())
    entry["by"] = by(host)
    _folder(name)
    lines = [json.dumps(each) + "\n" for each in [*found, entry][-KEEP_ENTRIES:]]
    wsgi_host.write(f"{HISTORY}/{name}/log", "".join(lines), 0o600)


def _what(entry):
    """What happened, whenever it did: of an error, its first line, since logs tell the time."""
    facts = {fact: value for fact, value in entry.items() if fact not in ("at", "by", "times")}
    return {**facts, "error": facts.get("error", "").partition("\n")[0]}


def entries(name):
    """All that is written down of an app, a list of dicts, the oldest first."""
    return [json.loads(line) for line in (wsgi_host.read(f"{HISTORY}/{name}/log") or "").splitlines()]


def by(host):
    """Which run this is: ``function``, ``jid`` and ``user``, as far as Salt tells."""
    jobs = os.path.join(host.opts.get("cachedir", ""), "proc")
    for jid in wsgi_host.listdir(jobs):
        try:
            with salt.utils.files.fopen(os.path.join(jobs, jid), "rb") as file:
                job = salt.payload.load(file)
        except (OSError, ValueError):  # it ended this moment
            continue
        if job.get("pid") == os.getpid():
            user = job.get("user") or os.environ.get("SUDO_USER") or "root"
            return {"function": job.get("fun"), "jid": job.get("jid"), "user": user}
    return {}


def keep(name, generation, app):
    """
    Keep a generation's settings for a way back.

    name : str
        The app.
    generation : wsgi_generation.Generation
    app : dict
        Its settings, as ``wsgi_wanted.app`` gave them.
    """
    _folder(name)
    own = (*generation.record["settings"], "env", *OWN)
    settings = {"release": generation.release, "settings": {key: app[key] for key in own}}
    wsgi_host.write(f"{HISTORY}/{name}/{generation.id}.json", json.dumps(settings) + "\n", 0o600)


def kept(name, id):
    """A generation's ``release`` and its ``settings``, as ``keep`` kept them, or None."""
    return wsgi_host.read_json(f"{HISTORY}/{name}/{id}.json")


def forget(name, releases, generation):
    """
    Forget the settings of generations whose release is gone, and of all but the newest ten.

    releases : set of str
        The ids of those that are there.
    generation : str
        The one that is live, never forgotten.
    """
    files = [f"{HISTORY}/{name}/{file}" for file in wsgi_host.listdir(f"{HISTORY}/{name}") if file.endswith(".json")]
    files.sort(key=os.path.getmtime, reverse=True)
    for number, path in enumerate(files):
        id = os.path.basename(path)[: -len(".json")]
        if id != generation and (number >= KEEP_SETTINGS or kept(name, id)["release"] not in releases):
            wsgi_host.remove(path)


def before(name, id):
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
    return next((each for each in reversed(way) if _hash(each) != _hash(id) and kept(name, each)), None)


def _hash(id):
    return id.partition("-")[0]


def _folder(name):
    for path, mode in ((LIB, 0o755), (HISTORY, 0o700), (f"{HISTORY}/{name}", 0o700)):
        wsgi_host.folder(path, mode)
