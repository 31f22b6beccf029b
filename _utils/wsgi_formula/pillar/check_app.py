"""
Check what an app's settings, or ``wsgi:defaults``, have before they are merged.

This module is pure: it reads no file and starts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import schema
from .check import Checker, kind_of, nearest
from .rules import Rule, byte_length, describe, describe_name
from .schema import (
    APP,
    COMMAND,
    COMMAND_LENGTH,
    ENV_NAME,
    ENV_NAMES,
    ENVIRONMENT_LENGTH,
    HOOK,
    HOOKS,
    OPTION,
    OPTION_NAME,
    PROCESS,
    PROGRAM_NAME,
    RESERVED_PROGRAMS,
    SCHEDULED,
)
from .servers import long_options

# The kinds of programs that an app may have beside its server, and their rules.
PROGRAM_RULES = {"processes": PROCESS, "schedule": SCHEDULED}


class AppChecker(Checker):
    """
    Checks the settings of one app after the other.

    os_family, servers : dict
        The contents of ``wsgi/os_family/<family>.yaml`` and ``wsgi/servers.yaml``, as the system has them.
    system : str
        Salt's grain ``osfinger``, such as ``Debian-12``.
    """

    def __init__(self, os_family: Mapping[str, Any], servers: Mapping[str, Any], system: str) -> None:
        super().__init__()
        self.os_family = os_family
        self.servers = servers
        self.system = system

    def check_app(self, key: str, settings: Any) -> dict[str, Any]:
        """
        Return the valid part of an app's own settings, or of ``wsgi:defaults``.

        key : str
            Their pillar key.
        settings : Any
            The value of that key.
        """
        valid = self.check_settings(key, settings, APP)
        if valid.get("server") not in (None, *self.servers):
            server = valid.pop("server")
            self.report(f"{key}:server", f"{describe(server)} is not a server" + nearest(server, [*self.servers]))
        if isinstance(valid.get("tls"), str):
            valid["tls"] = {"certificate": valid["tls"]}
        if "env" in valid:
            self._check_env(f"{key}:env", valid["env"])
        if "hooks" in valid:
            valid["hooks"] = self._check_hooks(f"{key}:hooks", valid["hooks"])
        for kind, rules in PROGRAM_RULES.items():
            if kind in valid:
                valid[kind] = self._check_programs(f"{key}:{kind}", valid[kind], rules)
        if "server_options" in valid:
            valid["server_options"] = self._check_server_options(f"{key}:server_options", valid["server_options"])
        if isinstance(valid.get("version"), Mapping):
            valid["version"] = self._check_versions(f"{key}:version", valid["version"])
        if "process_manager" in valid:
            valid["process_manager"] = self._check_manager(f"{key}:process_manager", valid["process_manager"])
        return valid

    def check_manager_of(self, key: str, server: str, manager: Any) -> bool:
        """Return whether a process manager is available for a server on this system, and report where it is not."""
        available = self.servers[server]["process_managers"]
        if manager not in available:
            self.report(key, f"{describe(manager)} is not available for {server}" + nearest(manager, available))
            return False
        limit = self.os_family.get("process_managers", {}).get(manager)
        if limit and self.system not in limit["only_on"]:
            self.report(key, f"{manager!r} is not available on {self.system}: {limit['because']}")
            return False
        return True

    def _check_manager(self, key: str, manager: Any) -> Any:
        """Check a process manager, or a mapping of servers to process managers."""
        if isinstance(manager, str):
            known = sorted({name for row in self.servers.values() for name in row["process_managers"]})
            if manager in known:
                return manager
            self.report(key, f"{describe(manager)} is not a process manager" + nearest(manager, known))
            return None
        self.check_names(key, manager, self.servers, "server")
        return {
            server: name
            for server, name in manager.items()
            if server in self.servers and name is not None and self.check_manager_of(f"{key}:{server}", server, name)
        }

    def _check_versions(self, key: str, versions: Mapping[Any, Any]) -> dict[str, str]:
        """Check a mapping of servers to versions."""
        self.check_names(key, versions, self.servers, "server")
        for server, version in versions.items():
            if version is not None and not schema.is_version(version):
                self.report(f"{key}:{server}", f"{describe(version)} must be a version, quoted, e.g. '23.0.0'")
        return {server: version for server, version in versions.items() if schema.is_version(version)}

    def _check_env(self, key: str, env: Mapping[Any, Any]) -> None:
        # No message has a value: it may be a secret.
        length = 0
        for name, value in env.items():
            if not isinstance(name, str) or not ENV_NAME.fullmatch(name):
                # YAML reads {NAME=value} as a key without a value.
                name = str(name).partition("=")[0]
                self.report(key, f"{describe(name)} is not a valid variable name; it must have {ENV_NAMES}")
            elif type(value) not in (str, int, float):
                self.report(
                    f"{key}:{name}",
                    f"is {kind_of(value)}; it must be a string or a number (quote it if the app expects the text)",
                )
            else:
                length += byte_length(f"{name}={value}") + 1
                flaw = schema.find_variable_flaw(name, str(value))
                if flaw:
                    self.report(f"{key}:{describe_name(name)}", flaw)
        if length > ENVIRONMENT_LENGTH:
            self.report(key, f"the variables have {length} bytes in total; at most {ENVIRONMENT_LENGTH} are allowed")

    def _check_hooks(self, key: str, hooks: Mapping[Any, Any]) -> dict[str, list]:
        self.check_names(key, hooks, HOOKS)
        return {
            moment: self._check_moment(f"{key}:{moment}", moment, commands)
            for moment, commands in hooks.items()
            if moment in HOOKS and commands is not None
        }

    def _check_moment(self, key: str, moment: str, commands: Any) -> list[dict[str, Any]]:
        """Check the commands of one moment, such as ``before_live``."""
        if not isinstance(commands, list):
            self.report(key, f"is {kind_of(commands)}; it must be a list of commands")
            return []
        valid = []
        for number, command in enumerate(commands, 1):
            if not isinstance(command, Mapping):
                command = {"command": command}
            hook = self.check_settings(f"{key}:{number}", command, HOOK)
            if command.get("command") is None:
                self.report(f"{key}:{number}:command", f"missing; it must be {COMMAND.allowed}")
            if hook.get("every") == "change" and moment == "build":
                self.report(
                    f"{key}:{number}:every",
                    "'change' is not available for build, which runs once for a release; leave it out",
                )
            valid.append(hook)
        return [hook for hook in valid if "command" in hook]

    def _check_programs(self, key: str, programs: Mapping[Any, Any], rules: Mapping[str, Rule]) -> dict[str, dict]:
        """Check ``processes`` or ``schedule``."""
        valid = {}
        for name, program in programs.items():
            if not isinstance(name, str) or not PROGRAM_NAME.fullmatch(name):
                self.report(
                    f"{key}:{describe_name(name)}",
                    f"{describe(name)} is not a valid name; it must be a lower-case letter, then at most 31 of a-z, "
                    "0-9, - and _",
                )
            elif name in RESERVED_PROGRAMS:
                self.report(f"{key}:{name}", f"{name!r} is reserved for the formula; choose another name")
            elif program is not None:
                valid[name] = self.check_settings(f"{key}:{name}", program, rules)
        return valid

    def _check_server_options(self, key: str, options: Mapping[Any, Any]) -> dict[str, dict]:
        """Check ``server_options``, a mapping of servers to their own options."""
        self.check_names(key, options, self.servers, "server")
        return {
            server: self._check_own_options(f"{key}:{server}", server, own)
            for server, own in options.items()
            if server in self.servers
        }

    def _check_own_options(self, key: str, server: str, options: Any) -> dict[str, Any]:
        valid = {
            name: value
            for name, value in self.check_mapping(key, options).items()
            if self._is_valid_option(f"{key}:{describe_name(name)}", server, name, value)
        }
        length = sum(byte_length(word) + 1 for word in long_options(valid))
        if length > COMMAND_LENGTH:
            self.report(key, f"the options have {length} bytes in total; at most {COMMAND_LENGTH} are allowed")
        return valid

    def _is_valid_option(self, key: str, server: str, name: Any, value: Any) -> bool:
        reserved = self.servers[server]["reserved"]
        if not isinstance(name, str) or not OPTION_NAME.fullmatch(name):
            self.report(key, f"{describe(name)} is not a valid option name")
        elif name in reserved:
            instead = f"use {reserved[name]!r} instead" if reserved[name] else "leave it out"
            self.report(key, f"the formula sets this option; {instead}")
        else:
            return self.check_value(key, name, value, OPTION) is not None
        return False
