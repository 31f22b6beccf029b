"""
Hooks: an app's own commands at the moments ``build``, ``before_live``, ``after_live`` and ``before_retire``.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from pwd import struct_passwd
from typing import Any, Protocol

from .. import step
from ..errors import WsgiError
from ..paths import LIB, PATH
from ..pillar.app import App
from ..redact import redact

SHOWN_LINES = 40  # of a command's output


class HasPath(Protocol):
    """A virtual environment."""

    path: str


class HasCode(Protocol):
    """A release."""

    code: str


def hook_variables(app: App, environment: HasPath, user: struct_passwd | None = None) -> dict[str, str]:
    """
    Return the environment variables of an app's processes, programs and hooks.

    app : App
        The app, as ``desired_app`` returns it; its ``env`` wins over ``PATH``, ``HOME`` and the others.
    environment : Environment
        Its virtual environment.
    user : pwd.struct_passwd
        The user that runs the process, if that is not the app's own.
    """
    return {
        "PATH": f"{environment.path}/bin:{PATH}",
        "HOME": user.pw_dir if user else f"{LIB}/home/{app.name}",
        "USER": user.pw_name if user else app["user"],
        "LOGNAME": user.pw_name if user else app["user"],
        "LANG": "C.UTF-8",
        # An app's output is to reach its log at once.
        "PYTHONUNBUFFERED": "1",
        **{variable: str(value) for variable, value in app["env"].items()},
    }


def run_hooks(
    app: App,
    moment: str,
    release: HasCode,
    environment: HasPath,
    uid: int,
    gid: int,
    builder: struct_passwd | None = None,
    groups: Iterable[int] = (),
) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    """
    Run an app's hooks of one moment, in their order, in the release's code.

    app : App
        The app, as ``desired_app`` returns it.
    moment : str
        A key of ``hooks``.
    release : Release
    environment : Environment
    uid, gid : int
        The user and the group that run the hooks.
    builder : pwd.struct_passwd
        That user, if it is not the app's own.
    groups : iterable of int
        The user's other groups.

    Yields after each hook the hook and a dict of its label to its output, both without the values of ``env``. Raises
    ``WsgiError`` at the first hook that fails.
    """
    for hook in app["hooks"][moment]:
        command = hook["command"]
        words = ["/bin/sh", "-c", command] if isinstance(command, str) else [str(word) for word in command]
        shown = command if isinstance(command, str) else shlex.join(words)
        label = redact(f"{moment}: {shown}", app["env"].values())
        try:
            printed = step.run(
                words,
                app.name,
                label=label,
                uid=uid,
                gid=gid,
                groups=groups,
                cwd=release.code,
                env=hook_variables(app, environment, builder),
                timeout=hook["timeout"],
                secrets=app["env"].values(),
            )
        except FileNotFoundError as error:
            raise WsgiError(f"{label} failed: there is no program {words[0]}") from error
        yield hook, {label: "\n".join(printed.rstrip().splitlines()[-SHOWN_LINES:])}
