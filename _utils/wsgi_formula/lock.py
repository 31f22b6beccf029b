"""
The lock of an app: one run at a time changes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator
from typing import TextIO

from . import files, step
from .errors import WsgiError
from .paths import RUN

LOCK_TIMEOUT = 900  # seconds that a run waits for another one: a build may take as long

# The locks that threads of this process hold: pairs of an app and a thread's id.
_held: set[tuple[str, int]] = set()


@contextlib.contextmanager
def app_lock(name: str, purpose: str, patience: float = LOCK_TIMEOUT) -> Iterator[None]:
    """
    Hold an app's lock. A thread that holds it already may take it again.

    name : str
        The app.
    purpose : str
        What the lock is held for, such as ``wsgi.deploy``; the error of a run that had to wait names it.
    patience : float
        Seconds to wait for another run that holds the lock.

    Raises ``WsgiError`` when another run holds it longer than that. The kernel frees the lock of a process that died;
    the steps of a build that such a process left running are killed.

    .. code-block:: python

        with app_lock("shop", "wsgi.deploy", patience=0):
            …
    """
    holder = (name, threading.get_ident())
    if holder in _held:
        yield
        return
    files.ensure_dir(RUN, 0o755)
    with open(f"{RUN}/{name}.lock", "a+", errors="replace") as file:
        os.fchmod(file.fileno(), 0o600)
        _acquire(file, name, patience)
        file.seek(0)
        if file.read():  # its last holder was killed: a run that ends empties the file
            step.kill_steps(name)
        _write_holder(file, {"what": purpose, "pid": os.getpid(), "since": time.strftime("%H:%M:%S")})
        _held.add(holder)
        try:
            yield
        finally:
            _held.discard(holder)
            _write_holder(file, None)


def _acquire(file: TextIO, name: str, patience: float) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise WsgiError(
                    f"{name} is being changed by {_read_holder(file)}; try again when that has ended"
                ) from None
            time.sleep(0.1)


def _read_holder(file: TextIO) -> str:
    file.seek(0)
    with contextlib.suppress(ValueError, KeyError, TypeError):
        holder = json.loads(file.read())
        return f"{holder['what']} (PID {holder['pid']}, since {holder['since']})"
    return "another run"


def _write_holder(file: TextIO, holder: dict | None) -> None:
    file.truncate(0)
    if holder:
        file.write(json.dumps(holder))
    file.flush()
