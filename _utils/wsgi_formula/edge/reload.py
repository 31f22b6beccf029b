"""
The reload of nginx that loses no request, and the lock under which nginx's files are changed and reloaded.

Salt's modules import this file, and certbot runs it as a program when it has renewed a certificate (see
wsgi/acme), so it needs nothing but the standard library: reload.py PID_FILE
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time

# As files has them, which needs Salt.
RUN = "/run/wsgi"

LIB = "/var/lib/wsgi"

LOCK = f"{RUN}/nginx.busy"

PATIENCE = 300  # seconds to wait for another run that changes or reloads nginx

# This file is as old as the last reload by the program.
RELOADED = f"{RUN}/nginx.reloaded"

# While this file exists and SHORT does not, sites ask clients to open a new connection for their next request.
DRAIN_MARKER = f"{RUN}/nginx.closing"

# A link to the folder of all shortcuts: what nginx finds there needs no other check.
FAST_PATH_LINK = f"{LIB}/short"

FAST_PATHS = f"{LIB}/shortcuts"

# How long, before a reload. Any client that sends more often than that is told in time; 40
# reloads without it cost 79 of 28,114 requests of 8 clients, 4 of them keep-alive, on nginx 1.22.
CLOSING_TIME = 2  # seconds

RELOAD_PATIENCE = 10  # seconds


@contextlib.contextmanager
def alone(patience: float = PATIENCE):
    """
    Hold nginx's files and its reload: whoever changes or reloads them waits here for the others.

    patience : float
        Seconds to wait.

    Raises TimeoutError when another process still holds them then. The kernel frees the lock of a killed process.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(RUN)
        os.chmod(RUN, 0o755)  # nginx looks into it, whatever the umask is
    with open(LOCK, "a", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise TimeoutError(f"another run has held nginx's files for {patience} s: {LOCK}") from None
                time.sleep(0.05)
        yield


def end_closing():
    """Have sites keep connections open again, after a reload or after a run that was killed in one."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(DRAIN_MARKER)
    if os.path.isdir(FAST_PATHS) and not os.path.lexists(FAST_PATH_LINK):
        with contextlib.suppress(FileExistsError):
            os.symlink(os.path.basename(FAST_PATHS), FAST_PATH_LINK)


def reload(master: int):
    """
    Have nginx read its configuration, which must be valid, without losing a request. Call it within ``alone``.

    master : int
        The PID of nginx's master process.

    Returns when nginx was signalled, in seconds since 1970, or None where it went on with its old workers.
    """
    before = _children(master)
    with open(DRAIN_MARKER, "w"):
        os.chmod(DRAIN_MARKER, 0o644)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(FAST_PATH_LINK)
    try:
        time.sleep(CLOSING_TIME)
        asked = time.time()
        os.kill(master, signal.SIGHUP)
        # nginx keeps its old workers, and says so in its log alone, when it can't have a port.
        if not _wait(lambda: _children(master) - before):
            return None
        _wait(lambda: not any(map(_accepts, before)))
        return asked
    finally:
        end_closing()


def _children(master):
    """The PIDs of a process's children that are no zombies."""
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", errors="replace") as file:
            state, parent = file.read().rpartition(")")[2].split()[:2]
            if int(parent) == master and state not in ("Z", "X"):
                found.add(int(name))
    return found


def _accepts(worker):
    """Whether a worker still takes new connections; its title says when it does no more."""
    with contextlib.suppress(OSError), open(f"/proc/{worker}/cmdline", errors="replace") as file:
        title = file.read()
        return bool(title) and "shutting down" not in title
    return False


def _wait(condition):
    deadline = time.monotonic() + RELOAD_PATIENCE
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)
    return True


def main(pid_file: str):
    """Reload nginx if its configuration is valid; return the exit status."""
    with alone():
        if subprocess.run(["nginx", "-t", "-q"], check=False).returncode:
            return 1
        with open(pid_file) as file:
            asked = reload(int(file.read()))
        if asked is None:
            return "nginx did not take its new configuration; its error log says why"
        with open(RELOADED, "w"):
            os.utime(RELOADED, (asked, asked))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
