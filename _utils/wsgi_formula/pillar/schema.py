"""
The schema: the rule of each key that pillar may have below ``wsgi``. nginx's keys are in ``edge``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from .edge import EDGE
from .rules import (
    BOOLEAN,
    DOMAIN_LENGTH,
    MAPPING,
    NAME_LENGTH,
    SIZE,
    UNWRITABLE,
    Rule,
    absolute_path,
    byte_length,
    has_file_names,
    integer,
    is_domain,
    list_of,
    mapping,
    matching,
    one_line,
)
from .source import SOURCE_FORMS, is_source

# Linux user names have at most 32 characters, five of which are `wsgi-`.
APP_NAME = re.compile(r"[a-z][a-z0-9_-]{0,26}")

# The names of the process managers' folders, such as /etc/wsgi/vassals and /run/wsgi/circus.
RESERVED_NAMES = ("circus", "gaffer", "vassals")

USER_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,31}")

# The shell that reads the environment uses OPTIND itself, and exits where it is not a number.
ENV_NAME = re.compile(r"(?!OPTIND$)[A-Za-z_][A-Za-z0-9_]*")

ENV_NAMES = "letters, digits and _ only, no digit first, and must not be OPTIND, which the shell uses"

# The longest NAME=value that exec() takes, with its NUL: MAX_ARG_STRLEN of linux/binfmts.h.
VARIABLE_LENGTH = 131072

# exec() takes 2 MiB of arguments and variables where the stack may have 8 MiB.
ENVIRONMENT_LENGTH = 2**20

COMMAND_LENGTH = 65536

OPTION_LENGTH = 4000

APPLICATION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")

VERSION = re.compile(r"[0-9]+(\.[0-9]+)*([a-z.+-]+[0-9]+)*")

VERSION_LENGTH = 100

# The placeholders of a `command` besides the portable settings.
COMMAND_PLACEHOLDERS = ("socket", "application", "environment", "code", "folder")

PLACEHOLDER = re.compile(r"\{(\w*)\}")

PYTHON = re.compile(r"(/[\w./-]+/)?(python|pypy)[\w.-]*")

OPTION_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,99}")

# The names in `processes` and `schedule`, which become part of the names of units and logs.
PROGRAM_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")

# <app>.<generation>.log.service writes the log under systemd.
RESERVED_PROGRAMS = ("log",)

# The moments at which an app's hooks run, in their order.
HOOKS = ("build", "before_live", "after_live", "before_retire")


def is_version(value: Any) -> bool:
    """Return whether a value is a version that pip could install."""
    return isinstance(value, str) and len(value) <= VERSION_LENGTH and VERSION.fullmatch(value) is not None


def find_variable_flaw(name: str, value: str) -> str | None:
    """
    Return why a process cannot have a variable, without the value, or None where it can.

    name, value : str
    """
    if UNWRITABLE.search(value):
        return "contains a character that no variable can hold, such as NUL"
    length = byte_length(f"{name}={value}") + 1
    return f"is {length} bytes long; at most {VARIABLE_LENGTH} are allowed" if length > VARIABLE_LENGTH else None


def _url(value: Any) -> bool:
    return one_line(value) and re.match(r"(https?|file)://[^\s]+$", value) is not None


def _inner_path(value: Any) -> bool:
    inside = one_line(value) and not value.startswith(("/", "-")) and ".." not in value.split("/")
    return inside and has_file_names(value)


def _is_word(value: Any) -> bool:
    return type(value) in (str, int, float) and one_line(str(value))


def _command(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip() != ""
    length = sum(byte_length(str(word)) + 1 for word in value) if list_of(value, _is_word) else 0
    return 0 < length <= COMMAND_LENGTH


def _words(value: Any) -> bool:
    if not isinstance(value, str):
        return _command(value)
    try:
        return one_line(value) and shlex.split(value) != []
    except ValueError:  # an odd quote
        return False


COMMAND = Rule(
    f"a command for the shell, or a list of words, of at most {COMMAND_LENGTH} bytes in all",
    _command,
    most=COMMAND_LENGTH,
)

# No shell runs the command, because a shell would not pass on the signal that stops the command.
WORDS = Rule(
    f"a command of one line with matching quotes, or a list of words, of at most {COMMAND_LENGTH} bytes in all",
    _words,
    most=COMMAND_LENGTH,
)


HEALTH = {
    "path": Rule(
        "a path that begins with /",
        lambda value: one_line(value) and value.isascii() and value.startswith("/") and " " not in value,
    ),
    "status": integer(100, 599),
    "deadline": integer(1, 3600),
    "host": Rule("a host name", lambda value: is_domain(value) and not value.startswith("*"), most=DOMAIN_LENGTH),
}


# The limits of an app's source.
SOURCE_LIMITS = {
    "size": Rule(
        "a size in bytes, or with k, m or g, e.g. 2g",
        lambda value: type(value) in (str, int) and re.fullmatch(r"[1-9][0-9]{0,11}[kKmMgG]?", str(value)) is not None,
    ),
    "files": integer(1, 10_000_000),
    "depth": integer(1, 200),
}


MAINTENANCE = {
    "page": Rule(
        "an HTML file that Salt serves, salt://…",
        lambda value: one_line(value) and value.startswith("salt://") and len(value) > len("salt://"),
    ),
    "retry_after": integer(1, 86400),
}


APP = {
    "state": Rule("present or absent", lambda value: value in ("present", "absent")),
    "server": Rule("the name of a server", one_line),
    "process_manager": Rule(
        "a process manager's name, or a mapping of servers to them",
        lambda value: one_line(value) or isinstance(value, Mapping),
    ),
    "install": Rule("distribution or environment", lambda value: value in ("distribution", "environment")),
    "version": Rule(
        "a version, quoted, e.g. '23.0.0', or a mapping of servers to them",
        lambda value: isinstance(value, Mapping) or is_version(value),
    ),
    "allow_vulnerable": BOOLEAN,
    "application": matching(APPLICATION, "module:callable"),
    "interface": Rule("wsgi or asgi", lambda value: value in ("wsgi", "asgi")),
    "command": Rule(
        f"a list of words, one of them with {{socket}}, of at most {COMMAND_LENGTH} bytes in all",
        lambda value: isinstance(value, list) and _command(value) and any("{socket}" in str(word) for word in value),
        most=COMMAND_LENGTH,
    ),
    "source": Rule(SOURCE_FORMS, is_source),
    "source_limits": mapping(SOURCE_LIMITS),
    "deploy_key": Rule(
        "a private key that OpenSSH reads",
        lambda value: (
            isinstance(value, str) and (value.startswith("sdb://") or value.lstrip().startswith("-----BEGIN "))
        ),
        secret=True,
        most=SIZE,
    ),
    "known_hosts": Rule(
        "lines as ssh-keyscan prints them",
        lambda value: (
            isinstance(value, str)
            and value.strip() != ""
            and all(line.startswith("#") or len(line.split()) >= 3 for line in value.strip().splitlines())
        ),
        most=SIZE,
    ),
    "requirements": Rule(
        "a file in the source, or a list of requirements",
        lambda value: _inner_path(value) or list_of(value, lambda item: one_line(item) and not item.startswith("-")),
    ),
    "installer": Rule("pip or uv", lambda value: value in ("pip", "uv")),
    "wheels": Rule(
        "a folder's absolute path, or a folder in the source",
        lambda value: _inner_path(value) or absolute_path(value),
    ),
    "index": Rule("an index's URL, or false for none", lambda value: value is False or _url(value)),
    "extra_index": Rule("a list of indexes' URLs", lambda value: list_of(value, _url)),
    "python": Rule(
        "an interpreter's name or absolute path",
        lambda value: isinstance(value, str) and PYTHON.fullmatch(value) is not None and has_file_names(value),
    ),
    "user": Rule(
        "a user's name, not root",
        lambda value: isinstance(value, str) and USER_NAME.fullmatch(value) is not None and value != "root",
    ),
    **EDGE,
    "workers": integer(1, 1024),
    "threads": integer(1, 1024),
    "preload": BOOLEAN,
    "request_timeout": integer(1, 86400),
    "graceful_timeout": integer(1, 86400),
    "max_requests": integer(0, 2**31 - 1),
    "memory_limit": integer(16, 2**20),
    "env": Rule(MAPPING.allowed, MAPPING.test, secret=True),
    "env_files": Rule("a list of files' absolute paths", lambda value: list_of(value, absolute_path)),
    "health": mapping(HEALTH),
    "hooks": MAPPING,
    "rollback_on_failure": BOOLEAN,
    "processes": MAPPING,
    "schedule": MAPPING,
    "server_options": MAPPING,
    "maintenance": mapping(MAINTENANCE),
    "keep_releases": integer(1, 1000),
    "purge": BOOLEAN,
}


# The rules of a hook; pillar may also have the command alone.
HOOK = {
    "command": COMMAND,
    "timeout": integer(1, 86400),
    "every": Rule("release or change", lambda value: value in ("release", "change")),
}

HOOK_DEFAULTS = {"timeout": 300, "every": "release"}


# The rules of each program in `processes`.
PROCESS = {"command": WORDS, "count": integer(1, 1024), "graceful_timeout": integer(1, 86400)}

PROCESS_DEFAULTS = {"count": 1}


# The rules of each program in `schedule`.
SCHEDULED = {
    "command": WORDS,
    "calendar": Rule("a time as `systemd-analyze calendar` takes it", one_line, most=NAME_LENGTH),
    "timeout": integer(1, 86400),
}

SCHEDULED_DEFAULTS = {"timeout": 3600}


def _option(value: Any) -> bool:
    if isinstance(value, list):
        return all(_option(item) and not isinstance(item, list) for item in value)
    if isinstance(value, str):
        return value.isprintable()
    return isinstance(value, (bool, int, float))


# The rule of each option in `server_options`.
OPTION = Rule("a one-line string, a number, true, false or a list of them", _option, most=OPTION_LENGTH)


def hide_secrets(settings: Mapping[str, Any], rules: Mapping[str, Rule]) -> dict[str, Any]:
    """
    Return settings with asterisks for their secrets.

    settings : dict
        Merged settings.
    rules : dict
        The rule of each key, such as ``APP``.

    .. code-block:: python

        >>> hide_secrets({"env": {"PASSWORD": "hunter2"}, "workers": 4}, APP)
        {'env': {'PASSWORD': '***'}, 'workers': 4}
    """
    return {key: _without_secrets(value, rules[key]) for key, value in settings.items()}


def _without_secrets(value: Any, rule: Rule) -> Any:
    if value and rule.secret:
        return dict.fromkeys(value, "***") if isinstance(value, Mapping) else "***"
    if isinstance(value, Mapping) and rule.keys:
        return hide_secrets(value, rule.keys)
    if isinstance(value, Mapping) and rule.each:
        return {name: _without_secrets(each, rule.each) for name, each in value.items()}
    return value


TOP = ("apps", "defaults", "nginx", "status_page")
