"""
Load pillar: check what is below ``wsgi``, merge it with the defaults, and complete it.

This module is pure: it reads no file and starts nothing, so that all of its rules can be tested without a machine. The
schema lives in ``schema`` and ``edge``, the defaults in ``wsgi/defaults.yaml``, the servers in ``wsgi/servers.yaml``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import Problem
from . import edge_defaults, sites
from .app import App
from .check_app import PROGRAM_RULES, AppChecker
from .check_server import describe_max_requests_conflict, describe_unavailable, server_conflicts
from .edge import NGINX, STATUS_PAGE
from .rules import describe, describe_name
from .schema import (
    APP,
    APP_NAME,
    HOOK_DEFAULTS,
    HOOKS,
    PROCESS_DEFAULTS,
    RESERVED_NAMES,
    SCHEDULED_DEFAULTS,
    TOP,
)
from .settings import Settings, merge

PROGRAM_DEFAULTS = {"processes": PROCESS_DEFAULTS, "schedule": SCHEDULED_DEFAULTS}


def load(
    pillar: Any,
    defaults: Mapping[str, Any],
    os_family: Mapping[str, Any],
    servers: Mapping[str, Any],
    system: str = "",
) -> Settings:
    """
    Return the settings of a machine, with all problems of the pillar. Nothing is raised.

    pillar : Any
        The value of the pillar key ``wsgi``, whatever it is.
    defaults, os_family, servers : dict
        The contents of ``wsgi/defaults.yaml``, ``wsgi/os_family/<family>.yaml`` and
        ``wsgi/servers.yaml``, as the system has them.
    system : str
        Salt's grain ``osfinger``, such as ``Debian-12``.

    .. code-block:: python

        >>> load({"apps": {"shop": {"server": "unicorn"}}}, defaults, debian, servers).messages
        ["wsgi:apps:shop:server: 'unicorn' is not a server; did you mean 'gunicorn'? (uwsgi, gunicorn, …)",
         'wsgi:apps:shop:application: missing; it must be module:callable',
         'wsgi:apps:shop:source: missing; it must be salt://folder, git+https://…@revision, …']
    """
    return Loader(defaults, os_family, servers, system).load(pillar)


class Loader:
    """
    One walk through the pillar: the machine's keys, then each app, then what apps share.

    The arguments are those of ``load``.
    """

    def __init__(
        self,
        defaults: Mapping[str, Any],
        os_family: Mapping[str, Any],
        servers: Mapping[str, Any],
        system: str,
    ) -> None:
        self.defaults = defaults
        self.os_family = os_family
        self.servers = servers
        self.system = system
        self.checker = AppChecker(os_family, servers, system)
        self.settings = Settings(problems=self.checker.problems)
        self.own_defaults: dict[str, Any] = {}

    def load(self, pillar: Any) -> Settings:
        """Return the settings. A loader loads one pillar only."""
        settings, checker = self.settings, self.checker
        top = checker.check_mapping("wsgi", pillar)
        checker.check_names("wsgi", top, TOP)
        self._load_nginx(top.get("nginx"))
        self._load_status_page(top.get("status_page"))
        own_defaults = checker.check_mapping("wsgi:defaults", top.get("defaults"))
        apps = checker.check_mapping("wsgi:apps", top.get("apps"))
        if top.get("apps") is None and not settings.problems:
            # A pillar top file that no longer matches must not remove every app.
            checker.report("wsgi:apps", "missing; it must be a mapping, {} for no app at all")
        settings.host_wide = bool(settings.problems)
        self.own_defaults = checker.check_app("wsgi:defaults", own_defaults)
        defaults_broken = bool(settings.problems)
        settings.defaults = merge(self.os_family["app"], self.defaults["app"], self.own_defaults)
        loaded = {name: self._load_app(name, own) for name, own in apps.items()}
        if defaults_broken:
            settings.broken.update(loaded)
        valid = {name: app for name, app in loaded.items() if app and name not in settings.broken}
        settings.absent = {name: app for name, app in valid.items() if app["state"] == "absent"}
        settings.apps = {name: app for name, app in valid.items() if app["state"] == "present"}
        # One app with metrics is enough, also one with a problem, since it keeps running as it is.
        settings.nginx["metrics"] |= any(app["metrics"] for app in loaded.values() if app and app["state"] == "present")
        settings.sites, clashes = sites.group(settings.apps)
        self._leave_out([*clashes, *sites.port_clashes(settings.apps, settings.status_page, settings.nginx)])
        clashes = sites.page_clashes(settings.status_page, settings.apps, settings.nginx)
        settings.problems += clashes
        settings.host_wide |= bool(clashes)
        settings.broken = {describe_name(name) for name in settings.broken}
        return settings

    def _load_nginx(self, nginx: Any) -> None:
        own = self.checker.check_settings("wsgi:nginx", nginx, NGINX)
        self.settings.nginx = nginx = merge(self.defaults["nginx"], own)
        if nginx["proxy_protocol"] and not nginx["trusted_proxies"]:
            self.checker.report(
                "wsgi:nginx:trusted_proxies",
                f"missing; with proxy_protocol, it must be {NGINX['trusted_proxies'].allowed}",
            )

    def _load_status_page(self, page: Any) -> None:
        if page is not None:
            own = self.checker.check_settings("wsgi:status_page", page, STATUS_PAGE)
            self.settings.status_page = sites.whole_page(merge(self.defaults["status_page"], own))

    def _leave_out(self, clashes: list[Problem]) -> None:
        """Add the problems of apps that cannot be served together, and leave these apps out."""
        for problem in clashes:
            self.settings.problems.append(problem)
            self.settings.broken.add(problem.app)
            self.settings.apps.pop(problem.app, None)

    def _load_app(self, name: Any, own: Any) -> App | None:
        """Return an app, or None where its name is not valid."""
        key = f"wsgi:apps:{describe_name(name)}"
        before = len(self.settings.problems)
        app = None
        if not isinstance(name, str) or not APP_NAME.fullmatch(name):
            self.checker.report(
                key,
                f"{describe(name)} is not a valid app name; it must be a lower-case letter, then at most 26 of a-z, "
                "0-9, - and _, because it names a user and files",
            )
        elif name in RESERVED_NAMES:
            self.checker.report(key, f"{name!r} is reserved for a folder of the formula; choose another app name")
        else:
            app = self._merge_app(name, key, self.checker.check_mapping(key, own))
        if len(self.settings.problems) > before:
            self.settings.broken.add(name)
        return app

    def _merge_app(self, name: str, key: str, own: Mapping[str, Any]) -> App:
        """Return an app with the defaults of the machine and the servers, and report its problems."""
        merged = merge(self.settings.defaults, self.checker.check_app(key, own))
        app = App(name, merged, self.servers)
        if app["state"] == "absent":
            return app
        app = self._complete_server(app)
        if own.get("server") in (None, app["server"]):
            self._check_server(key, app)
        app = self._complete_max_requests(key, app, {**self.own_defaults, **own})
        self._check_required(key, app, own)
        app = _complete(app)
        if not (app["domains"] or self.settings.nginx["manage"]):
            self.checker.report(
                f"{key}:domains", "missing; with wsgi:nginx:manage: false, the default site is not the formula's"
            )
        for problem in edge_defaults.conflicts(key, app):
            # A value with a problem of its own is not in the merged settings.
            if not self.checker.has_problem(problem.key):
                self.settings.problems.append(problem)
        return app

    def _complete_server(self, app: App) -> App:
        """Return an app with its user, and with the process manager and the installation of its server."""
        manager = app["process_manager"]
        if isinstance(manager, Mapping):
            manager = manager.get(app["server"])
        return app.replace(
            user=app["user"] or f"wsgi-{app.name}",
            process_manager=manager or app.row["process_managers"][0],
            install=app["install"] or app.row["install"][0],
        )

    def _check_server(self, key: str, app: App) -> None:
        unavailable = describe_unavailable(app, self.servers, self.system)
        if unavailable:
            self.checker.report(f"{key}:server", unavailable)
            return
        self.checker.check_manager_of(f"{key}:process_manager", app["server"], app["process_manager"])
        self.settings.problems.extend(server_conflicts(key, app, self.servers, self.defaults["app"]))

    def _complete_max_requests(self, key: str, app: App, own: Mapping[str, Any]) -> App:
        """
        Return an app with ``max_requests`` off where it is not set and its server replaces workers late.

        own : dict
            The app's own settings and those of ``wsgi:defaults``.
        """
        if app.replaces_late and own.get("max_requests") is None:
            return app.replace(max_requests=0)
        conflict = describe_max_requests_conflict(app)
        if conflict:
            self.checker.report(f"{key}:max_requests", conflict)
        return app

    def _check_required(self, key: str, app: App, own: Mapping[str, Any]) -> None:
        """Report the settings that an app must have and pillar does not set at all."""
        for required in ("command" if app["server"] == "command" else "application", "source"):
            if app[required] is None and own.get(required) is None:
                self.checker.report(f"{key}:{required}", f"missing; it must be {APP[required].allowed}")
        for kind, rules in PROGRAM_RULES.items():
            for name, program in app[kind].items():
                where = f"{key}:{kind}:{name}"
                for required in ("command", *(["calendar"] if kind == "schedule" else [])):
                    if required not in program and not self.checker.has_problem(where):
                        self.checker.report(f"{where}:{required}", f"missing; it must be {rules[required].allowed}")
        for name in sorted({*app["processes"]} & {*app["schedule"]}):
            self.checker.report(
                f"{key}:schedule:{name}", "processes has this name too, and both would write the same log; rename one"
            )


def _complete(app: App) -> App:
    """Return an app with the defaults of the settings that consist of several."""
    programs = {
        kind: {name: merge(defaults, program) for name, program in app[kind].items()}
        for kind, defaults in PROGRAM_DEFAULTS.items()
    }
    hooks = {moment: [{**HOOK_DEFAULTS, **hook} for hook in app["hooks"].get(moment, [])] for moment in HOOKS}
    app = app.replace(hooks=hooks, tls=sites.whole_tls(app["tls"]), **programs)
    return app.replace(**edge_defaults.complete(app))
