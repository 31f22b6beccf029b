"""
The system users that the formula makes: an app's own user, and the one that its releases are built as.

An app's old generation runs while its next release is built. So the build runs as another user: even a compromised app
can't change the new release, nor the cache that its packages come from.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
from collections.abc import Iterable
from typing import Any

from .. import files, step
from ..errors import WsgiError
from ..host import Host
from ..paths import ETC, LIB
from . import ownership

LONGEST_NAME = 32  # characters of a user's name, as useradd allows


def find_user(name: str) -> pwd.struct_passwd | None:
    """Return a user's ``pwd.struct_passwd``, or None where there is no such user."""
    try:
        return pwd.getpwnam(name)
    except (KeyError, TypeError):
        return None


def make_user(host: Host, user: str, home: str) -> pwd.struct_passwd:
    """
    Make a system user without a login, with a group of its own. Its home is not made.

    Raises ``WsgiError`` where Salt can't make it.
    """
    options = {"system": True, "usergroup": True, "home": home, "createhome": False, "shell": "/usr/sbin/nologin"}
    if not host.salt["user.add"](user, **options):
        raise WsgiError(f"the user {user} could not be made")
    return pwd.getpwnam(user)


def user_facts(name: str) -> dict[str, Any]:
    """Return an app's record of users: ``user``, its own, and ``made``, those made for it; empty where there is none."""
    consequence = "which users were made for the app is not known any more, so that none of them is deleted with it"
    return files.read_json(f"{ETC}/{name}/app.json", {"made": list}, consequence) or {}


def remember_user(name: str, facts: dict[str, Any]) -> None:
    """Write an app's record of users, as ``user_facts`` returns it."""
    files.write(f"{ETC}/{name}/app.json", json.dumps(facts) + "\n", 0o600)


def builder_name(name: str) -> str:
    """Return the name of the user that an app's releases are built as."""
    user = f"wsgibuild-{name}"
    return user if len(user) <= LONGEST_NAME else f"wsgibuild-{files.digest(name)}"


def builder_home(name: str) -> str:
    """Return the path of that user's home, which holds the installer's cache."""
    return f"{LIB}/build/{name}"


def prepare_builder(host: Host, name: str) -> pwd.struct_passwd:
    """
    Return the user that an app's releases are built as; make the user and its home where they are missing.

    name : str
        The app.

    Raises ``WsgiError`` where there is a user of that name that the formula did not make.
    """
    user, home = builder_name(name), builder_home(name)
    builder = find_user(user)
    if builder is None:
        facts = user_facts(name)
        # Recorded first, so that a killed run leaves no unknown user behind.
        remember_user(name, {**facts, "made": [*{*facts.get("made", []), user}]})
        builder = make_user(host, user, home)
    if builder.pw_dir != home or builder.pw_uid == 0:
        raise WsgiError(
            f"the user {user}, which is to build {name}, was not made by the formula: its home is not {home}"
        )
    for folder in (LIB, f"{LIB}/build"):
        files.ensure_dir(folder, 0o755)
    with contextlib.suppress(FileNotFoundError):
        if os.lstat(home).st_uid != builder.pw_uid:  # the home of a deleted user of that name
            files.remove(home)
    files.ensure_dir(home, 0o700, builder.pw_uid, builder.pw_gid)
    return builder


def take_over(builder: pwd.struct_passwd, path: str, gid: int, without: Iterable[str] = ()) -> None:
    """
    Kill the builder's processes, and give a finished build to root and a group: see ``ownership.take_tree``.

    builder : pwd.struct_passwd
        The user that built it.
    path : str
        The build's folder.
    gid : int
        The group that may read it.
    without : iterable of str
        Names in the folder that are removed.
    """
    step.kill_user_processes(builder)
    ownership.take_tree(path, builder.pw_uid, gid, without)
