#!/usr/bin/python3 -I
"""
Reload nginx without losing a request, and lock nginx's files meanwhile.

Salt's modules import this file. On a machine with ACME certificates it is also installed as the program
``/usr/local/lib/wsgi/reload-nginx``, which certbot runs after a renewal, with or without Salt (see ``wsgi/acme``).
So it imports nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

# The same as in `paths`: this file is also a program of its own, which can import no other one of the package.
RUN = "/run/wsgi"

LIB = "/var/lib/wsgi"

LOCK = f"{RUN}/nginx.busy"
LOCK_TIMEOUT = 300  # seconds to wait for another run that changes or reloads nginx
# The modification time of this file is the time of the program's last reload.
RELOADED = f"{RUN}/nginx.reloaded"
# While this file exists, each response asks the client to open a new connection for its next request.
DRAIN_MARKER = f"{RUN}/nginx.closing"
# A link to FAST_PATHS: while it exists, requests to an app with a file there skip all checks, so that a drain has to remove it.
FAST_PATH_LINK = f"{LIB}/short"
FAST_PATHS = f"{LIB}/shortcuts"
# A client that sends a request at least this often is asked in time to open a new connection; 40 reloads without it cost 79 of
# 28,114 requests of 8 clients, 4 of them keep-alive, on nginx 1.22.
DRAIN_TIME = 2  # seconds
RELOAD_TIMEOUT = 10  # seconds


@contextlib.contextmanager
def locked(timeout: float = LOCK_TIMEOUT) -> Iterator[None]:
    """
    Hold the lock of nginx's files and its reload. The kernel releases the lock of a killed process.

    timeout : float
        Seconds to wait for the lock.

    Raises TimeoutError when another process still holds it then.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(RUN)
        os.chmod(RUN, 0o755)  # nginx has to read it, whatever the umask is
    with open(LOCK, "a", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise TimeoutError(f"another run has held nginx's files for {timeout} s: {LOCK}") from None
                time.sleep(0.05)
        yield


def start_drain() -> None:
    """Have responses ask clients to open a new connection: a reload closes the idle ones."""
    with open(DRAIN_MARKER, "w"):
        os.chmod(DRAIN_MARKER, 0o644)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(FAST_PATH_LINK)


def end_drain() -> None:
    """Have sites keep connections open again, after a reload or after a run that was killed in one."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(DRAIN_MARKER)
    if os.path.isdir(FAST_PATHS) and not os.path.lexists(FAST_PATH_LINK):
        with contextlib.suppress(FileExistsError):
            os.symlink(os.path.basename(FAST_PATHS), FAST_PATH_LINK)


def reload(master: int) -> float | None:
    """
    Have nginx load its configuration, which must be valid, without losing a request. Call it within ``locked``.

    master : int
        The PID of nginx's master process.

    Returns the time of the signal, in seconds since 1970, or None where nginx kept its old workers.
    """
    before = _children(master)
    start_drain()
    try:
        time.sleep(DRAIN_TIME)
        signalled = time.time()
        os.kill(master, signal.SIGHUP)
        # When nginx cannot bind a port, it keeps its old workers, and only its error log tells so.
        if not _wait(lambda: _children(master) - before):
            return None
        _wait(lambda: not any(map(_accepts_connections, before)))
        return signalled
    finally:
        end_drain()


def _children(master):
    """Return the PIDs of a process's children, without zombies."""
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", errors="replace") as file:
            state, parent = file.read().rpartition(")")[2].split()[:2]
            if int(parent) == master and state not in ("Z", "X"):
                found.add(int(name))
    return found


def _accepts_connections(worker):
    """Return whether a worker still accepts connections; its title tells when it is shutting down."""
    with contextlib.suppress(OSError), open(f"/proc/{worker}/cmdline", errors="replace") as file:
        title = file.read()
        return bool(title) and "shutting down" not in title
    return False


def _wait(condition):
    deadline = time.monotonic() + RELOAD_TIMEOUT
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)
    return True


def main(program: str, lineage: str) -> int | str:
    """
    Reload nginx if one of its sites uses a renewed certificate and its configuration is valid.

    program : str
        The path of this program. Beside it, ``<program>.json`` has the paths ``sites`` and ``pid_file``.
    lineage : str
        certbot's folder of the certificate.

    Returns the exit status, or an error message.
    """
    settings = json.loads(Path(f"{program}.json").read_text())
    # Until the first certificate is there, a site uses a self-signed one.
    if not any(f"ssl_certificate {lineage}/" in path.read_text() for path in Path(settings["sites"]).iterdir()):
        return 0
    with locked():
        if subprocess.run(["nginx", "-t", "-q"], check=False).returncode:
            return 1
        signalled = reload(int(Path(settings["pid_file"]).read_text()))
        if signalled is None:
            return "nginx kept its old configuration; its error log tells why"
        Path(RELOADED).touch()
        os.utime(RELOADED, (signalled, signalled))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[0], os.environ["RENEWED_LINEAGE"]))
