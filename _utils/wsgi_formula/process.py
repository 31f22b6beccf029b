"""
The processes of this machine, and its unix sockets.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator

from . import files


def unix_sockets() -> Iterator[tuple[str, bool]]:
    """
    Yield the unix sockets of this machine that have a path, as pairs of the path and whether the socket listens.

    A connection is listed under its server's path from the moment of ``connect()``, accepted or not.
    """
    # A path may hold any bytes.
    with open("/proc/net/unix", errors="surrogateescape") as table:
        next(table)
        for line in table:
            fields = line.split(maxsplit=7)
            if len(fields) == 8:
                # __SO_ACCEPTCON of linux/net.h marks a listening socket.
                yield fields[7].rstrip("\n"), bool(int(fields[3], 16) & 0x10000)


def pids() -> list[int]:
    """
    Return the PIDs of this machine's processes.

    A host lists the processes of its containers in ``/proc``, too: they belong to another machine and are left out.
    """
    return [pid for pid in every_pid() if in_this_namespace(status_of(pid))]


def every_pid() -> list[int]:
    """Return the PIDs of all processes in ``/proc``, those of containers among them."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def kill(pid: int, is_meant: Callable[[int], bool]) -> None:
    """
    Kill a process, and no other one that was given its PID meanwhile.

    is_meant : callable
        Takes the PID and returns whether its process is still the one to kill; it is called while the PID can't be
        given to another process unnoticed.
    """
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except (AttributeError, OSError):  # Salt's Python, or the kernel, has no such call
        handle = None
    try:
        if is_meant(pid):
            with contextlib.suppress(ProcessLookupError):
                if handle is None:
                    os.kill(pid, signal.SIGKILL)
                else:
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
    finally:
        if handle is not None:
            os.close(handle)


def status_of(pid: int | str) -> dict[bytes, bytes]:
    """Return the fields of ``/proc/<pid>/status``; an empty dict where the process is gone."""
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            return dict(line.split(b":", 1) for line in status.read().splitlines() if b":" in line)
    except (FileNotFoundError, ProcessLookupError):
        return {}


def in_this_namespace(status: dict[bytes, bytes]) -> bool:
    """Return whether a process with this ``status_of`` exists, and in the PID namespace that ``/proc`` shows."""
    # A process has a PID in each namespace from that one on: in a container, two.
    return bool(status) and len(status.get(b"NSpid", b"0").split()) == 1


def is_local(pid: int, status: dict[bytes, bytes]) -> bool:
    """
    Return whether a process with this ``status_of`` is this machine's, in whatever PID namespace.

    An ordinary user can make a PID namespace only within a new user namespace, which has a UID map of its own. A
    container that root started shares the machine's UID map; its processes are not this machine's.
    """
    return in_this_namespace(status) or _uid_map(pid) != _uid_map("self")


def _uid_map(pid: int | str) -> str | None:
    return files.read(f"/proc/{pid}/uid_map")


def descendants(pid: int | None) -> list[int]:
    """Return the PIDs of a process and of all that descend from it; an empty list for None, or where it is gone."""
    if not pid or not is_alive(pid):
        return []
    children: dict[int, list[int]] = {}
    for child in pids():
        fields = stat_of(child)
        if fields:
            children.setdefault(int(fields[1]), []).append(child)
    found, pending = [], [pid]
    while pending:
        found.append(pending.pop())
        pending += children.get(found[-1], [])
    return sorted(found)


def start_ticks(pid: int) -> int | None:
    """
    Return when a process started, in clock ticks since boot, or None where it is gone.

    Together with its PID this tells it from any other process.
    """
    fields = stat_of(pid)
    return int(fields[19]) if fields else None


def uptime(pid: int | None) -> float:
    """Return for how many seconds a process has run; 0.0 for None, or where it is gone."""
    ticks = start_ticks(pid) if pid else None
    if ticks is None:
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def is_alive(pid: int | None) -> bool:
    """Return whether a process exists and is no zombie; False for None."""
    fields = stat_of(pid) if pid else None
    return fields is not None and fields[0] not in ("Z", "X")


def pss_bytes(pids: Iterable[int]) -> int:
    """Return the resident memory of processes in bytes; a page that several share counts in part for each (PSS)."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as rollup:
            for line in rollup:
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def wait_until(condition: Callable[[], object], patience: float, pause: float = 0.05) -> bool:
    """
    Wait until a condition is true, and return whether it became so in time.

    condition : callable
        Takes nothing.
    patience : float
        Seconds to wait at most.
    pause : float
        Seconds between two checks.
    """
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause)
    return True


def stat_of(pid: int | str) -> list[str] | None:
    """Return the fields of ``/proc/<pid>/stat`` after the name, from the state on; None where the process is gone."""
    try:
        # A process may have any bytes in its name.
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
