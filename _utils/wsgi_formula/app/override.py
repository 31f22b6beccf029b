"""
Overrides: a deploy or a pin on this machine, which replaces pillar's settings of an app.

An override is a dict. A pin has ``pinned``, the id of a generation. A deploy has ``source``, ``rev`` (the argument of
``wsgi.deploy``), ``ref`` (the branch or tag of the source's commit) and ``pillar``, a hash of pillar's source at that
time: the deploy ends as soon as pillar has another one. Both have ``at`` and ``by``, the time and the run.
"""

from __future__ import annotations

import json
import time
from typing import Any

from .. import files
from ..errors import WsgiError
from ..host import Host
from ..paths import ETC
from ..redact import without_credentials
from . import history


class Overrides:
    """The overrides of one run by their apps, as it read them and as it has changed them: see ``Host.shared``."""

    def __init__(self, host: Host) -> None:
        self.current: dict[str, dict] = {}
        self.on_disk: dict[str, dict] = {}


def active_override(host: Host, name: str) -> dict[str, Any]:
    """Return the override that is active for an app, or an empty dict."""
    overrides = host.once(Overrides)
    if name not in overrides.current:
        overrides.current[name] = overrides.on_disk[name] = _read(name)
    override = overrides.current[name]
    if "source" in override and override["pillar"] != _hash_of_source(host, name):
        return {}
    return override


def describe_override(host: Host, name: str) -> str:
    """Return a sentence about an app's active override, or "" where there is none."""
    override = active_override(host, name)
    if "pinned" in override:
        return f"It is pinned to generation {override['pinned']} since {override['at']}; `wsgi.unpin {name}` ends that."
    if override:
        deployed = override["rev"] or without_credentials(override["source"])
        return f"{deployed} was deployed at {override['at']} instead of pillar's source, until that changes."
    return ""


def deploy_override(host: Host, name: str, source: str, rev: str | None = None) -> dict[str, Any]:
    """
    Return the override of a deploy, for ``set_override``.

    source : str
        The source to deploy, in the form of pillar's.
    rev : str
        The revision that was asked for.
    """
    return {"source": source, "rev": rev, "pillar": _hash_of_source(host, name)}


def set_override(host: Host, name: str, override: dict[str, Any], write: bool = True) -> None:
    """
    Set an app's override, or end it.

    override : dict
        The override without ``at`` and ``by``; an empty one ends it.
    write : bool
        Whether it lasts longer than this run.
    """
    override = dated_override(host, override)
    overrides = host.once(Overrides)
    overrides.current[name] = override
    if write:
        overrides.on_disk[name] = override
        write_override(name, override)


def dated_override(host: Host, override: dict[str, Any]) -> dict[str, Any]:
    """Return an override with ``at`` and ``by``; an empty one stays empty."""
    if not override:
        return override
    return {"at": time.strftime("%Y-%m-%d %H:%M:%S"), "by": history.current_run(host), **override}


def write_override(name: str, override: dict[str, Any]) -> None:
    """Write an app's override, as ``dated_override`` returns it, or remove its file for an empty one."""
    if override:
        files.write(_path(name), json.dumps(override) + "\n", 0o600)
    else:
        files.remove(_path(name))


def forget_cached(host: Host, name: str) -> None:
    """Have the run read an app's override from the disk again at its next use."""
    overrides = host.once(Overrides)
    overrides.current.pop(name, None)
    overrides.on_disk.pop(name, None)


def is_override_damaged(name: str) -> bool:
    """Return whether an app's override could not be read."""
    return _path(name) in files.damaged_records


def set_override_aside(name: str) -> None:
    """Rename an app's damaged override."""
    files.set_aside(_path(name))


def check_override_unchanged(host: Host, name: str) -> None:
    """Raise ``WsgiError`` where another run deployed, pinned or unpinned an app since this one began."""
    overrides = host.once(Overrides)
    if name in overrides.current and _read(name) != overrides.on_disk[name]:
        raise WsgiError(f"another run deployed, pinned or unpinned {name} meanwhile; apply again")


def _path(name: str) -> str:
    return f"{ETC}/{name}/override.json"


def _read(name: str) -> dict[str, Any]:
    """Return an app's override from the disk; one of a change that went live and was then killed is not written yet."""
    consequence = "an earlier deploy or pin has ended, and pillar's settings count"
    unsettled = history.going_live(name)
    if "override" in unsettled:
        return unsettled["override"]
    override = files.read_json(_path(name), {"at": str}, consequence) or {}
    if override and "pinned" not in override and not {"source", "rev", "pillar"} <= {*override}:
        files.note_damage(_path(name), "it has no source", consequence)
        return {}
    return override


def _hash_of_source(host: Host, name: str) -> str:
    return files.digest(host.settings.apps[name]["source"])
