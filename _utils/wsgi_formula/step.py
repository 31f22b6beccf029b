"""
Steps of a build, and an app's own commands: run with a time-out, what they print kept without
the secrets in it, and no process of theirs left behind.
"""

import contextlib
import os
import signal
import subprocess
import tempfile
import time

from . import process
from .errors import WsgiError
from .paths import PATH
from .redact import redact, tail

BUILD_TIMEOUT = 1800  # seconds, for one step of a build

# Marks every process of an app's steps, however deep: only the run that holds the app's lock has any. See `mark`.
MARK = "WSGI_STEP"

KEPT_OUTPUT = 64 * 1024  # bytes

KERNEL_THREAD = 0x00200000  # PF_KTHREAD in linux/sched.h


def run(
    command,
    name,
    *,
    what="",
    uid=0,
    gid=0,
    groups=(),
    cwd="/",
    env=None,
    timeout=BUILD_TIMEOUT,
    secrets=(),
    stdout=None,
):
    """
    Run one step, to its end.

    command : list of str
    name : str
        The app.
    what : str
        What a failure calls it; the command's words when not given.
    uid, gid : int
        Who runs it.
    groups : iterable of int
        What other groups it is in.
    cwd : str
    env : dict
        What it sees besides ``PATH``, ``LANG`` and how to reach an index.
    timeout : int
        Seconds. Then it is killed, with all that it started; so is what it left running.
    secrets : iterable of str
        What is struck from its output.
    stdout : file
        Takes its standard output, as it is, instead.

    Returns the last 64 KiB of what it printed. Raises ``WsgiError`` with the last lines of that when
    it fails or takes too long, and FileNotFoundError where there is no such program.
    """
    what = what or " ".join(command)
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                user=uid,
                group=gid,
                extra_groups=list(groups),
                env={**index_environment(), **(env or {}), MARK: mark(name)},
                umask=0o022,
                stdin=subprocess.DEVNULL,
                stdout=stdout or output,
                stderr=output,
                start_new_session=True,
            )
            try:
                code = process.wait(timeout)
            except subprocess.TimeoutExpired:
                code = None
        finally:
            kill_steps(name)
        if code is None:
            process.wait()
        output.seek(max(0, output.tell() - KEPT_OUTPUT))
        text = redact(output.read().decode(errors="replace"), secrets)
    if code is None:
        raise WsgiError(f"{what} did not end within {timeout} s:\n{tail(text)}")
    if code:
        said = tail(text) or f"  it printed nothing, and {_ended(code)}"
        raise WsgiError(f"{what} failed:\n{said}")
    return text


def _ended(code):
    """How a process ended, by its return code as ``subprocess`` has it, for a comment."""
    if code > 0:
        return f"its exit status is {code}"
    # Those of real time have no names.
    names = {number: signal.Signals(number).name for number in signal.Signals}
    return f"was ended by {names.get(-code, f'signal {-code}')}"


def mark(name: str) -> str:
    """
    Return the value that marks the processes of an app's steps on this machine.

    A container that shares the PID namespace of its host has another root directory.
    """
    root = os.stat("/")
    return f"{name}@{root.st_dev}.{root.st_ino}"


def kill_steps(name, patience=5):
    """
    Kill every process of an app's steps. Whoever calls it holds the app's lock, or its caller does.

    patience : float
        Seconds that it tries.

    Returns the PIDs that it found.
    """
    variable, found = f"{MARK}={mark(name)}".encode(), set()
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        running, unknown = _marked(variable)
        if not running and not unknown:
            break
        for pid in running:
            with contextlib.suppress(OSError):
                process.kill(pid, lambda each: variable in _environ(each).split(b"\0"))
        found.update(running)
        time.sleep(0.02)
    return sorted(found)


def kill_user_processes(user, patience=10):
    """
    Kill every process of a user that is the formula's own, until there is none.

    user : pwd.struct_passwd
    patience : float
        Seconds that it tries.

    Raises ``WsgiError`` where some are left.
    """
    deadline = time.monotonic() + patience
    while True:
        running = [pid for pid in process.every_pid() if _is_run_by(pid, user.pw_uid)]
        if not running:
            return
        if time.monotonic() > deadline:
            raise WsgiError(f"processes of the user {user.pw_name} can't be ended: {', '.join(map(str, running))}")
        for pid in running:
            process.kill(pid, lambda each: _is_run_by(each, user.pw_uid))
        time.sleep(0.02)


def _is_run_by(pid, uid):
    """Return whether a process that is no zombie is of this machine and a user's."""
    status = process.status_of(pid)
    if str(uid).encode() not in status.get(b"Uid", b"").split() or status[b"State"].split()[0] in (b"Z", b"X"):
        return False
    return process.is_local(pid, status)


def _marked(variable):
    """Return the processes with a variable in their environment, and those of which that can't be said yet."""
    running, unknown = [], []
    for pid in process.pids():
        with contextlib.suppress(OSError):
            environ = _environ(pid)
            if variable in environ.split(b"\0"):
                running.append(pid)
            elif not environ and _between_programs(pid):
                unknown.append(pid)
    return running, unknown


def _environ(pid):
    # Of one that has no memory any more, newer kernels say that it is gone.
    with contextlib.suppress(ProcessLookupError), open(f"/proc/{pid}/environ", "rb") as variables:
        return variables.read()
    return b""


def _between_programs(pid):
    """Whether a process showed no environment because it was about to run another program, or to end."""
    with open(f"/proc/{pid}/stat", errors="replace") as stat:
        fields = stat.read().rpartition(")")[2].split()  # from the third on: man 5 proc
    state, flags, begin, end = fields[0], int(fields[6]), int(fields[47]), int(fields[48])
    truly_empty = 0 < begin == end
    return state not in ("Z", "X") and not flags & KERNEL_THREAD and not truly_empty


def index_environment():
    """What a step may see of Salt's own environment: how to reach an index, and no more."""
    passed = ("PIP_", "UV_", "SSL_CERT_", "REQUESTS_CA_", "HTTP_", "HTTPS_", "NO_PROXY", "ALL_PROXY")
    return {
        "PATH": PATH,
        "LANG": "C.UTF-8",
        **{name: value for name, value in os.environ.items() if name.upper().startswith(passed)},
    }
