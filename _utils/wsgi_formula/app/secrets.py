"""
Secrets: values that stand in Salt's sdb or in files, and password files.
"""

import re
import shlex

from .. import files
from ..errors import WsgiError
from ..pillar import plain, schema
from ..pillar.edge import HASH
from ..pillar.schema import ENV_NAME


def htpasswd(host, key, users):
    """
    What nginx's ``auth_basic_user_file`` is to hold.

    key : str
        The pillar key of the users.
    users : dict
        Their names to hashes, or to where Salt's sdb has these.

    Returns the text. Raises ``WsgiError`` where sdb has something else than a hash.
    """
    found = {user: resolve_sdb(host, f"{key}:{user}", said) for user, said in users.items()}
    for user, value in found.items():
        if not HASH.fullmatch(str(value)):
            raise WsgiError(
                f"{key}:{user}: {users[user]} holds something else than a hash that `openssl passwd -6` printed"
            )
    return "".join(f"{user}:{value}\n" for user, value in found.items())


def environment_variables(host, name, app):
    """The values of an app's environment: of its files, in their order, then of pillar."""
    key = f"wsgi:apps:{name}"
    values = {}
    for path in app["env_files"]:
        values.update(_file_variables(f"{key}:env_files", path))
    values.update(app["env"])
    found = {variable: resolve_sdb(host, f"{key}:env:{variable}", value) for variable, value in values.items()}
    for variable, value in found.items():
        flaw = schema.find_variable_flaw(variable, str(value))
        if flaw:
            raise WsgiError(f"{key}:env:{variable}: {flaw}")
    return found


def _file_variables(key, path):
    """What a file of NAME=value lines says; a problem tells the line's number, and nothing of it."""
    text = files.read(path)
    if text is None:
        raise WsgiError(f"{key}: {path!r} is not there")
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


def resolve_sdb(host, key, value):
    """A value of a pillar key, or what stands under it in Salt's sdb; raises ``WsgiError`` where that can't be had."""
    if not isinstance(value, str) or not value.startswith("sdb://"):
        return value
    try:
        found = plain.plain(host.salt["sdb.get"](value, strict=True))
    except Exception as error:  # whatever the driver of that database raises
        raise WsgiError(f"{key}: {value} can't be had: {error}") from error
    if type(found) not in (str, int, float):
        raise WsgiError(f"{key}: {value} is not there")
    return found
