"""
Overrides: what a deploy or a pin on this machine asks for instead of pillar, until pillar changes.
"""

import json
import time

from .. import files
from ..errors import WsgiError
from ..paths import ETC
from ..redact import without_credentials
from . import history


def active_override(host, name):
    """
    What this machine says of an app instead of pillar; an empty dict where it says nothing.

    Returns ``pinned`` (a generation's id), or of a deploy ``source``, ``rev``, ``ref`` and ``pillar`` (a hash
    of what pillar said then; it ends as soon as pillar says something else); ``at`` and ``by``.
    """
    if name not in host.overrides:
        host.overrides[name] = host.overrides_read[name] = _on_disk(name)
    override = host.overrides[name]
    if "source" in override and override["pillar"] != _said(host, name):
        return {}
    return override


def describe_override(host, name):
    """What is said instead of pillar, for an administrator; "" where it is nothing."""
    override = active_override(host, name)
    if "pinned" in override:
        return f"It is pinned to generation {override['pinned']} since {override['at']}; `wsgi.unpin {name}` ends that."
    if override:
        what = override["rev"] or without_credentials(override["source"])
        return f"{what} was deployed at {override['at']} instead of pillar's source, until that changes."
    return ""


def deploy_override(host, name, source, rev=None):
    """What a deploy says, for ``override``."""
    return {"source": source, "rev": rev, "pillar": _said(host, name)}


def set_override(host, name, what, write=True):
    """
    Say something of an app instead of pillar, or with an empty dict nothing any more.

    what : dict
        As ``in_force`` returns it; ``at`` and ``by`` are added.
    write : bool
        Whether for longer than this run.
    """
    what = dated_override(host, what)
    host.wanted.pop(name, None)
    host.overrides[name] = what
    if write:
        host.overrides_read[name] = what
        write_override(name, what)


def dated_override(host, what):
    """Add to what is said instead of pillar ``at`` and ``by``, unless that is nothing."""
    return what and {"at": time.strftime("%Y-%m-%d %H:%M:%S"), "by": history.current_run(host), **what}


def write_override(name, what):
    """Write down what is said instead of pillar, as ``dated`` returns it."""
    if what:
        files.write(_path(name), json.dumps(what) + "\n", 0o600)
    else:
        files.remove(_path(name))


def forget_cached(host, name):
    """Have the run ask the disk again what is wanted of an app."""
    for known in (host.wanted, host.overrides, host.overrides_read):
        known.pop(name, None)


def is_override_damaged(name):
    """Whether what was said of an app instead of pillar could not be read."""
    return _path(name) in files.damaged_records


def set_override_aside(name):
    """Take what could not be read out of the way."""
    files.set_aside(_path(name))


def check_override_unchanged(host, name):
    """Raise ``WsgiError`` where another run deployed, pinned or unpinned an app since this one began."""
    if name in host.overrides and _on_disk(name) != host.overrides_read[name]:
        raise WsgiError(f"another run changed what is wanted of {name} meanwhile; apply again")


def _path(name):
    return f"{ETC}/{name}/override.json"


def _on_disk(name):
    """What is said of an app instead of pillar: by the change that brought what is live, though it was killed."""
    lost = "what was deployed or pinned there is not any more, and pillar alone says what is wanted"
    brought = history.going_live(name)
    if "override" in brought:
        return brought["override"]
    found = files.read_json(_path(name), {"at": str}, lost) or {}
    if found and "pinned" not in found and not {"source", "rev", "pillar"} <= {*found}:
        files.note_damage(_path(name), "it names no source", lost)
        return {}
    return found


def _said(host, name):
    return files.digest(host.settings.apps[name]["source"])
