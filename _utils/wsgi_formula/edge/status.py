"""
The status of the apps of a machine: their generations, releases, processes and health.
"""

from __future__ import annotations

import http.client
import math
import os
import time
from collections.abc import Iterable

from .. import process
from ..app.override import describe_override
from ..app.release import Release
from ..host import Host
from ..paths import LIB
from ..run import probe
from ..run.generation import Generation, live_generation
from ..run.record import health_check_of
from . import maintenance

PATIENCE = 10  # seconds for the health checks of all apps on the status page


def known_names(host: Host) -> list[str]:
    """Return the names of the apps that are in pillar or on this machine."""
    return sorted({*host.settings.apps, *host.known_apps()})


def status_for_page(host: Host) -> dict:
    """Return the status of all apps for the status page: a run that changes nothing starts no process to ask systemd."""
    return status_of_apps(host, known_names(host), PATIENCE, processes=False)


def status_of_apps(host: Host, names: Iterable[str], patience: float | None, processes: bool) -> dict:
    """
    Return the status of some apps, by name; see ``wsgi.status``.

    names : iterable of str
    patience : float
        Seconds that all health checks may take together, or None.
    processes : bool
        Whether to ask the process managers, too.
    """
    deadline = time.monotonic() + (math.inf if patience is None else patience)
    return {name: _status(host, name, deadline, processes) for name in names}


def _status(host, name, deadline, processes):
    current = live_generation(host, name)
    if current is None:
        return {"live": False}
    app = host.settings.apps.get(name)
    link = f"{LIB}/live/{name}"
    return {
        "live": True,
        "server": current.server,
        "version": current.record.get("version"),
        "process_manager": current.record["process_manager"],
        "generation": current.id,
        "release": current.release,
        **made_of(current),
        **({"override": describe_override(host, name)} if app and describe_override(host, name) else {}),
        "domains": app["domains"] if app else [],
        "listen": app["listen"] if app else None,
        "mount": app["mount"] if app else None,
        "tls": app["tls"]["listen"] if app and app["tls"] else None,
        "workers": current.record["settings"]["workers"],
        "health": _health(current, health_check_of(app) if app else current.record["check"], deadline),
        **(_processes(current) if processes else {}),
        "since": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(os.lstat(link).st_mtime)),
        **({"maintenance": True} if maintenance.is_in_maintenance(name) else {}),
    }


def _processes(current):
    pids = current.pids
    beside = current.program_status()
    all_pids = [*pids]
    for mains in beside.get("processes", {}).values():
        all_pids += [pid for main in mains for pid in process.descendants(main)]
    return {
        "pids": pids,
        **beside,
        "memory_mib": round(process.pss_bytes(all_pids) / 2**20, 1),
        "uptime_s": round(process.uptime(pids[0])) if pids else 0,
    }


def made_of(generation: Generation) -> dict:
    """Return the ``source`` and the ``revision`` that a generation's release was built from, as far as they are known."""
    record = Release(generation.name, generation.release).record
    return {fact: record[fact] for fact in ("source", "revision") if record.get(fact)}


def _health(current, check, deadline):
    begun = time.monotonic()
    try:
        found = probe.request_status(
            current.protocol,
            current.socket,
            check["path"],
            check["host"],
            min(current.record["settings"]["request_timeout"], max(deadline - time.monotonic(), 0.1)),
        )
    except (OSError, http.client.HTTPException) as error:
        return {"ok": False, "error": str(error) or type(error).__name__}
    return {
        "ok": found == check["status"],
        "status": found,
        "latency_ms": round((time.monotonic() - begun) * 1000, 1),
    }
