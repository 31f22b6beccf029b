"""
The processes of a unit: which of them still write to its log, and how all of them are ended.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import glob
import os
import pwd
import stat
import termios
from collections.abc import Iterator, Mapping

from .. import files, process

# The environment variable by which a unit's processes are found that have left its cgroup.
MARK = "WSGI_UNIT"

CGROUPS = "/sys/fs/cgroup"

APPEND = "/usr/local/lib/wsgi/append"


def wait_for_log(log: str, patience: float = 5) -> bool:
    """
    Wait until a log holds all that was printed: `append` may be some lines behind.

    log : str
        Its path.
    patience : float
        Seconds.

    Returns whether it does.
    """
    return process.wait_until(lambda: not any(_has_input(pid) for pid in _running(APPEND, log)), patience)


def _running(*words: str) -> Iterator[int]:
    """Yield the PIDs of the processes whose command line ends in these words."""
    ending = "\0".join(["", *words, ""]).encode()
    for pid in process.pids():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            if file.read().endswith(ending):
                yield pid


def _has_input(pid: int) -> bool:
    """Return whether a process has something left to read from its standard input, a pipe, or works on it now."""
    fields = process.stat_of(pid)
    with contextlib.ExitStack() as opened:
        try:
            # An app may have a process of this command line, whose input is anything: only a pipe is opened.
            found = os.open(f"/proc/{pid}/fd/0", os.O_PATH)
            opened.callback(os.close, found)
            if not stat.S_ISFIFO(os.fstat(found).st_mode):
                return False
            pipe = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK)
            opened.callback(os.close, pipe)
        except OSError:
            return False
        left = array.array("i", [0])
        fcntl.ioctl(pipe, termios.FIONREAD, left)
        return left[0] > 0 or bool(fields and fields[0] == "R")


def kill_survivors(births: Mapping[int, int | None]) -> None:
    """
    Kill those of some processes that still run, and no other one that was given a PID of theirs.

    births : dict
        Their PIDs, each with its ``process.start_ticks``.
    """
    for each in births:
        process.kill(each, lambda pid: process.start_ticks(pid) == births[pid])


def kill_unit(unit: str, user: str, patience: float = 10) -> None:
    """
    Kill all processes of a unit, whichever process is their parent by now.

    They are those in the cgroup that ``launch``, or systemd, made for the unit, and those of its user that have the
    unit's mark in their environment.

    patience : float
        Seconds after which it gives up.
    """
    groups, mark, uid = {f"wsgi-{unit}", f"wsgi-{unit}.service"}, f"{MARK}={unit}".encode(), _uid(user)

    def belongs(pid):
        status = process.status_of(pid)
        if str(uid).encode() not in status.get(b"Uid", b"").split():
            # What publishes the sockets is root's.
            return process.in_this_namespace(status) and _in_cgroup(pid, groups)
        return process.is_local(pid, status) and (_in_cgroup(pid, groups) or _is_marked(pid, mark))

    def none_left():
        found = [pid for pid in process.every_pid() if belongs(pid) and process.is_alive(pid)]
        for pid in found:
            process.kill(pid, belongs)
        return not found

    process.wait_until(none_left, patience)
    for path in _cgroups(unit):
        with contextlib.suppress(OSError):  # its last process has not ended wholly yet
            os.rmdir(path)


def _in_cgroup(pid: int, names: set[str]) -> bool:
    table = files.read(f"/proc/{pid}/cgroup", errors="surrogateescape") or ""
    return any(names & {*line.partition("/")[2].split("/")} for line in table.splitlines())


def _is_marked(pid: int, mark: bytes) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as environ:
        return mark in environ.read().split(b"\0")
    return False


def _uid(user: str) -> int | None:
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        return None


def _cgroups(unit: str) -> Iterator[str]:
    """Yield the paths of the cgroups that ``launch`` made for a unit, below those of the machine's services."""
    lines = (files.read("/proc/1/cgroup") or "").splitlines()
    ours = [line.split(":", 2)[1:] for line in lines]
    roots = {path.replace("/init.scope", "").rstrip("/") for kind, path in ours if kind in ("", "name=systemd")}
    for mount in (CGROUPS, f"{CGROUPS}/systemd", f"{CGROUPS}/unified"):
        for root in roots:
            yield from glob.glob(f"{glob.escape(mount + root)}/*.slice/*.service/wsgi-{glob.escape(unit)}")
