"""
The system users that the formula makes: an app's own, and the one that its releases are built as.

An app's old generation runs while its next release is built. So the build runs as another user: the app, compromised
as it may be, can't touch what is built, nor the cache that it is installed from.
"""

import contextlib
import json
import os
import pwd

from .. import files, step
from ..errors import WsgiError
from ..paths import ETC, LIB
from . import ownership

LONGEST = 32  # characters of a user's name, as useradd has it


def find_user(name):
    """Return a user's ``pwd.struct_passwd``, or None where there is no such user."""
    try:
        return pwd.getpwnam(name)
    except (KeyError, TypeError):
        return None


def make_user(host, user: str, home: str):
    """
    Make a system user without a login, with a group of its own; its home is not made.

    Returns its ``pwd.struct_passwd``. Raises ``WsgiError`` where that fails.
    """
    options = {"system": True, "usergroup": True, "home": home, "createhome": False, "shell": "/usr/sbin/nologin"}
    if not host.salt["user.add"](user, **options):
        raise WsgiError(f"the user {user} could not be made")
    return pwd.getpwnam(user)


def user_facts(name: str) -> dict:
    """Return what is kept of an app: ``user``, and ``made``, the users made for it; empty where that is not known."""
    lost = "which users were made for the app is not known any more, so that none of them is deleted with it"
    return files.read_json(f"{ETC}/{name}/app.json", {"made": list}, lost) or {}


def remember_user(name: str, facts: dict) -> None:
    """Keep something of an app."""
    files.write(f"{ETC}/{name}/app.json", json.dumps(facts) + "\n", 0o600)


def builder_name(name: str) -> str:
    """Return the name of the user that an app's releases are built as."""
    found = f"wsgibuild-{name}"
    return found if len(found) <= LONGEST else f"wsgibuild-{files.digest(name)}"


def builder_home(name: str) -> str:
    """Return the path of that user's home, which holds the installer's cache."""
    return f"{LIB}/build/{name}"


def prepare_builder(host, name: str):
    """
    Return the user that an app's releases are built as, made where it is not there yet, with its home.

    name : str
        The app.

    Returns a ``pwd.struct_passwd``. Raises ``WsgiError`` where somebody else has a user of that name.
    """
    user, home = builder_name(name), builder_home(name)
    found = find_user(user)
    if found is None:
        facts = user_facts(name)
        # Before it is made, so that a killed run leaves none that nobody knows.
        remember_user(name, {**facts, "made": [*{*facts.get("made", []), user}]})
        found = make_user(host, user, home)
    if found.pw_dir != home or found.pw_uid == 0:
        raise WsgiError(
            f"the user {user}, as which {name} is to be built, is not the formula's: its home is not {home}"
        )
    for folder in (LIB, f"{LIB}/build"):
        files.ensure_dir(folder, 0o755)
    with contextlib.suppress(FileNotFoundError):
        if os.lstat(home).st_uid != found.pw_uid:  # of a user of that name who is gone
            files.remove(home)
    files.ensure_dir(home, 0o700, found.pw_uid, found.pw_gid)
    return found


def take_over(builder, path: str, gid: int, without=()) -> None:
    """
    Make a finished build root's, for a group to read: see ``ownership.take_tree``.

    builder : pwd.struct_passwd
        Who built it; its processes are ended first.
    """
    step.kill_user_processes(builder)
    ownership.take_tree(path, builder.pw_uid, gid, without)
