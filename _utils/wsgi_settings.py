"""
What pillar asks for: merged, validated, and never touched again.

This module is pure: it reads no file and starts nothing, so that all of its rules can be
tested without a machine. The defaults live in ``wsgi/defaults.yaml``, what is known of each
server in ``wsgi/servers.yaml``, and the schema here.
"""

import copy
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Callable, Optional

# Linux user names have at most 32 characters, five of which are `wsgi-`.
APP_NAME = re.compile(r"[a-z][a-z0-9_-]{0,26}")
USER_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
DOMAIN = re.compile(
    r"(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
    re.IGNORECASE,
)
APPLICATION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
NGINX_SIZE = re.compile(r"\d+[kKmMgG]?")
OPTION_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")

# The settings that reach the process. A change of any other one makes no new generation.
PROCESS_SETTINGS = (
    "server",
    "process_manager",
    "application",
    "user",
    "workers",
    "threads",
    "request_timeout",
    "graceful_timeout",
    "max_requests",
    "env",
)


@dataclass(frozen=True)
class Rule:
    """What one key may hold: a test of its value, and the words that say what passes."""

    allowed: str
    test: Callable[[Any], bool]


def _integer(low, high):
    return Rule(
        f"an integer from {low} to {high}",
        lambda value: type(value) is int and low <= value <= high,
    )


def _matching(pattern, allowed):
    return Rule(
        allowed, lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None
    )


def _one_line(value):
    return isinstance(value, str) and value != "" and value.isprintable()


def _list_of(test):
    return lambda value: isinstance(value, list) and all(test(item) for item in value)


BOOLEAN = Rule("true or false", lambda value: isinstance(value, bool))
MAPPING = Rule("a mapping", lambda value: isinstance(value, Mapping))

HEALTH = {
    "path": Rule(
        "a path that begins with /",
        lambda value: _one_line(value) and value.startswith("/") and " " not in value,
    ),
    "status": _integer(100, 599),
    "deadline": _integer(1, 3600),
    "host": _matching(DOMAIN, "a host name"),
}

APP = {
    "state": Rule("present or absent", lambda value: value in ("present", "absent")),
    "server": Rule("a server's name", _one_line),
    "process_manager": Rule(
        "a process manager's name, or a mapping of servers to them",
        lambda value: value is None or _one_line(value) or isinstance(value, Mapping),
    ),
    "application": _matching(APPLICATION, "module:callable"),
    "source": Rule(
        "a folder that Salt serves, salt://…",
        lambda value: _one_line(value) and value.startswith("salt://") and len(value) > 7,
    ),
    "requirements": Rule(
        "a file in the source, or a list of requirements",
        lambda value: (_one_line(value) and not value.startswith(("/", "-")) and ".." not in value)
        or _list_of(lambda item: _one_line(item) and not item.startswith("-"))(value),
    ),
    "python": Rule(
        "an interpreter's name or absolute path",
        lambda value: isinstance(value, str)
        and re.fullmatch(r"(/[\w./-]+/)?python[\w.-]*", value) is not None,
    ),
    "user": Rule(
        "a user's name, not root",
        lambda value: value is None
        or (isinstance(value, str) and USER_NAME.fullmatch(value) is not None and value != "root"),
    ),
    "domains": Rule(
        "a list of host names, of which the first label may be *",
        _list_of(lambda item: isinstance(item, str) and DOMAIN.fullmatch(item) is not None),
    ),
    "listen": _integer(1, 65535),
    "workers": _integer(1, 1024),
    "threads": _integer(1, 1024),
    "request_timeout": _integer(1, 86400),
    "graceful_timeout": _integer(1, 86400),
    "max_requests": _integer(0, 2**31 - 1),
    "env": MAPPING,
    "health": MAPPING,
    "server_options": MAPPING,
    "keep_releases": _integer(1, 1000),
    "purge": BOOLEAN,
}

NGINX = {
    "client_max_body_size": _matching(NGINX_SIZE, "a size in nginx's words, e.g. 10m"),
    "default_site": BOOLEAN,
}

TOP = ("apps", "defaults", "nginx")


@dataclass
class Settings:
    """
    What pillar came to.

    apps
        Every app without a problem, by name: a dict with a value for each key of ``APP``.
    absent
        The names of those marked ``state: absent``, to their merged settings.
    nginx
        The shared proxy's settings.
    problems
        Sentences, each beginning with the pillar key it is about.
    broken
        The names of the apps that have a problem.
    host_wide
        Whether a problem concerns the whole host, so that nothing may be touched.
    """

    apps: dict = field(default_factory=dict)
    absent: dict = field(default_factory=dict)
    nginx: dict = field(default_factory=dict)
    defaults: dict = field(default_factory=dict)
    problems: list = field(default_factory=list)
    broken: set = field(default_factory=set)
    host_wide: bool = False


def load(pillar, defaults, os_family, servers):
    """
    Merge and validate what pillar says below ``wsgi``.

    pillar : Any
        What stands under the pillar key ``wsgi``; anything at all, as users write it.
    defaults, os_family, servers : dict
        The contents of ``wsgi/defaults.yaml``, ``wsgi/os_family/<family>.yaml`` and
        ``wsgi/servers.yaml``.

    Returns a ``Settings``; problems are returned in it, all of them at once, never raised.

    .. code-block:: python

        >>> load({"apps": {"shop": {"server": "unicorn"}}}, defaults, debian, servers).problems
        ["wsgi:apps:shop:server: 'unicorn' is not a server; did you mean 'gunicorn'? (uwsgi, gunicorn)",
         'wsgi:apps:shop:application: missing; it must be module:callable',
         'wsgi:apps:shop:source: missing; it must be a folder that Salt serves, salt://…']
    """
    return _Loader(defaults, os_family, servers).load(pillar)


def merge(*layers):
    """
    Merge mappings into a new one; a later one wins, mappings within are merged in turn.

    layers : Mapping
        Lowest precedence first. A list replaces a list.

    Returns a dict that shares nothing with the layers.

    .. code-block:: python

        >>> merge({"health": {"path": "/", "status": 200}}, {"health": {"path": "/up"}})
        {'health': {'path': '/up', 'status': 200}}
    """
    merged = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
                merged[key] = merge(merged[key], value)
            else:
                merged[key] = copy.deepcopy(value)
    return merged


def user_of(name, app):
    """The name of the user that runs an app: the one it names, or one of its own."""
    return app["user"] or f"wsgi-{name}"


def manager_of(app, servers):
    """The name of the process manager that holds an app under the server it has now."""
    manager = app["process_manager"]
    if isinstance(manager, Mapping):
        manager = manager.get(app["server"])
    return manager or servers[app["server"]]["process_managers"][0]


class _Loader:
    def __init__(self, defaults, os_family, servers):
        self.defaults = defaults
        self.os_family = os_family
        self.servers = servers
        self.settings = Settings()

    def load(self, pillar):
        settings = self.settings
        top = self._mapping("wsgi", pillar)
        self._known("wsgi", top, TOP)
        nginx = self._mapping("wsgi:nginx", top.get("nginx"))
        self._check("wsgi:nginx", nginx, NGINX)
        settings.nginx = merge(self.defaults["nginx"], nginx)
        own_defaults = self._mapping("wsgi:defaults", top.get("defaults"))
        settings.host_wide = bool(settings.problems)
        self._check_app("wsgi:defaults", own_defaults)
        defaults_broken = len(settings.problems) > 0
        lower = merge(self.os_family["app"], self.defaults["app"])
        if not defaults_broken:
            settings.defaults = merge(lower, own_defaults)
        else:
            settings.defaults = lower
        apps = self._mapping("wsgi:apps", top.get("apps"))
        settings.host_wide = settings.host_wide or not isinstance(top.get("apps") or {}, Mapping)
        for name, own in apps.items():
            before = len(settings.problems)
            merged = self._app(name, own)
            if defaults_broken or len(settings.problems) > before:
                settings.broken.add(str(name))
            elif merged["state"] == "absent":
                settings.absent[name] = merged
            else:
                settings.apps[name] = merged
        self._clashes()
        for name in settings.broken:
            settings.apps.pop(name, None)
        return settings

    def _app(self, name, own):
        key = f"wsgi:apps:{name}"
        if not isinstance(name, str) or not APP_NAME.fullmatch(name):
            self._problem(
                key,
                f"{name!r} can't be an app's name: a lower-case letter, then at most 26 of a-z, "
                "0-9, - and _, because it names a user and files",
            )
            return None
        before = len(self.settings.problems)
        own = self._mapping(key, own)
        self._check_app(key, own)
        if len(self.settings.problems) > before and not isinstance(own.get("server", ""), str):
            return None
        layers = merge(self.settings.defaults, {k: v for k, v in own.items() if v is not None})
        if layers["state"] == "absent":
            return layers
        if layers["server"] in self.servers:
            self._check_server(key, layers)
        for required in ("application", "source"):
            if layers[required] is None:
                self._problem(f"{key}:{required}", f"missing; it must be {APP[required].allowed}")
        if len(self.settings.problems) == before:
            layers["user"] = user_of(name, layers)
            layers["process_manager"] = manager_of(layers, self.servers)
        return layers

    def _check_app(self, key, own):
        self._check(key, own, APP)
        server = own.get("server")
        if isinstance(server, str) and server not in self.servers:
            self._problem(
                f"{key}:server",
                f"{server!r} is not a server" + self._nearest(server, self.servers),
            )
        health = own.get("health")
        if isinstance(health, Mapping):
            self._check(f"{key}:health", health, HEALTH)
        env = own.get("env")
        if isinstance(env, Mapping):
            self._check_env(f"{key}:env", env)
        options = own.get("server_options")
        if isinstance(options, Mapping):
            self._check_options(f"{key}:server_options", options)
        manager = own.get("process_manager")
        if isinstance(manager, Mapping):
            self._known(f"{key}:process_manager", manager, self.servers, "server")
            for name, value in manager.items():
                if name in self.servers:
                    self._check_manager(f"{key}:process_manager:{name}", name, value)

    def _check_server(self, key, app):
        manager = app["process_manager"]
        if isinstance(manager, str):
            self._check_manager(f"{key}:process_manager", app["server"], manager)
        honours = self.servers[app["server"]]["honours"]
        for name in ("workers", "threads", "request_timeout", "graceful_timeout", "max_requests"):
            if name not in honours and app[name] != self.defaults["app"][name]:
                self._problem(
                    f"{key}:{name}", f"{app[name]!r} can't be honoured by {app['server']}; leave it out"
                )

    def _check_manager(self, key, server, manager):
        offered = self.servers[server]["process_managers"]
        if manager not in offered:
            self._problem(
                key,
                f"{manager!r} can't hold {server}" + self._nearest(manager, offered),
            )

    def _check_env(self, key, env):
        # Never the value: it may be a secret.
        for name, value in env.items():
            if not isinstance(name, str) or not ENV_NAME.fullmatch(name):
                self._problem(
                    key, f"{name!r} can't be a variable's name: letters, digits and _, no digit first"
                )
            elif isinstance(value, bool) or not isinstance(value, (str, int, float)):
                self._problem(
                    f"{key}:{name}",
                    f"a {type(value).__name__}; it must be a string or a number "
                    "(quote it if the app is to see the word)",
                )
            elif "\0" in str(value):
                self._problem(f"{key}:{name}", "holds a NUL byte, which no variable can")

    def _check_options(self, key, by_server):
        self._known(key, by_server, self.servers, "server")
        for server, options in by_server.items():
            if server not in self.servers:
                continue
            options = self._mapping(f"{key}:{server}", options)
            reserved = self.servers[server]["reserved"]
            for name, value in options.items():
                here = f"{key}:{server}:{name}"
                if not isinstance(name, str) or not OPTION_NAME.fullmatch(name):
                    self._problem(here, f"{name!r} can't be an option's name")
                elif name in reserved:
                    instead = reserved[name]
                    self._problem(
                        here,
                        "is the formula's own; "
                        + (f"set {instead!r} instead" if instead else "leave it out"),
                    )
                elif not _option_value(value):
                    self._problem(
                        here, f"{value!r} must be a one-line string, a number, true, false or a list of them"
                    )

    def _clashes(self):
        """Two apps that nginx could not tell apart."""
        seen = {}
        for name, app in self.settings.apps.items():
            for domain in [domain.lower() for domain in app["domains"]] or [None]:
                other = seen.setdefault((app["listen"], domain), name)
                if other == name:
                    continue
                what = f"{domain!r}" if domain else "the default site (no domains)"
                for one, two in ((name, other), (other, name)):
                    self._problem(
                        f"wsgi:apps:{one}:domains",
                        f"{what} on port {app['listen']} is {two}'s already",
                    )
                    self.settings.broken.add(one)

    def _check(self, key, mapping, rules):
        """Each key known, each value as its rule wants it. None means: not said."""
        self._known(key, mapping, rules)
        for name, value in mapping.items():
            rule = rules.get(name)
            if rule and value is not None and not rule.test(value):
                self._problem(f"{key}:{name}", f"{value!r} must be {rule.allowed}")

    def _known(self, key, mapping, known, noun="key"):
        for name in mapping:
            if name not in known:
                self._problem(f"{key}:{name}", f"not a {noun}" + self._nearest(name, known))

    def _mapping(self, key, value):
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            self._problem(key, f"a {type(value).__name__}; it must be a mapping")
            return {}
        return value

    def _problem(self, key, sentence):
        self.settings.problems.append(f"{key}: {sentence}")

    @staticmethod
    def _nearest(found, known):
        names = [str(name) for name in known]
        near = difflib.get_close_matches(str(found).lower(), names, n=1, cutoff=0.5)
        return (f"; did you mean {near[0]!r}?" if near else ";") + f" ({', '.join(names)})"


def _option_value(value):
    if isinstance(value, list):
        return all(_option_value(item) and not isinstance(item, list) for item in value)
    if isinstance(value, str):
        return value.isprintable()
    return isinstance(value, (bool, int, float))


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


def health_host(app) -> Optional[str]:
    """The Host header that a health check carries: its own, the first domain, or localhost."""
    named = [domain for domain in app["domains"] if not domain.startswith("*")]
    return app["health"].get("host") or (named[0] if named else "localhost")
