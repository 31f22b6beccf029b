"""
One run at a time changes an app.
"""

import contextlib
import fcntl
import json
import os
import threading
import time

from . import files, step
from .errors import WsgiError
from .paths import RUN

PATIENCE = 900  # seconds that a run waits for another one: as long as a build may well take


_held = set()


@contextlib.contextmanager
def app_lock(name, what, patience=PATIENCE):
    """
    Hold an app for oneself. Whoever holds it already may do so again.

    name : str
        The app.
    what : str
        What for, such as ``wsgi.deploy``: whoever is refused is told.
    patience : float
        Seconds to wait for another run that holds it.

    Raises ``WsgiError`` when another run still does. The kernel frees the lock of a process that
    died; what it left running of a build is killed.
    """
    me = (name, threading.get_ident())
    if me in _held:
        yield
        return
    files.ensure_dir(RUN, 0o755)
    with open(f"{RUN}/{name}.lock", "a+", errors="replace") as file:
        os.fchmod(file.fileno(), 0o600)
        _wait(file, name, patience)
        file.seek(0)
        if file.read():  # nobody who came to an end leaves it so
            step.kill_steps(name)
        _write(file, {"what": what, "pid": os.getpid(), "since": time.strftime("%H:%M:%S")})
        _held.add(me)
        try:
            yield
        finally:
            _held.discard(me)
            _write(file, None)


def _wait(file, name, patience):
    deadline = time.monotonic() + patience
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise WsgiError(f"{name} is being changed by {_holder(file)}; try again when that has ended") from None
            time.sleep(0.1)


def _holder(file):
    file.seek(0)
    with contextlib.suppress(ValueError, KeyError, TypeError):
        found = json.loads(file.read())
        return f"{found['what']} (PID {found['pid']}, since {found['since']})"
    return "another run"


def _write(file, holder):
    file.truncate(0)
    if holder:
        file.write(json.dumps(holder))
    file.flush()
