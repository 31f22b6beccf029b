"""
Steps: the commands of a build, and an app's own ones. Each runs with a time-out and leaves no process behind; the end
of its output is kept, without secrets.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pwd import struct_passwd
from typing import IO

from . import process
from .errors import WsgiError
from .paths import PATH
from .redact import redact, tail

BUILD_TIMEOUT = 1800  # seconds, for one step of a build

# The variable that every process of an app's steps inherits: see `mark`. Only the run that holds the app's lock starts any.
MARK = "WSGI_STEP"

KEPT_OUTPUT = 64 * 1024  # bytes

KERNEL_THREAD = 0x00200000  # PF_KTHREAD in linux/sched.h


def run(
    command: Sequence[str],
    name: str,
    *,
    label: str = "",
    uid: int = 0,
    gid: int = 0,
    groups: Iterable[int] = (),
    cwd: str = "/",
    env: Mapping[str, str] | None = None,
    timeout: float = BUILD_TIMEOUT,
    secrets: Iterable[object] = (),
    stdout: IO[bytes] | None = None,
) -> str:
    """
    Run one step to its end, then kill every process that it left running.

    command : list of str
    name : str
        The app.
    label : str
        The step's name in an error; the command's words when not given.
    uid, gid : int
        The user and the group that run it.
    groups : iterable of int
        The user's other groups.
    cwd : str
        The folder that it runs in.
    env : dict
        Its environment variables, besides ``PATH``, ``LANG`` and those that tell how to reach a package index.
    timeout : float
        Seconds until it is killed.
    secrets : iterable
        Values that are replaced by ``***`` in its output.
    stdout : binary file
        Where its standard output goes unaltered, instead of into the returned text.

    Returns the last 64 KiB of its output. Raises ``WsgiError`` with the last lines of the output when it fails or takes
    too long, and ``FileNotFoundError`` where there is no such program.
    """
    label = label or " ".join(command)
    with tempfile.TemporaryFile() as output:
        try:
            running = subprocess.Popen(
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
                code = running.wait(timeout)
            except subprocess.TimeoutExpired:
                code = None  # kill_steps ends it
        finally:
            kill_steps(name)
        if code is None:
            running.wait()
        output.seek(max(0, output.tell() - KEPT_OUTPUT))
        text = redact(output.read().decode(errors="replace"), secrets)
    if code is None:
        raise WsgiError(f"{label} did not end within {timeout} s:\n{tail(text)}")
    if code:
        reason = tail(text) or f"  it printed nothing, and {_describe_end(code)}"
        raise WsgiError(f"{label} failed:\n{reason}")
    return text


def _describe_end(code: int) -> str:
    """Say how a process ended, from its return code as ``subprocess`` gives it."""
    if code > 0:
        return f"its exit status is {code}"
    # Real-time signals have no names.
    names = {number.value: number.name for number in signal.Signals}
    return f"it was ended by {names.get(-code, f'signal {-code}')}"


def mark(name: str) -> str:
    """
    Return the value of ``MARK`` in the processes of an app's steps on this machine.

    It names the root directory, as a container may share the PID namespace of its host.
    """
    root = os.stat("/")
    return f"{name}@{root.st_dev}.{root.st_ino}"


def kill_steps(name: str, patience: float = 5) -> list[int]:
    """
    Kill every process of an app's steps, and return their PIDs. The caller holds the app's lock.

    patience : float
        Seconds after which it gives up.
    """
    variable = f"{MARK}={mark(name)}".encode()
    found: set[int] = set()
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        running, unknown = _marked(variable)
        if not running and not unknown:
            break
        for pid in running:
            with contextlib.suppress(OSError):
                process.kill(pid, lambda pid: variable in _environ(pid).split(b"\0"))
        found.update(running)
        time.sleep(0.02)
    return sorted(found)


def kill_user_processes(user: struct_passwd, patience: float = 10) -> None:
    """
    Kill all processes of a user that the formula made, until there is none.

    patience : float
        Seconds after which it gives up.

    Raises ``WsgiError`` where some are left.
    """
    deadline = time.monotonic() + patience
    while True:
        running = [pid for pid in process.every_pid() if _is_run_by(pid, user.pw_uid)]
        if not running:
            return
        if time.monotonic() > deadline:
            raise WsgiError(
                f"the processes of the user {user.pw_name} could not be killed: {', '.join(map(str, running))}"
            )
        for pid in running:
            process.kill(pid, lambda pid: _is_run_by(pid, user.pw_uid))
        time.sleep(0.02)


def _is_run_by(pid: int, uid: int) -> bool:
    """Return whether a process is this machine's, a user's, and no zombie."""
    status = process.status_of(pid)
    if str(uid).encode() not in status.get(b"Uid", b"").split() or status[b"State"].split()[0] in (b"Z", b"X"):
        return False
    return process.is_local(pid, status)


def _marked(variable: bytes) -> tuple[list[int], list[int]]:
    """Return the processes with a variable in their environment, and those whose environment can't be read yet."""
    running, unknown = [], []
    for pid in process.pids():
        with contextlib.suppress(OSError):
            environ = _environ(pid)
            if variable in environ.split(b"\0"):
                running.append(pid)
            elif not environ and _between_programs(pid):
                unknown.append(pid)
    return running, unknown


def _environ(pid: int) -> bytes:
    # Newer kernels report a process without memory as gone.
    with contextlib.suppress(ProcessLookupError), open(f"/proc/{pid}/environ", "rb") as variables:
        return variables.read()
    return b""


def _between_programs(pid: int) -> bool:
    """Return whether a process shows no environment because it is about to run another program, or to end."""
    with open(f"/proc/{pid}/stat", errors="replace") as stat:
        fields = stat.read().rpartition(")")[2].split()  # from the third on: man 5 proc
    state, flags, begin, end = fields[0], int(fields[6]), int(fields[47]), int(fields[48])
    truly_empty = 0 < begin == end
    return state not in ("Z", "X") and not flags & KERNEL_THREAD and not truly_empty


def index_environment() -> dict[str, str]:
    """Return the variables of Salt's own environment that a step may see: those that tell how to reach an index."""
    prefixes = ("PIP_", "UV_", "SSL_CERT_", "REQUESTS_CA_", "HTTP_", "HTTPS_", "NO_PROXY", "ALL_PROXY")
    return {
        "PATH": PATH,
        "LANG": "C.UTF-8",
        **{name: value for name, value in os.environ.items() if name.upper().startswith(prefixes)},
    }
