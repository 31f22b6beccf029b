"""
The processes of a unit: what writes their logs, and how they are all ended.
"""

import array
import contextlib
import fcntl
import glob
import os
import pwd
import stat
import termios

from .. import files, process

# What it marks the processes of a unit with, for those that are in no such cgroup.
MARK = "WSGI_UNIT"

CGROUPS = "/sys/fs/cgroup"

APPEND = "/usr/local/lib/wsgi/append"


def wait_for_log(log, patience=5):
    """
    Wait until a log holds all that was said: `append` may be some lines behind.

    log : str
    patience : float
        Seconds.

    Returns whether it does.
    """
    return process.wait_until(lambda: not any(_reads(pid) for pid in _running(APPEND, log)), patience)


def _running(*words):
    """The PIDs of scripts whose command line ends in these words."""
    ending = "\0".join(["", *words, ""]).encode()
    for pid in process.pids():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            if file.read().endswith(ending):
                yield pid


def _reads(pid):
    """Whether a process has something left to read from its standard input, a pipe, or is busy with it."""
    fields = process.stat_of(pid)
    with contextlib.ExitStack() as opened:
        try:
            # An app may call a process of its own so, with anything as its input: it is only opened as a pipe.
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


def kill_survivors(births):
    """
    Kill what is left of processes, and no other that took over a PID.

    births : dict
        PIDs to what ``started`` said of them.
    """
    for each in births:
        process.kill(each, lambda pid: process.start_ticks(pid) == births[pid])


def kill_unit(unit, user, patience=10):
    """
    Kill all processes of a unit: those in the cgroup that ``launch``, or systemd, made for it, and those of its user
    that have its mark, whoever their parent is by now.

    unit, user : str
    patience : float
        Seconds that it tries.
    """
    groups, mark, uid = {f"wsgi-{unit}", f"wsgi-{unit}.service"}, f"{MARK}={unit}".encode(), _uid(user)

    def belongs(pid):
        status = process.status_of(pid)
        if str(uid).encode() not in status.get(b"Uid", b"").split():
            # The publisher is root's.
            return process.in_this_namespace(status) and _in_cgroup(pid, groups)
        return process.is_local(pid, status) and (_in_cgroup(pid, groups) or _marked(pid, mark))

    def none_left():
        found = [pid for pid in process.every_pid() if belongs(pid) and process.is_alive(pid)]
        for pid in found:
            process.kill(pid, belongs)
        return not found

    process.wait_until(none_left, patience)
    for path in _cgroups(unit):
        with contextlib.suppress(OSError):  # the last process is still on its way out
            os.rmdir(path)


def _in_cgroup(pid, names):
    table = files.read(f"/proc/{pid}/cgroup", errors="surrogateescape") or ""
    return any(names & {*line.partition("/")[2].split("/")} for line in table.splitlines())


def _marked(pid, mark):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as environ:
        return mark in environ.read().split(b"\0")
    return False


def _uid(user):
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        return None


def _cgroups(unit):
    """The cgroups that ``launch`` made for a unit, below those of the machine's services."""
    lines = (files.read("/proc/1/cgroup") or "").splitlines()
    ours = [line.split(":", 2)[1:] for line in lines]
    roots = {path.replace("/init.scope", "").rstrip("/") for kind, path in ours if kind in ("", "name=systemd")}
    for mount in (CGROUPS, f"{CGROUPS}/systemd", f"{CGROUPS}/unified"):
        for root in roots:
            yield from glob.glob(f"{glob.escape(mount + root)}/*.slice/*.service/wsgi-{glob.escape(unit)}")
