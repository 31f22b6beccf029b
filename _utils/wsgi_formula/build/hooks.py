"""
An app's own commands at the moments of its life: build, before_live, after_live, before_retire.
"""

import shlex

from .. import step
from ..errors import WsgiError
from ..paths import LIB, PATH
from ..redact import redact

SHOWN = 40  # lines of what a command printed


def hook_variables(name, app, environment, user=None):
    """
    What an app, and all that belongs to it, finds in its environment.

    name : str
        The app.
    app : dict
        Its settings, as ``desired_app`` gives them; ``env`` wins over PATH, HOME and the like.
    environment : Environment
    user : pwd.struct_passwd
        Another user than the app's own.

    Returns a dict of str.
    """
    return {
        "PATH": f"{environment.path}/bin:{PATH}",
        "HOME": user.pw_dir if user else f"{LIB}/home/{name}",
        "USER": user.pw_name if user else app["user"],
        "LOGNAME": user.pw_name if user else app["user"],
        "LANG": "C.UTF-8",
        # What an app prints is to be in its log at once.
        "PYTHONUNBUFFERED": "1",
        **{variable: str(value) for variable, value in app["env"].items()},
    }


def run_hooks(name, app, moment, release, environment, uid, gid, builder=None, groups=()):
    """
    Run an app's commands of one moment, in their order, in its code.

    name : str
        The app.
    app : dict
        Its settings, as ``desired_app`` gives them.
    moment : str
        A key of ``hooks``.
    release : Release
    environment : Environment
    uid, gid : int
        Who runs them.
    builder : pwd.struct_passwd
        The same user where it is not the app's own.
    groups : iterable of int
        What other groups it is in.

    Yields, after each, the hook and a dict of what it is called to what it printed, the values of
    ``env`` struck from both. Raises ``WsgiError`` at the first that fails.
    """
    for hook in app["hooks"][moment]:
        command = hook["command"]
        words = ["/bin/sh", "-c", command] if isinstance(command, str) else [str(word) for word in command]
        shown = command if isinstance(command, str) else shlex.join(words)
        label = redact(f"{moment}: {shown}", app["env"].values())
        try:
            printed = step.run(
                words,
                name,
                what=label,
                uid=uid,
                gid=gid,
                groups=groups,
                cwd=release.code,
                env=hook_variables(name, app, environment, builder),
                timeout=hook["timeout"],
                secrets=app["env"].values(),
            )
        except FileNotFoundError as error:
            raise WsgiError(f"{label} failed: {words[0]} is not there") from error
        yield hook, {label: "\n".join(printed.rstrip().splitlines()[-SHOWN:])}
