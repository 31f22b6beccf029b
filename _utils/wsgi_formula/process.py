"""
The processes of this machine, and its unix sockets.
"""

import contextlib
import os
import signal
import time

from . import files


def unix_sockets():
    """
    The unix sockets of this machine that have a path.

    Yields ``(path, listens)``; a connection stands there under its server's path, from the
    moment of connect(), accepted or not.
    """
    # A path may hold any bytes.
    with open("/proc/net/unix", errors="surrogateescape") as table:
        next(table)
        for line in table:
            fields = line.split(maxsplit=7)
            if len(fields) == 8:
                # __SO_ACCEPTCON of linux/net.h marks a listening socket.
                yield fields[7].rstrip("\n"), bool(int(fields[3], 16) & 0x10000)


def pids() -> "list[int]":
    """
    Return the PIDs of this machine's processes.

    A host sees those of its containers in ``/proc``, too: they are another machine's, and are left out.
    """
    return [pid for pid in every_pid() if in_this_namespace(status_of(pid))]


def every_pid() -> "list[int]":
    """Return the PIDs of all processes that can be seen, containers' among them."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def kill(pid: int, is_meant) -> None:
    """
    Kill a process, and no other that took over its PID.

    is_meant : callable
        Takes the PID; asked once the PID can't be given to another process unnoticed.
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


def status_of(pid) -> dict:
    """Return the fields of ``/proc/<pid>/status``, bytes to bytes; an empty dict where the process is gone."""
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            return dict(line.split(b":", 1) for line in status.read().splitlines() if b":" in line)
    except (FileNotFoundError, ProcessLookupError):
        return {}


def in_this_namespace(status: dict) -> bool:
    """Return whether a process with this ``status_of`` is there and in the PID namespace that ``/proc`` is of."""
    # It has a PID in each namespace from that one on: in a container, two.
    return bool(status) and len(status.get(b"NSpid", b"0").split()) == 1


def is_local(pid, status: dict) -> bool:
    """
    Return whether a process with this ``status_of`` is this machine's, in whatever PID namespace.

    Unlike a container, what an ordinary user put into a PID namespace has a user namespace of its own, too: nothing
    else lets such a user make one.
    """
    return in_this_namespace(status) or _uid_map(pid) != _uid_map("self")


def _uid_map(pid):
    return files.read(f"/proc/{pid}/uid_map")


def descendants(pid):
    """
    A process and all that descend from it.

    pid : int or None

    Returns a list of PIDs; an empty one for None, or where it is gone.
    """
    if not pid or not is_alive(pid):
        return []
    children = {}
    for each in pids():
        fields = stat_of(each)
        if fields:
            children.setdefault(int(fields[1]), []).append(each)
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return sorted(found)


def start_ticks(pid):
    """
    When a process began, in clock ticks since boot: with its PID, what tells it from any other.

    Returns an int, or None where it is gone.
    """
    fields = stat_of(pid)
    return int(fields[19]) if fields else None


def uptime(pid):
    """For how many seconds a process has run, a float; 0.0 where it is gone."""
    ticks = start_ticks(pid)
    if ticks is None:
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def is_alive(pid):
    """Whether a process is there and is no zombie."""
    fields = stat_of(pid)
    return bool(fields) and fields[0] not in ("Z", "X")


def pss_bytes(pids):
    """The resident memory of processes in bytes, what they share counted once in parts (PSS)."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as rollup:
            for line in rollup:
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def wait_until(condition, patience, pause=0.05):
    """
    Wait for something to become true.

    condition : callable
    patience, pause : float
        Seconds: in all, and between two looks.

    Returns whether it did.
    """
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause)
    return True


def stat_of(pid):
    """The fields of /proc/<pid>/stat from the state on, past the name in parentheses; None where it is gone."""
    try:
        # A process may call itself anything.
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
