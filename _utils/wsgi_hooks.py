"""
An app's own commands at the moments of its life: build, before_live, after_live, before_retire.
"""

import shlex

import wsgi_host
import wsgi_step
from wsgi_host import LIB, Problem

SHOWN = 40  # lines of what a command printed


def variables(name, app, environment):
    """
    What an app, and all that belongs to it, finds in its environment.

    name : str
        The app.
    app : dict
        Its settings, as ``wsgi_wanted.app`` gives them; ``env`` wins over PATH, HOME and the like.
    environment : wsgi_environment.Environment

    Returns a dict of str.
    """
    return {
        "PATH": f"{environment.path}/bin:{wsgi_host.PATH}",
        "HOME": f"{LIB}/home/{name}",
        "USER": app["user"],
        "LOGNAME": app["user"],
        "LANG": "C.UTF-8",
        # What an app prints is to be in its log at once.
        "PYTHONUNBUFFERED": "1",
        **{variable: str(value) for variable, value in app["env"].items()},
    }


def run(name, app, moment, release, environment, uid, gid):
    """
    Run an app's commands of one moment, in their order, as its user, in its code.

    name : str
        The app.
    app : dict
        Its settings, as ``wsgi_wanted.app`` gives them.
    moment : str
        A key of ``hooks``.
    release : wsgi_release.Release
    environment : wsgi_environment.Environment
    uid, gid : int
        The app's user.

    Yields, after each, the hook and a dict of what it is called to what it printed, the values of
    ``env`` struck from both. Raises ``Problem`` at the first that fails.
    """
    for hook in app["hooks"][moment]:
        command = hook["command"]
        words = ["/bin/sh", "-c", command] if isinstance(command, str) else [str(word) for word in command]
        shown = command if isinstance(command, str) else shlex.join(words)
        label = wsgi_step.strike(f"{moment}: {shown}", app["env"].values())
        try:
            printed = wsgi_step.run(
                words,
                name,
                what=label,
                uid=uid,
                gid=gid,
                cwd=release.code,
                env=variables(name, app, environment),
                timeout=hook["timeout"],
                secrets=app["env"].values(),
            )
        except FileNotFoundError as error:
            raise Problem(f"{label} failed: {words[0]} is not there") from error
        yield hook, {label: "\n".join(printed.rstrip().splitlines()[-SHOWN:])}
