"""
What pillar asks for: merged, validated, and never touched again.

This module is pure: it reads no file and starts nothing, so that all of its rules can be
tested without a machine. The schema lives in ``schema``, the defaults in
``wsgi/defaults.yaml``, what is known of each server in ``wsgi/servers.yaml``.
"""

import difflib
from collections.abc import Mapping

from . import edge_defaults, schema, sites
from .edge import NGINX, STATUS_PAGE
from .rules import MAPPING, byte_length, describe, describe_name, find_excess, find_flaw
from .schema import (
    APP,
    APP_NAME,
    COMMAND,
    COMMAND_LENGTH,
    COMMAND_PLACEHOLDERS,
    ENV_NAME,
    ENV_NAMES,
    ENVIRONMENT_LENGTH,
    HOOK,
    HOOK_DEFAULTS,
    HOOKS,
    OPTION,
    OPTION_NAME,
    PROCESS,
    PROCESS_DEFAULTS,
    PROGRAM_NAME,
    RESERVED_NAMES,
    RESERVED_PROGRAMS,
    SCHEDULED,
    SCHEDULED_DEFAULTS,
    TOP,
)
from .servers import (
    PORTABLE_SETTINGS,
    install_of,
    long_options,
    manager_of,
    placeholders,
    replaces_late,
    requirement_of,
    serving,
    supported,
    user_of,
    version_of,
    vulnerabilities,
    vulnerable,
)
from .settings import Settings, merge
from .source import parse_source


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
    return Loader(defaults, os_family, servers, system).load(pillar)


# The rules and the defaults of each kind of program that an app may have beside its server.
_PROGRAMS = {
    "processes": (PROCESS, PROCESS_DEFAULTS),
    "schedule": (SCHEDULED, SCHEDULED_DEFAULTS),
}


class Loader:
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
        self._known("wsgi", top, TOP)
        nginx = self._check("wsgi:nginx", top.get("nginx"), NGINX)
        settings.nginx = merge(self.defaults["nginx"], nginx)
        self._check_trust("wsgi:nginx", settings.nginx)
        if top.get("status_page") is not None:
            page = self._check("wsgi:status_page", top["status_page"], STATUS_PAGE)
            settings.status_page = sites.whole_page(merge(self.defaults["status_page"], page))
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
        settings.sites, clashes = sites.group(settings.apps)
        for name, key, sentence in clashes + sites.port_clashes(settings.apps, settings.status_page, settings.nginx):
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
                f"missing; with proxy_protocol, it must be {NGINX['trusted_proxies'].allowed}",
            )

    def _check_status_page(self):
        """A page in the way of apps or of others is nobody's mistake but pillar's as a whole."""
        settings = self.settings
        for key, sentence in sites.page_clashes(settings.status_page, settings.apps, settings.nginx):
            self._problem(f"wsgi:status_page:{key}", sentence)
            settings.host_wide = True

    def _app(self, name, own):
        """An app's merged settings, or None where its name can't be one."""
        key = f"wsgi:apps:{describe_name(name)}"
        before = len(self.settings.problems)
        app = None
        if not isinstance(name, str) or not APP_NAME.fullmatch(name):
            self._problem(
                key,
                f"{describe(name)} can't be an app's name: a lower-case letter, then at most 26 of a-z, "
                "0-9, - and _, because it names a user and files",
            )
        elif name in RESERVED_NAMES:
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
        app["hooks"] = {moment: [_hook(said) for said in app["hooks"].get(moment, [])] for moment in HOOKS}
        for kind, (_, defaults) in _PROGRAMS.items():
            app[kind] = {name: merge(defaults, program) for name, program in app[kind].items()}
        app["tls"] = sites.whole_tls(app["tls"])
        if not (app["domains"] or self.settings.nginx["manage"]):
            self._problem(
                f"{key}:domains", "missing; with wsgi:nginx:manage: false, the default site is not the formula's"
            )
        app.update(edge_defaults.complete(app))
        for where, sentence in edge_defaults.conflicts(app):
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
        honours = supported(app, self.servers)
        for name in PORTABLE_SETTINGS:
            if name not in honours and app[name] != self.defaults["app"][name]:
                self._problem(
                    f"{key}:{name}",
                    f"{app[name]!r} can't be honoured by {server}{serving(app, row, name)}; leave it out",
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
        elif app["max_requests"] and app["workers"] == 1 and "max_requests" in supported(app, self.servers):
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
            if version is not None and not schema.is_version(version):
                self._problem(f"{key}:{server}", f"{describe(version)} must be a version, quoted, e.g. '23.0.0'")
        return {server: version for server, version in by_server.items() if schema.is_version(version)}

    def _check_command(self, key, app):
        known = {*COMMAND_PLACEHOLDERS, *PORTABLE_SETTINGS}
        for name in sorted(placeholders(app) - known):
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
            if not isinstance(name, str) or not ENV_NAME.fullmatch(name):
                # {NAME=value} is a key, too.
                name = str(name).partition("=")[0]
                self._problem(key, f"{describe(name)} can't be a variable's name: {ENV_NAMES}")
            elif type(value) not in (str, int, float):
                self._problem(
                    f"{key}:{name}",
                    f"is {_kind(value)}; it must be a string or a number (quote it if the app is to see the word)",
                )
            else:
                length += byte_length(f"{name}={value}") + 1
                flaw = schema.find_variable_flaw(name, str(value))
                if flaw:
                    self._problem(f"{key}:{describe_name(name)}", flaw)
        if length > ENVIRONMENT_LENGTH:
            most = ENVIRONMENT_LENGTH
            self._problem(key, f"its variables have {length} bytes, of which an environment can have {most}")

    def _check_hooks(self, key, hooks):
        """The part of ``hooks`` that has no problem."""
        self._known(key, hooks, HOOKS)
        return {
            moment: self._check_moment(f"{key}:{moment}", moment, commands)
            for moment, commands in hooks.items()
            if moment in HOOKS and commands is not None
        }

    def _check_moment(self, key, moment, commands):
        if not isinstance(commands, list):
            self._problem(key, f"is {_kind(commands)}; it must be a list of commands")
            return []
        sound = []
        for number, said in enumerate(commands, 1):
            if not isinstance(said, Mapping):
                said = {"command": said}
            hook = self._check(f"{key}:{number}", said, HOOK)
            if said.get("command") is None:
                self._problem(f"{key}:{number}:command", f"missing; it must be {COMMAND.allowed}")
            if hook.get("every") == "change" and moment == "build":
                self._problem(f"{key}:{number}:every", "'change' can't be of build, which belongs to the release")
            sound.append(hook)
        return [hook for hook in sound if "command" in hook]

    def _check_programs(self, key, programs, rules):
        """The part of ``processes`` or ``schedule`` that has no problem."""
        sound = {}
        for name, said in programs.items():
            if not isinstance(name, str) or not PROGRAM_NAME.fullmatch(name):
                self._problem(
                    f"{key}:{describe_name(name)}",
                    f"{describe(name)} can't be a name: a lower-case letter, then at most 31 of a-z, 0-9, - and _",
                )
            elif name in RESERVED_PROGRAMS:
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
        length, most = sum(byte_length(word) + 1 for word in long_options(sound)), COMMAND_LENGTH
        if length > most:
            self._problem(key, f"the options have {length} bytes, of which a command can have {most}")
        return sound

    def _check_option(self, key, server, name, value):
        reserved = self.servers[server]["reserved"]
        if not isinstance(name, str) or not OPTION_NAME.fullmatch(name):
            self._problem(key, f"{describe(name)} can't be an option's name")
        elif name in reserved:
            instead = f"set {reserved[name]!r} instead" if reserved[name] else "leave it out"
            self._problem(key, f"is the formula's own; {instead}")
        else:
            return self._checked(key, name, value, OPTION) is not None
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
            if rule.allowed == MAPPING.allowed:
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
                parse_source(value)
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
    return {**HOOK_DEFAULTS, **said}


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
