"""
The plan of a state run: which apps there are, and which sls they and the host need.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..edge.acme import RELOAD
from ..edge.status_page import PAGE
from ..host import Host
from ..pillar.edge import METRICS_PORT, METRICS_SOCKET
from ..pillar.source import parse_source
from ..run.programs import managers_of

METRICS_UNIT = "/etc/systemd/system/wsgi-metrics.socket"


def plan_of(host: Host) -> dict[str, Any]:
    """Return what ``wsgi/init.sls`` needs, as ``wsgi.plan`` documents it. Raises ``WsgiError`` where pillar is not known."""
    settings = host.settings
    # Apps with domains first: a default site is free before another app takes it.
    apps = sorted(settings.apps, key=lambda name: (not settings.apps[name]["domains"], name))
    gone = set(host.known_apps()) - set(settings.apps) - settings.broken - set(settings.absent)
    servers = sorted({app["server"] for app in settings.apps.values()})
    managers = sorted({name for app in settings.apps.values() for name in managers_of(app)})
    tools = sorted({tool for app in settings.apps.values() for tool in _tools(app)})
    acme = _sls(
        "acme",
        any(site.tls and site.tls["certificate"] == "acme" for site in settings.sites.values()),
        # The certificate of an app that has a problem must still be renewed.
        os.path.exists(RELOAD) and not settings.broken,
    )
    metrics = _sls("metrics", settings.nginx["metrics"], os.path.exists(METRICS_UNIT))
    return {
        "host_wide": settings.host_wide,
        "apps": [
            {
                "name": name,
                "process_manager": settings.apps[name]["process_manager"],
                "tools": sorted(_tools(settings.apps[name])),
            }
            for name in apps
        ],
        "absent": {
            **{name: settings.defaults["purge"] for name in sorted(gone)},
            **{name: app["purge"] for name, app in settings.absent.items()},
        },
        "sls": [f"wsgi.{name}" for name in ("common", "nginx", acme, *servers, *managers, *tools, metrics) if name],
        "acme": acme,
        "manages_nginx": settings.nginx["manage"],
        "family": host.family,
        "metrics": metrics,
        "metrics_port": METRICS_PORT,
        "metrics_socket": METRICS_SOCKET,
        "status_page": bool(settings.status_page) or os.path.exists(PAGE),
    }


def _sls(name: str, needed: bool, installed: bool) -> str | None:
    """Return the name of the sls that installs something, or of the one that removes it, or None."""
    return name if needed else f"{name}.absent" if installed else None


def _tools(app: Mapping[str, Any]) -> set[str]:
    """Return the names of the sls that an app's release needs besides Python."""
    git = parse_source(app["source"]).kind == "git"
    return {tool for tool, needed in (("git", git), ("uv", app["installer"] == "uv")) if needed}
