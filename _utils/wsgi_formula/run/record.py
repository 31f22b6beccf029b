"""
The record of a generation: what of it is kept in ``generation.json``.

It has all that is needed to report on a generation and to retire it, whatever pillar says by then, and no secret.
"""

from __future__ import annotations

import os
import re
from typing import Any

from .. import files, untrusted
from ..app import history
from ..app.release import Release
from ..host import Host
from ..paths import RUN
from ..pillar.app import App
from .programs import known_programs

# How a generation's folders below /run are laid out. Records without a number are of the first way: one folder for all,
# which was the app's.
LAYOUT = 2


def new_record(app: App, release: Release, version: str | None) -> dict[str, Any]:
    """
    Return the record of a new generation.

    app : App
        Its settings, as ``desired_app`` gives them.
    version : str or None
        The server's.
    """
    settings = settings_record(app)
    return {
        "layout": LAYOUT,
        "server": app["server"],
        "process_manager": app["process_manager"],
        "protocol": app.row["protocol"],
        "user": app["user"],
        "release": release.id,
        "environment": release.environment.id,
        "version": version,
        "spawned": app["workers"] if app.single_process else 0,
        "markers": _markers(app),
        "check": health_check_of(app),
        "pending_hooks": ["after_live"] if app["hooks"]["after_live"] else [],
        "settings": {key: value for key, value in settings.items() if key != "env"},
        "env": settings["env"],
    }


def settings_record(app: App) -> dict[str, Any]:
    """Return the settings of an app's process as a record has them: digests instead of the values of ``env``."""
    settings = app.process_settings
    settings["env"] = {name: files.digest(str(value)) for name, value in app["env"].items()}
    return settings


def health_check_of(app: App) -> dict[str, Any]:
    """Return an app's health check as a record has it: ``path``, ``host`` and ``status``."""
    health = app["health"]
    return {"path": health["path"], "host": app.health_host, "status": health["status"]}


def _markers(app: App) -> list[str]:
    """Return the names of the files that tell nginx which upstream to use, and how."""
    row = app.row
    upstream = "workers" if app.single_process else row["protocol"]
    return [upstream, *(["keepalive"] if app["interface"] in row.get("keepalive", []) else [])]


def derived_record(host: Host, name: str, id: str) -> dict[str, Any] | None:
    """
    Return as much of a lost record as it takes to drain and retire a generation, from what runs under its name.

    name, id : str
        The app and the generation.

    Returns None where nothing runs under its name.
    """
    known = known_programs(host, f"{name}.{id}")
    if not known:
        return None
    runtime_dir = f"{RUN}/{name}/{id}"
    kept = history.kept_settings(name, id) or {"release": "", "settings": {}}
    app = {**host.settings.defaults, **host.settings.apps.get(name, {}), **kept["settings"]}
    sockets = re.findall(r"^(http|uwsgi)(-\d+)?\.sock$", "\n".join(files.list_dir(runtime_dir)), re.MULTILINE)
    went_live = [entry["generation"] for entry in history.entries(name) if entry["event"] != "failed"]
    server = app.get("server")
    return {
        "damaged": True,
        "layout": LAYOUT if os.path.isdir(f"{runtime_dir}.own") else None,
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


def fingerprint(path: str) -> list | None:
    """Return a file's owner, group, mode and hash, as a record has them; None where there is no file."""
    try:
        found = os.lstat(path)
        return [found.st_uid, found.st_gid, found.st_mode, untrusted.sha256(path)]
    except FileNotFoundError:
        return None
