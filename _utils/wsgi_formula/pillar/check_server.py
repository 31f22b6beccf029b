"""
Check an app's merged settings against the row of its server.

This module is pure: it reads no file and starts nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import Problem
from .app import PORTABLE_SETTINGS, App
from .check import nearest
from .rules import describe_name
from .schema import COMMAND_PLACEHOLDERS
from .servers import describe_vulnerabilities


def describe_unavailable(app: App, servers: Mapping[str, Any], system: str) -> str:
    """
    Return why an app's server is not available on a system, or "" where it is.

    app : App
    servers : dict
        The rows of ``wsgi/servers.yaml``, as the system has them.
    system : str
        Salt's grain ``osfinger``, such as ``Debian-12``.
    """
    reason = app.row.get("unavailable")
    if not reason:
        return ""
    available = ", ".join(name for name, row in servers.items() if "unavailable" not in row)
    return f"{app['server']!r} is not available on {system}: {reason}; choose another server ({available})"


def server_conflicts(key: str, app: App, servers: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[Problem]:
    """
    Yield the problems of settings that an app's server does not support.

    key : str
        The app's pillar key.
    app : App
    servers : dict
        The rows of ``wsgi/servers.yaml``, as the system has them.
    defaults : dict
        The value of each key where pillar has none.
    """
    server, row, interface = app["server"], app.row, app["interface"]
    if interface not in row["interfaces"]:
        others = ", ".join(name for name, other in servers.items() if interface in other["interfaces"])
        message = f"{server} does not support interface {interface!r}; choose another server ({others})"
        yield Problem(f"{key}:interface", message)
    if app["install"] not in row["install"]:
        message = f"{app['install']!r} is not available for {server} ({', '.join(row['install'])})"
        yield Problem(f"{key}:install", message)
    supported = app.supported
    for name in PORTABLE_SETTINGS:
        if name not in supported and app[name] != defaults[name]:
            under = f" with interface {interface!r}" if name in row["honours"] and server != "command" else ""
            yield Problem(
                f"{key}:{name}", f"{server} does not support {name}{under}; leave it out (found: {app[name]!r})"
            )
    version = _version_conflict(app)
    if version:
        yield Problem(f"{key}:version", version)
    if server == "command":
        known = sorted({*COMMAND_PLACEHOLDERS, *PORTABLE_SETTINGS})
        for name in sorted(app.placeholders - {*known}):
            yield Problem(f"{key}:command", f"unknown placeholder '{{{describe_name(name)}}}'" + nearest(name, known))


def describe_max_requests_conflict(app: App) -> str:
    """
    Return why an app with one worker cannot have its ``max_requests``, or "" where it can.

    app : App
    """
    if not (app.replaces_late and app["max_requests"] and app["workers"] == 1 and "max_requests" in app.supported):
        return ""
    return (
        f"{app['max_requests']} with workers: 1 would leave no worker to serve while the next one loads the app, because "
        f"{app['server']} stops the old one first; set workers to 2 or more, or max_requests to 0"
    )


def _version_conflict(app: App) -> str:
    server, row = app["server"], app.row
    if app.server_requirements:
        message = describe_vulnerabilities(server, app.server_version or "", row)
        return "" if app["allow_vulnerable"] else message
    if not isinstance(app["version"], str):
        return ""
    instead = ", or set install to environment" if row["package"] and "environment" in row["install"] else ""
    return f"{app['version']!r} has no effect, because pip does not install {server} here; leave it out{instead}"
