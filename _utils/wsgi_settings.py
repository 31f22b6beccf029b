"""
What pillar asks for: merged, validated, and never touched again.

This module is pure: it reads no file and starts nothing, so that all of its rules can be
tested without a machine. The schema lives in ``wsgi_schema``, the defaults in
``wsgi/defaults.yaml``, what is known of each server in ``wsgi/servers.yaml``.
"""

import copy
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import wsgi_edge
import wsgi_schema
import wsgi_sites
from wsgi_schema import APP, PLACEHOLDER
from wsgi_schema_rules import byte_length, describe, describe_name, find_excess, find_flaw

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
NEUTRAL_SETTINGS = (
    "workers",
    "threads",
    "preload",
    "request_timeout",
    "graceful_timeout",
    "max_requests",
    "memory_limit",
)


# Packages that, by their own documentation or their maintainers, break when what they made
# crosses a fork().
FORK_HOSTILE = {
    "cassandra-driver": "https://docs.datastax.com/en/drivers/python/3.1/_sources/faq.txt",
    "confluent-kafka": "https://github.com/confluentinc/confluent-kafka-python/issues/351",
    "grpcio": "https://github.com/grpc/grpc/blob/master/doc/fork_support.md",
    "jax": "https://github.com/google/jax/pull/18989",
    "kafka-python": "https://github.com/dpkp/kafka-python/issues/1732",
    "opentelemetry-sdk": "https://opentelemetry-python.readthedocs.io/en/latest/examples/fork-process-model/README.html",
    "polars": "https://docs.pola.rs/user-guide/misc/multiprocessing/",
    "psycopg": "https://github.com/psycopg/psycopg/blob/master/docs/advanced/async.rst",
    "psycopg2": "https://github.com/psycopg/psycopg2/blob/master/doc/src/usage.rst",
    "psycopg2-binary": "https://github.com/psycopg/psycopg2/blob/master/doc/src/usage.rst",
    "pymongo": "https://pymongo.readthedocs.io/en/4.7.1/faq.html",
    "pyzmq": "https://github.com/zeromq/pyzmq/blob/main/zmq/sugar/context.py",
    "scylla-driver": "https://python-driver.docs.scylladb.com/stable/faq.html",
    "torch": "https://github.com/pytorch/pytorch/blob/main/docs/source/notes/multiprocessing.rst",
}
# Those that break when threads share it.
THREAD_HOSTILE = {"pyzmq": "https://github.com/zeromq/libzmq/blob/master/doc/zmq_socket.txt"}


@dataclass
class Settings:
    """
    What pillar came to.

    apps
        Every app without a problem, by name: a dict with a value for each key of ``APP``.
    absent
        The names of those marked ``state: absent``, to their merged settings.
    sites
        nginx's server blocks, ``wsgi_sites.Site`` by id.
    nginx
        The shared proxy's settings.
    status_page
        Where the status page is, or None.
    defaults
        What an app gets that says nothing.
    problems
        Sentences, each beginning with the pillar key it is about.
    broken
        The names of the apps that have a problem.
    host_wide
        Whether a problem concerns the whole host, so that nothing may be touched.
    """

    apps: dict = field(default_factory=dict)
    absent: dict = field(default_factory=dict)
    sites: dict = field(default_factory=dict)
    nginx: dict = field(default_factory=dict)
    status_page: Any = None
    defaults: dict = field(default_factory=dict)
    problems: list = field(default_factory=list)
    broken: set = field(default_factory=set)
    host_wide: bool = False


def load(pillar, defaults, os_family, servers, system=""):
    """
    Merge and validate what pillar says below ``wsgi``.

    pillar : Any
        What stands under the pillar key ``wsgi``; anything at all, as users write it.
    defaults, os_family, servers : dict
        The contents of ``wsgi/defaults.yaml``, ``wsgi/os_family/<family>.yaml`` and
        ``wsgi/servers.yaml``, as the system has them.
    system : str
        Salt's grain ``osfinger``, such as ``Debian-12``.

    Returns a ``Settings``; problems are returned in it, all of them at once, never raised.

    .. code-block:: python

        >>> load({"apps": {"shop": {"server": "unicorn"}}}, defaults, debian, servers).problems
        ["wsgi:apps:shop:server: 'unicorn' is not a server; did you mean 'gunicorn'? (uwsgi, gunicorn, …)",
         'wsgi:apps:shop:application: missing; it must be module:callable',
         'wsgi:apps:shop:source: missing; it must be a folder that Salt serves, salt://…']
    """
    return _Loader(defaults, os_family, servers, system).load(pillar)


def merge(*layers):
    """
    Merge mappings into a new one; a later one wins, mappings within are merged in turn.

    layers : Mapping
        Lowest precedence first. A list replaces a list; None replaces nothing.

    Returns a dict that shares nothing with the layers.

    .. code-block:: python

        >>> merge({"health": {"path": "/", "status": 200}}, {"health": {"path": "/up"}})
        {'health': {'path': '/up', 'status': 200}}
    """
    merged = {}
    for layer in layers:
        for key, value in layer.items():
            if value is None:
                merged.setdefault(key)
            elif isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
                merged[key] = merge(merged[key], value)
            else:
                merged[key] = copy.deepcopy(value)
    return merged


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


def spawned(app, servers):
    """Whether an app's server has one process only, so that its workers are programs of their own."""
    return servers[app["server"]].get("spawned", False) and "workers" not in _placeholders(app)


def honoured(app, servers):
    """The neutral settings that an app's server can keep: a dict of them to what they become."""
    honours = servers[app["server"]]["honours"].items()
    honours = {name: word.get(app["interface"]) if isinstance(word, dict) else word for name, word in honours}
    honours = {name: word for name, word in honours.items() if word}
    if app["server"] == "command":
        if not spawned(app, servers):
            honours = {"graceful_timeout": honours["graceful_timeout"]}
        honours.update({name: f"{{{name}}}" for name in NEUTRAL_SETTINGS if name in _placeholders(app)})
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


def _serving(app, row, name):
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


def warnings(key, app, requirements):
    """
    What an app may have and is likely to break it.

    key : str
        The app's pillar key.
    app : dict
        As ``Settings.apps`` holds it.
    requirements : list of str
        The lines of its requirements.

    Returns a list of sentences, each beginning with the pillar key it is about.

    .. code-block:: python

        >>> warnings("wsgi:apps:shop", {**app, "threads": 4, "preload": False}, ["pyzmq==27.1.0"])
        ['wsgi:apps:shop:threads: pyzmq may break where threads share what it made; 1 is safe']
    """
    packages = {package_name(line) for line in requirements}
    threads = [name for name in THREAD_HOSTILE if name in packages and app["threads"] > 1]
    preload = [name for name in FORK_HOSTILE if name in packages and app["preload"]]
    found = [f"{key}:threads: {name} may break where threads share what it made; 1 is safe" for name in threads]
    found += [f"{key}:preload: {name} may break when what it made crosses a fork; false is safe" for name in preload]
    return found


def package_name(requirement):
    """
    The name of the package that a requirement asks for, as
    https://packaging.python.org/en/latest/specifications/name-normalization/ has it; an empty
    str for a line that names none.
    """
    found = re.match(r"[A-Za-z0-9][\w.-]*", requirement.strip())
    return re.sub(r"[-_.]+", "-", found[0]).lower() if found else ""


def vulnerable(server, version, found, row):
    """A sentence's end on a version with holes: what they are, and what to use instead."""
    return f"{version!r} of {server} has {', '.join(found)}; use {row['version']}, the default, or say allow_vulnerable: true"


def _placeholders(app):
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


# The rules and the defaults of each kind of program that an app may have beside its server.
_PROGRAMS = {
    "processes": (wsgi_schema.PROCESS, wsgi_schema.PROCESS_DEFAULTS),
    "schedule": (wsgi_schema.SCHEDULED, wsgi_schema.SCHEDULED_DEFAULTS),
}


class _Loader:
    """One pass over the pillar. A value with a problem is left out of what is merged, so that
    the checks after it find each key with a value that its rule allows."""

    def __init__(self, defaults, os_family, servers, system):
        self.defaults = defaults
        self.os_family = os_family
        self.servers = servers
        self.system = system
        self.settings = Settings()
        self.own_defaults = {}

    def load(self, pillar):
        settings = self.settings
        top = self._mapping("wsgi", pillar)
        self._known("wsgi", top, wsgi_schema.TOP)
        nginx = self._check("wsgi:nginx", top.get("nginx"), wsgi_schema.NGINX)
        settings.nginx = merge(self.defaults["nginx"], nginx)
        self._check_trust("wsgi:nginx", settings.nginx)
        if top.get("status_page") is not None:
            page = self._check("wsgi:status_page", top["status_page"], wsgi_schema.STATUS_PAGE)
            settings.status_page = wsgi_sites.whole_page(merge(self.defaults["status_page"], page))
        own_defaults = self._mapping("wsgi:defaults", top.get("defaults"))
        apps = self._mapping("wsgi:apps", top.get("apps"))
        if top.get("apps") is None and not settings.problems:
            # A pillar top file that no longer matches must not take every app away.
            self._problem("wsgi:apps", "missing; it must be a mapping, {} for no app at all")
        settings.host_wide = bool(settings.problems)
        own_defaults = self.own_defaults = self._check_app("wsgi:defaults", own_defaults)
        defaults_broken = bool(settings.problems)
        settings.defaults = merge(self.os_family["app"], self.defaults["app"], own_defaults)
        found = {name: self._app(name, own) for name, own in apps.items()}
        if defaults_broken:
            settings.broken.update(found)
        sound = {name: app for name, app in found.items() if name not in settings.broken}
        settings.absent = {name: app for name, app in sound.items() if app["state"] == "absent"}
        settings.apps = {name: app for name, app in sound.items() if app["state"] == "present"}
        # One word is enough; an app's that has a problem too, since it is left as it is.
        settings.nginx["metrics"] |= any(app["metrics"] for app in found.values() if app and app["state"] == "present")
        settings.sites, clashes = wsgi_sites.group(settings.apps)
        for name, key, sentence in clashes + wsgi_sites.port_clashes(
            settings.apps, settings.status_page, settings.nginx
        ):
            self._problem(f"wsgi:apps:{name}:{key}", sentence)
            settings.broken.add(name)
            settings.apps.pop(name, None)
        self._check_status_page()
        settings.broken = {describe_name(name) for name in settings.broken}
        return settings

    def _check_trust(self, key, nginx):
        """Of the PROXY protocol only the word of those that are trusted counts."""
        if nginx["proxy_protocol"] and not nginx["trusted_proxies"]:
            self._problem(
                f"{key}:trusted_proxies",
                f"missing; with proxy_protocol, it must be {wsgi_schema.NGINX['trusted_proxies'].allowed}",
            )

    def _check_status_page(self):
        """A page in the way of apps or of others is nobody's mistake but pillar's as a whole."""
        settings = self.settings
        for key, sentence in wsgi_sites.page_clashes(settings.status_page, settings.apps, settings.nginx):
            self._problem(f"wsgi:status_page:{key}", sentence)
            settings.host_wide = True

    def _app(self, name, own):
        """An app's merged settings, or None where its name can't be one."""
        key = f"wsgi:apps:{describe_name(name)}"
        before = len(self.settings.problems)
        app = None
        if not isinstance(name, str) or not wsgi_schema.APP_NAME.fullmatch(name):
            self._problem(
                key,
                f"{describe(name)} can't be an app's name: a lower-case letter, then at most 26 of a-z, "
                "0-9, - and _, because it names a user and files",
            )
        elif name in wsgi_schema.RESERVED_NAMES:
            self._problem(key, f"{name!r} can't be an app's name: the formula has a folder of that name")
        else:
            app = self._merged(name, key, self._mapping(key, own))
        if len(self.settings.problems) > before:
            self.settings.broken.add(name)
        return app

    def _merged(self, name, key, own):
        app = merge(self.settings.defaults, self._check_app(key, own))
        if app["state"] == "absent":
            return app
        if own.get("server") in (None, app["server"]):
            self._check_server(key, app)
        self._settle_max_requests(key, app, {**self.own_defaults, **own})
        for required in ("command" if app["server"] == "command" else "application", "source"):
            if app[required] is None and own.get(required) is None:
                self._problem(f"{key}:{required}", f"missing; it must be {APP[required].allowed}")
        self._check_whole_programs(key, app)
        app["user"] = user_of(name, app)
        app["hooks"] = {moment: [_hook(said) for said in app["hooks"].get(moment, [])] for moment in wsgi_schema.HOOKS}
        for kind, (_, defaults) in _PROGRAMS.items():
            app[kind] = {name: merge(defaults, program) for name, program in app[kind].items()}
        app["tls"] = wsgi_sites.whole_tls(app["tls"])
        if not (app["domains"] or self.settings.nginx["manage"]):
            self._problem(f"{key}:domains", "missing; with wsgi:nginx:manage: false the default site is another hand's")
        app.update(wsgi_edge.whole(app))
        for where, sentence in wsgi_edge.problems(app):
            # What was said and had a problem is left out of what is merged.
            if not any(each.startswith(f"{key}:{where}") for each in self.settings.problems):
                self._problem(f"{key}:{where}", sentence)
        app["process_manager"] = manager_of(app, self.servers)
        app["install"] = install_of(app, self.servers)
        return app

    def _check_app(self, key, own):
        """The part of an app's own settings, or of wsgi:defaults, that has no problem."""
        said = self._check(key, own, APP)
        if said.get("server") not in (None, *self.servers):
            server = said.pop("server")
            self._problem(f"{key}:server", f"{describe(server)} is not a server" + _nearest(server, self.servers))
        if isinstance(said.get("tls"), str):
            said["tls"] = {"certificate": said["tls"]}
        if "env" in said:
            self._check_env(f"{key}:env", said["env"])
        if "hooks" in said:
            said["hooks"] = self._check_hooks(f"{key}:hooks", said["hooks"])
        for kind, (rules, _) in _PROGRAMS.items():
            if kind in said:
                said[kind] = self._check_programs(f"{key}:{kind}", said[kind], rules)
        if "server_options" in said:
            said["server_options"] = self._check_options(f"{key}:server_options", said["server_options"])
        if isinstance(said.get("version"), Mapping):
            said["version"] = self._check_versions(f"{key}:version", said["version"])
        if "process_manager" in said:
            said["process_manager"] = self._check_manager(f"{key}:process_manager", said["process_manager"])
        return said

    def _check_server(self, key, app):
        server, row = app["server"], self.servers[app["server"]]
        if "unavailable" in row:
            available = ", ".join(name for name, other in self.servers.items() if "unavailable" not in other)
            because = f"{row['unavailable']}; choose another one ({available})"
            self._problem(f"{key}:server", f"{server!r} is not available on {self.system}: {because}")
            return
        manager = app["process_manager"]
        if isinstance(manager, str):
            self._check_holds(f"{key}:process_manager", server, manager)
        if app["interface"] not in row["interfaces"]:
            others = [name for name, other in self.servers.items() if app["interface"] in other["interfaces"]]
            self._problem(
                f"{key}:interface", f"{app['interface']!r} is nothing that {server} can serve ({', '.join(others)})"
            )
        if app["install"] not in (None, *row["install"]):
            self._problem(f"{key}:install", f"{app['install']!r} is not to be had of {server} ({row['install'][0]})")
        honours = honoured(app, self.servers)
        for name in NEUTRAL_SETTINGS:
            if name not in honours and app[name] != self.defaults["app"][name]:
                self._problem(
                    f"{key}:{name}",
                    f"{app[name]!r} can't be honoured by {server}{_serving(app, row, name)}; leave it out",
                )
        self._check_version(key, app, row)
        if server == "command":
            self._check_command(f"{key}:command", app)

    def _settle_max_requests(self, key, app, said):
        """Where nobody would answer while the successor of a worn worker loads the app, none is ever worn."""
        if not replaces_late(app, self.servers):
            return
        if said.get("max_requests") is None:
            app["max_requests"] = 0
        elif app["max_requests"] and app["workers"] == 1 and "max_requests" in honoured(app, self.servers):
            self._problem(
                f"{key}:max_requests",
                f"{app['max_requests']} would leave nobody to answer while the next worker loads the app, because "
                f"{app['server']} ends the only one before; say workers: 2 or more, or max_requests: 0",
            )

    def _check_version(self, key, app, row):
        """A version that pip is to install must be one without a known hole."""
        if not requirement_of(app, self.servers):
            if isinstance(app["version"], str):
                self._problem(f"{key}:version", f"{app['version']!r} can't be had: {app['server']} is not pip's here")
            return
        version = version_of(app, self.servers)
        found = vulnerabilities(row, version)
        if found and not app["allow_vulnerable"]:
            self._problem(f"{key}:version", vulnerable(app["server"], version, found, row))

    def _check_versions(self, key, by_server):
        """The part of a mapping of servers to versions that has no problem."""
        self._known(key, by_server, self.servers, "server")
        for server, version in by_server.items():
            if version is not None and not wsgi_schema.is_version(version):
                self._problem(f"{key}:{server}", f"{describe(version)} must be a version, quoted, e.g. '23.0.0'")
        return {server: version for server, version in by_server.items() if wsgi_schema.is_version(version)}

    def _check_command(self, key, app):
        known = {*wsgi_schema.COMMAND_PLACEHOLDERS, *NEUTRAL_SETTINGS}
        for name in sorted(_placeholders(app) - known):
            self._problem(key, f"'{{{describe_name(name)}}}' stands for nothing" + _nearest(name, sorted(known)))

    def _check_manager(self, key, manager):
        """A process manager, or the part of a mapping of servers to them that has no problem."""
        if isinstance(manager, str):
            known = sorted({name for row in self.servers.values() for name in row["process_managers"]})
            if manager in known:
                return manager
            self._problem(key, f"{describe(manager)} is not a process manager" + _nearest(manager, known))
            return None
        self._known(key, manager, self.servers, "server")
        return {
            server: name
            for server, name in manager.items()
            if server in self.servers and name is not None and self._check_holds(f"{key}:{server}", server, name)
        }

    def _check_holds(self, key, server, manager):
        offered = self.servers[server]["process_managers"]
        if manager not in offered:
            self._problem(key, f"{describe(manager)} can't hold {server}" + _nearest(manager, offered))
            return False
        limit = self.os_family.get("process_managers", {}).get(manager)
        if limit and self.system not in limit["only_on"]:
            self._problem(key, f"{manager!r} is not to be had on {self.system}: {limit['because']}")
            return False
        return True

    def _check_env(self, key, env):
        # Never the value: it may be a secret.
        length = 0
        for name, value in env.items():
            if not isinstance(name, str) or not wsgi_schema.ENV_NAME.fullmatch(name):
                # {NAME=value} is a key, too.
                name = str(name).partition("=")[0]
                self._problem(key, f"{describe(name)} can't be a variable's name: {wsgi_schema.ENV_NAMES}")
            elif type(value) not in (str, int, float):
                self._problem(
                    f"{key}:{name}",
                    f"is {_kind(value)}; it must be a string or a number (quote it if the app is to see the word)",
                )
            else:
                length += byte_length(f"{name}={value}") + 1
                flaw = wsgi_schema.find_variable_flaw(name, str(value))
                if flaw:
                    self._problem(f"{key}:{describe_name(name)}", flaw)
        if length > wsgi_schema.ENVIRONMENT_LENGTH:
            most = wsgi_schema.ENVIRONMENT_LENGTH
            self._problem(key, f"its variables have {length} bytes, of which an environment can have {most}")

    def _check_hooks(self, key, hooks):
        """The part of ``hooks`` that has no problem."""
        self._known(key, hooks, wsgi_schema.HOOKS)
        return {
            moment: self._check_moment(f"{key}:{moment}", moment, commands)
            for moment, commands in hooks.items()
            if moment in wsgi_schema.HOOKS and commands is not None
        }

    def _check_moment(self, key, moment, commands):
        if not isinstance(commands, list):
            self._problem(key, f"is {_kind(commands)}; it must be a list of commands")
            return []
        sound = []
        for number, said in enumerate(commands, 1):
            if not isinstance(said, Mapping):
                said = {"command": said}
            hook = self._check(f"{key}:{number}", said, wsgi_schema.HOOK)
            if said.get("command") is None:
                self._problem(f"{key}:{number}:command", f"missing; it must be {wsgi_schema.COMMAND.allowed}")
            if hook.get("every") == "change" and moment == "build":
                self._problem(f"{key}:{number}:every", "'change' can't be of build, which belongs to the release")
            sound.append(hook)
        return [hook for hook in sound if "command" in hook]

    def _check_programs(self, key, programs, rules):
        """The part of ``processes`` or ``schedule`` that has no problem."""
        sound = {}
        for name, said in programs.items():
            if not isinstance(name, str) or not wsgi_schema.PROGRAM_NAME.fullmatch(name):
                self._problem(
                    f"{key}:{describe_name(name)}",
                    f"{describe(name)} can't be a name: a lower-case letter, then at most 31 of a-z, 0-9, - and _",
                )
            elif name in wsgi_schema.RESERVED_PROGRAMS:
                self._problem(f"{key}:{name}", f"{name!r} is the formula's own name")
            elif said is not None:
                sound[name] = self._check(f"{key}:{name}", said, rules)
        return sound

    def _check_whole_programs(self, key, app):
        """What each of ``processes`` and ``schedule`` must say, once all that says it is merged."""
        for kind, (rules, _) in _PROGRAMS.items():
            for name, said in app[kind].items():
                for required in ("command", *(["calendar"] if kind == "schedule" else [])):
                    where = f"{key}:{kind}:{name}"
                    if required not in said and not any(each.startswith(where) for each in self.settings.problems):
                        self._problem(f"{where}:{required}", f"missing; it must be {rules[required].allowed}")
        for name in sorted({*app["processes"]} & {*app["schedule"]}):
            self._problem(f"{key}:schedule:{name}", "is the name of one of processes, too; both would write one log")

    def _check_options(self, key, by_server):
        """The part of ``server_options`` that has no problem."""
        self._known(key, by_server, self.servers, "server")
        return {
            server: self._check_own_options(f"{key}:{server}", server, options)
            for server, options in by_server.items()
            if server in self.servers
        }

    def _check_own_options(self, key, server, options):
        sound = {
            name: value
            for name, value in self._mapping(key, options).items()
            if self._check_option(f"{key}:{describe_name(name)}", server, name, value)
        }
        length, most = sum(byte_length(word) + 1 for word in long_options(sound)), wsgi_schema.COMMAND_LENGTH
        if length > most:
            self._problem(key, f"the options have {length} bytes, of which a command can have {most}")
        return sound

    def _check_option(self, key, server, name, value):
        reserved = self.servers[server]["reserved"]
        if not isinstance(name, str) or not wsgi_schema.OPTION_NAME.fullmatch(name):
            self._problem(key, f"{describe(name)} can't be an option's name")
        elif name in reserved:
            instead = f"set {reserved[name]!r} instead" if reserved[name] else "leave it out"
            self._problem(key, f"is the formula's own; {instead}")
        else:
            return self._checked(key, name, value, wsgi_schema.OPTION) is not None
        return False

    def _check(self, key, mapping, rules):
        """The part of a mapping whose keys are known and whose values are as their rules want
        them. None means: not said."""
        mapping = self._mapping(key, mapping)
        self._known(key, mapping, rules)
        said = {}
        for name, value in mapping.items():
            if name not in rules or value is None:
                continue
            flaw = find_flaw(value)
            if flaw:
                place, sentence = flaw
                self._problem(":".join([key, name, *place]), sentence)
                continue
            sound = self._checked(f"{key}:{name}", name, value, rules[name])
            if sound is not None:
                said[name] = sound
        return said

    def _checked(self, key, name, value, rule):
        """The part of a value that has no problem, or None."""
        excess = find_excess(value, rule)
        if excess:
            self._problem(key, excess)
            return None
        if not rule.test(value):
            if rule.allowed == wsgi_schema.MAPPING.allowed:
                self._mapping(key, value)
            else:
                self._problem(key, self._refused(name, value, rule))
            return None
        if rule.keys and isinstance(value, Mapping):
            return self._check(key, value, rule.keys)
        if not rule.each:
            return value
        sound = {}
        for item, said in value.items():
            excess = find_excess(item, rule.names)
            if excess or not rule.names.test(item):
                shown = "a name" if rule.names.secret else describe(item)
                where = key if rule.names.secret else f"{key}:{describe_name(item)}"
                self._problem(where, excess or f"{shown} must be {rule.names.allowed}")
            elif said is not None:
                sound[item] = self._checked(f"{key}:{item}", item, said, rule.each)
        return {item: said for item, said in sound.items() if said is not None}

    @staticmethod
    def _refused(name, value, rule):
        if rule.secret or "PRIVATE KEY" in str(value):
            return f"is {_kind(value)}; it must be {rule.allowed}"
        shown = describe(value)
        if name == "source" and isinstance(value, str):
            try:
                wsgi_schema.parse_source(value)
            except ValueError as error:
                return f"{shown} {error}"
        return f"{shown} must be {rule.allowed}"

    def _known(self, key, mapping, known, noun="key"):
        for name in mapping:
            if name not in known:
                self._problem(f"{key}:{describe_name(name)}", f"not a {noun}" + _nearest(name, known))

    def _mapping(self, key, value):
        """The value, or an empty mapping where it is none. A problem does not tell what else it
        is, since secrets may be in it."""
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            self._problem(key, f"is {_kind(value)}; it must be a mapping")
            return {}
        return value

    def _problem(self, key, sentence):
        self.settings.problems.append(f"{key}: {sentence}")


def _hook(said):
    return {**wsgi_schema.HOOK_DEFAULTS, **said}


def _nearest(found, known):
    names = [str(name) for name in known]
    near = difflib.get_close_matches(describe_name(found).lower(), names, n=1, cutoff=0.5)
    return (f"; did you mean {near[0]!r}?" if near else "") + f" ({', '.join(names)})"


def _kind(value):
    """What a value is, in YAML's words."""
    words = {
        type(None): "null",
        bool: "true or false",
        int: "an integer",
        float: "a number",
        str: "a string",
        list: "a list",
    }
    return "a mapping" if isinstance(value, Mapping) else words.get(type(value), f"a {type(value).__name__}")


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
