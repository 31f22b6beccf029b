"""
What an app's settings mean under the server that it has.

This module is pure: it reads no file and starts nothing.
"""

import re
from collections.abc import Mapping
from typing import Any

from .schema import PLACEHOLDER

# The settings that reach the process. A change of any other one makes no new generation.
PROCESS_SETTINGS = (
    "server",
    "process_manager",
    "install",
    "application",
    "interface",
    "command",
    "user",
    "workers",
    "threads",
    "preload",
    "request_timeout",
    "graceful_timeout",
    "max_requests",
    "memory_limit",
    "env",
    "processes",
    "schedule",
    "metrics",
)

# The settings that mean the same under every server, or are refused.
PORTABLE_SETTINGS = (
    "workers",
    "threads",
    "preload",
    "request_timeout",
    "graceful_timeout",
    "max_requests",
    "memory_limit",
)


def user_of(name, app):
    """The name of the user that runs an app: the one it names, or one of its own."""
    return app["user"] or f"wsgi-{name}"


def install_of(app, servers):
    """Where an app's server comes from: ``distribution`` or ``environment``."""
    return app["install"] or servers[app["server"]]["install"][0]


def version_of(app, servers):
    """The version of an app's server that pip is to install: the app's word on it, or the default."""
    version = app["version"]
    if isinstance(version, Mapping):
        version = version.get(app["server"])
    return version or servers[app["server"]]["version"]


def requirement_of(app, servers):
    """What pip is to install for an app's server, a list; empty for the distribution's."""
    row = servers[app["server"]]
    if row["package"] is None or install_of(app, servers) == "distribution":
        return []
    return [f"{row['package']}=={version_of(app, servers)}", *row.get("with", {}).get(app["interface"], [])]


def single_process(app, servers):
    """Whether an app's server has one process only, so that its workers are programs of their own."""
    return servers[app["server"]].get("spawned", False) and "workers" not in placeholders(app)


def supported(app, servers):
    """The neutral settings that an app's server can keep: a dict of them to what they become."""
    honours = servers[app["server"]]["honours"].items()
    honours = {name: word.get(app["interface"]) if isinstance(word, dict) else word for name, word in honours}
    honours = {name: word for name, word in honours.items() if word}
    if app["server"] == "command":
        if not single_process(app, servers):
            honours = {"graceful_timeout": honours["graceful_timeout"]}
        honours.update({name: f"{{{name}}}" for name in PORTABLE_SETTINGS if name in placeholders(app)})
    return honours


def replaces_late(app: Mapping, servers: Mapping) -> bool:
    """Return whether a worn worker of an app ends before its successor has loaded the app."""
    late = servers[app["server"]].get("replaces_late", False)
    if isinstance(late, bool):
        return late
    own = app["server_options"].get(app["server"], {})
    return any(name in own for name in late) or ("threads" in late and app["threads"] > 1)


def long_options(options):
    """
    A server's own options as words of its command line.

    options : dict
        ``server_options`` of one server.

    Returns a list of str.

    .. code-block:: python

        >>> long_options({"backlog": 2048, "ws": False, "access-log": True})
        ['--backlog', '2048', '--no-ws', '--access-log']
    """
    words = []
    for name, value in options.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, bool):
                words.append(f"--{name}" if item else f"--no-{name}")
            else:
                words += [f"--{name}", str(item)]
    return words


def serving(app, row, name):
    """Of a setting that a server keeps for another interface."""
    return f" for {app['interface']}" if name in row["honours"] and app["server"] != "command" else ""


def vulnerabilities(row, version):
    """
    What is known against a version of a server.

    row : dict
        Of ``wsgi/servers.yaml``.
    version : str

    Returns a list of CVE numbers.

    .. code-block:: python

        >>> vulnerabilities(servers["waitress"], "3.0.0")
        ['CVE-2024-49768', 'CVE-2024-49769']
    """
    found = row.get("vulnerable", {}).items()
    return [cve for cve, mended in found if _release_number(version) < _release_number(mended)]


def vulnerable(server, version, found, row):
    """A sentence's end on a version with holes: what they are, and what to use instead."""
    return f"{version!r} of {server} has {', '.join(found)}; use {row['version']}, the default, or say allow_vulnerable: true"


def placeholders(app):
    """What an app's own command takes; nothing while another server runs it, and the command waits."""
    words = (app["server"] == "command" and app["command"]) or []
    return {name for word in words for name in PLACEHOLDER.findall(str(word))}


def _release_number(version):
    """2.0.30.post1 -> (2, 0, 30): enough to tell whether a mend is in it."""
    numbers = [int(number) for number in re.match(r"[0-9.]*", version)[0].split(".") if number]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def manager_of(app, servers):
    """The name of the process manager that holds an app under the server it has now."""
    manager = app["process_manager"]
    if isinstance(manager, Mapping):
        manager = manager.get(app["server"])
    return manager or servers[app["server"]]["process_managers"][0]


def process_settings(app):
    """
    The part of an app's settings that decides its process.

    app : dict
        An app as ``Settings.apps`` holds it.

    Returns a dict; two apps for which it is equal run the same process.
    """
    chosen: dict[str, Any] = {name: app[name] for name in PROCESS_SETTINGS}
    chosen["server_options"] = app["server_options"].get(app["server"]) or {}
    return chosen


def health_host(app):
    """The Host header that a health check carries: its own, the first domain, or localhost."""
    named = [domain for domain in app["domains"] if not domain.startswith("*")]
    return app["health"].get("host") or (named[0] if named else "localhost")
