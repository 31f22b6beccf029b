"""
The user that runs an app: made before its first release is built, deleted with the app.
"""

from __future__ import annotations

import os
import pwd

from .. import files, step
from ..build import ownership
from ..build.users import find_user, make_user, remember_user, user_facts
from ..edge import static
from ..errors import WsgiError
from ..host import Host
from ..paths import ETC, LIB
from ..pillar.app import App


def prepare_user(host: Host, name: str, app: App) -> pwd.struct_passwd:
    """
    Make the user of an app, where there is none, and a home folder that the user may write to.

    The user is remembered as made here, so that ``delete_user`` deletes no other.

    Returns the user. Raises ``WsgiError`` where the user cannot be made.
    """
    home = f"{LIB}/home/{name}"
    made = user_facts(name).get("made", [])
    user = find_user(app["user"])
    if user is None:
        made = [*made, app["user"]]
        user = make_user(host, app["user"], home)
    for path in (ETC, f"{ETC}/{name}", LIB, f"{LIB}/home"):
        files.ensure_dir(path, 0o755)
    remember_user(name, {"user": app["user"], "made": made})
    former = os.lstat(home).st_uid if os.path.lexists(home) else user.pw_uid
    if former != user.pw_uid:
        # Processes of the former user may still run.
        ownership.give_tree(home, user.pw_uid, user.pw_gid, {former})
    static.prepare_home(host, name, app, user)
    return user


def delete_user(host: Host, name: str, user: str) -> None:
    """
    Delete a user that was made for an app; or leave the user to another app that has it, too.

    Raises ``WsgiError`` where processes of the user do not end.
    """
    for other in host.known_apps():
        facts = user_facts(other)
        if other != name and facts.get("user") == user:
            remember_user(other, {**facts, "made": [*facts["made"], user]})
            return
    account = find_user(user)
    if account:
        step.kill_user_processes(account)
    if not host.salt["user.delete"](user):
        raise WsgiError(f"the user {user} could not be deleted; does it have other processes?")
