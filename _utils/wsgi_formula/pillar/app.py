"""
The settings of one app, and their meaning under the server that the app has.

This module is pure: it reads no file and starts nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .schema import PLACEHOLDER

# The settings that reach the process. A generation's id depends on them, on the options and the row of the app's server,
# on its release, and on the formula's templates: see desired_id in run/prepare.py.
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

# The settings that mean the same under every server that supports them.
PORTABLE_SETTINGS = (
    "workers",
    "threads",
    "preload",
    "request_timeout",
    "graceful_timeout",
    "max_requests",
    "memory_limit",
)


class App(Mapping[str, Any]):
    """
    The merged settings of an app, a read-only mapping with a value for each of pillar's keys.

    name : str
        The app's key below ``wsgi:apps``.
    settings : Mapping
        The values by key.
    servers : dict
        The rows of ``wsgi/servers.yaml``, as the system has them.

    .. code-block:: python

        >>> shop["workers"], shop.supported["workers"], shop.replace(server="gunicorn").supported["workers"]
        (2, 'processes', 'workers')
    """

    def __init__(self, name: str, settings: Mapping[str, Any], servers: Mapping[str, Any]) -> None:
        self.name = name
        self._settings = dict(settings)
        self._servers = servers

    def __getitem__(self, key: str) -> Any:
        return self._settings[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._settings)

    def __len__(self) -> int:
        return len(self._settings)

    def replace(self, **changes: Any) -> App:
        """
        Return the app with other values for some keys.

        changes : Any
            The values by key; with another ``server``, the properties follow that server's row.
        """
        return App(self.name, {**self._settings, **changes}, self._servers)

    @property
    def row(self) -> dict[str, Any]:
        """The row of the app's server in ``wsgi/servers.yaml``."""
        return self._servers[self["server"]]

    @property
    def own_options(self) -> dict[str, Any]:
        """The part of ``server_options`` for the app's server."""
        return self["server_options"].get(self["server"]) or {}

    @property
    def process_settings(self) -> dict[str, Any]:
        """The settings that decide the app's process: apps for which they are equal run the same process."""
        settings: dict[str, Any] = {key: self[key] for key in PROCESS_SETTINGS}
        settings["server_options"] = self.own_options
        return settings

    @property
    def placeholders(self) -> set[str]:
        """The names in braces in ``command``; none under another server, which does not use ``command``."""
        words = (self["server"] == "command" and self["command"]) or []
        return {name for word in words for name in PLACEHOLDER.findall(str(word))}

    @property
    def single_process(self) -> bool:
        """Whether the app's server has one process only, so that each worker is a program of its own."""
        return self.row.get("spawned", False) and "workers" not in self.placeholders

    @property
    def supported(self) -> dict[str, str]:
        """The portable settings that the app's server supports, and what each becomes, as in the server's row."""
        interface = self["interface"]
        forms = self.row["honours"].items()
        supported = {key: form.get(interface, "") if isinstance(form, dict) else form for key, form in forms}
        supported = {key: form for key, form in supported.items() if form}
        if self["server"] == "command":
            if not self.single_process:
                supported = {"graceful_timeout": supported["graceful_timeout"]}
            placeholders = self.placeholders
            supported.update({key: f"{{{key}}}" for key in PORTABLE_SETTINGS if key in placeholders})
        return supported

    @property
    def replaces_late(self) -> bool:
        """Whether the server stops a worker that is due for replacement before the next one has loaded the app."""
        late = self.row.get("replaces_late", False)
        if isinstance(late, bool):
            return late
        return any(option in self.own_options for option in late) or ("threads" in late and self["threads"] > 1)

    @property
    def server_version(self) -> str | None:
        """The version of the server that pip is to install: pillar's, or the default; None for what pip has not."""
        version = self["version"]
        if isinstance(version, Mapping):
            version = version.get(self["server"])
        return version or self.row["version"]

    @property
    def server_requirements(self) -> list[str]:
        """The requirements that pip installs for the server; none for a server of the distribution."""
        row = self.row
        if row["package"] is None or self["install"] == "distribution":
            return []
        return [f"{row['package']}=={self.server_version}", *row.get("with", {}).get(self["interface"], [])]

    @property
    def health_host(self) -> str:
        """The Host header of a health check: ``health:host``, else the first domain, else ``localhost``."""
        domains = [domain for domain in self["domains"] if not domain.startswith("*")]
        return self["health"].get("host") or (domains[0] if domains else "localhost")
