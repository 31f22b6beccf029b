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

import wsgi_host
from wsgi_host import Problem
from wsgi_schema import without_credentials

BUILD_TIMEOUT = 1800  # seconds, for one step of a build
# Marks every process of an app's steps, however deep: only the run that holds the app's lock has any.
MARK = "WSGI_STEP"
# A value this long is struck from what is shown of a log.
SECRET = 6  # characters
KEPT_OUTPUT = 64 * 1024  # bytes


def run(command, name, *, what="", uid=0, gid=0, cwd="/", env=None, timeout=BUILD_TIMEOUT, secrets=(), stdout=None):
    """
    Run one step, to its end.

    command : list of str
    name : str
        The app.
    what : str
        What a failure calls it; the command's words when not given.
    uid, gid : int
        Who runs it.
    cwd : str
    env : dict
        What it sees besides ``PATH``, ``LANG`` and how to reach an index.
    timeout : int
        Seconds. Then it is killed, with all that it started; so is what it left running.
    secrets : iterable of str
        What is struck from its output.
    stdout : file
        Takes its standard output, as it is, instead.

    Returns the last 64 KiB of what it printed. Raises ``Problem`` with the last lines of that when
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
                extra_groups=[],
                env={**environment(), **(env or {}), MARK: name},
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
            end(name)
        if code is None:
            process.wait()
        output.seek(max(0, output.tell() - KEPT_OUTPUT))
        text = strike(output.read().decode(errors="replace"), secrets)
    if code is None:
        raise Problem(f"{what} did not end within {timeout} s:\n{tail(text)}")
    if code:
        raise Problem(f"{what} failed:\n{tail(text)}")
    return text


def end(name, patience=5):
    """
    Kill every process of an app's steps. Whoever calls it holds the app's lock, or its caller does.

    patience : float
        Seconds that it tries.

    Returns the PIDs that it found.
    """
    mark, found = f"{MARK}={name}".encode(), set()
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        running = set(_marked(mark))
        if not running:
            break
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        found |= running
        time.sleep(0.02)
    return sorted(found)


def _marked(mark):
    for pid in wsgi_host.pids():
        # One that is a zombie has no environment any more.
        with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as variables:
            if mark in variables.read().split(b"\0"):
                yield pid


def environment():
    """What a step may see of Salt's own environment: how to reach an index, and no more."""
    passed = ("PIP_", "UV_", "SSL_CERT_", "REQUESTS_CA_", "HTTP_", "HTTPS_", "NO_PROXY", "ALL_PROXY")
    return {
        "PATH": wsgi_host.PATH,
        "LANG": "C.UTF-8",
        **{name: value for name, value in os.environ.items() if name.upper().startswith(passed)},
    }


def strike(text, secrets):
    """A text without these values, nor any credentials in its URLs."""
    for value in sorted({str(value) for value in secrets}, key=len, reverse=True):
        if len(value) >= SECRET:
            text = text.replace(value, "***")
    return without_credentials(text)


def tail(text, lines=15):
    """The last lines of a text, indented, for a comment."""
    return "\n".join("  " + line for line in text.rstrip().splitlines()[-lines:])
