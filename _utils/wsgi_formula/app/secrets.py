"""
Secret values: those in Salt's sdb and in files of environment variables, and nginx's password files.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from .. import files
from ..errors import WsgiError
from ..host import Host
from ..pillar import plain, schema
from ..pillar.app import App
from ..pillar.edge import HASH
from ..pillar.schema import ENV_NAME


def htpasswd(host: Host, key: str, users: Mapping[str, str]) -> str:
    """
    Return the text of a password file for nginx's ``auth_basic_user_file``.

    host : Host
    key : str
        The pillar key of the users.
    users : dict
        The users' names to their hashes, or to ``sdb://…`` of these.

    Raises ``WsgiError`` where sdb has something else than a hash.
    """
    hashes = {user: resolve_sdb(host, f"{key}:{user}", value) for user, value in users.items()}
    for user, value in hashes.items():
        if not HASH.fullmatch(str(value)):
            raise WsgiError(f"{key}:{user}: {users[user]} does not hold a hash as `openssl passwd -6` prints it")
    return "".join(f"{user}:{value}\n" for user, value in hashes.items())


def environment_variables(host: Host, app: App) -> dict[str, Any]:
    """
    Return an app's environment variables with their values; ``env`` wins over ``env_files``.

    host : Host
    app : App
        The app, as ``desired_settings`` returns it.

    Raises ``WsgiError`` where a file or a value of sdb is not available, or where a value is not valid.
    """
    key = f"wsgi:apps:{app.name}"
    values: dict[str, Any] = {}
    for path in app["env_files"]:
        values.update(_file_variables(f"{key}:env_files", path))
    values.update(app["env"])
    resolved = {variable: resolve_sdb(host, f"{key}:env:{variable}", value) for variable, value in values.items()}
    for variable, value in resolved.items():
        flaw = schema.find_variable_flaw(variable, str(value))
        if flaw:
            raise WsgiError(f"{key}:env:{variable}: {flaw}")
    return resolved


def _file_variables(key: str, path: str) -> dict[str, str]:
    """Return the variables of a file of NAME=value lines. An error has a line's number, and nothing of its text."""
    text = files.read(path)
    if text is None:
        raise WsgiError(f"{key}: there is no file {path!r}")
    values = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, equals, value = re.sub(r"^export\s+", "", line).partition("=")
        if not equals or not ENV_NAME.fullmatch(name):
            raise WsgiError(f"{key}: line {number} of {path!r} is not NAME=value")
        if value[:1] in ("'", '"'):
            try:
                words = shlex.split(value, comments=True)
            except ValueError:
                words = []
            if len(words) != 1:
                raise WsgiError(f"{key}: line {number} of {path!r}: its quotes don't match")
            value = words[0]
        flaw = schema.find_variable_flaw(name, value)
        if flaw:
            raise WsgiError(f"{key}: line {number} of {path!r} {flaw}")
        values[name] = value
    return values


def resolve_sdb(host: Host, key: str, value: Any) -> Any:
    """
    Return the value that ``sdb://…`` names in Salt's sdb, and any other value as it is.

    host : Host
    key : str
        The pillar key of the value.

    Raises ``WsgiError`` where sdb does not give the value.
    """
    if not isinstance(value, str) or not value.startswith("sdb://"):
        return value
    try:
        found = plain.plain(host.salt["sdb.get"](value, strict=True))
    except Exception as error:  # whatever the driver of that database raises
        raise WsgiError(f"{key}: {value} is not available: {error}") from error
    if type(found) not in (str, int, float):
        raise WsgiError(f"{key}: sdb has no value for {value}")
    return found
