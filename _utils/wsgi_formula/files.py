"""
Files and folders that are root's: written whole, read, and removed.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import secrets
import shutil
import subprocess

from . import untrusted
from .errors import WsgiError

# What is being written has such a name until it is whole. Of a run that was killed it stays, for `sweep`.
STAGED = ".wsgi-staged-"


logger = logging.getLogger(__name__)

# Records that could not be read and are still there, path to a sentence; and the sentences that no state has told yet.
damaged_records = {}

_untold = []


def write(path, text, mode, uid=0, gid=0):
    """
    Put a file in place whole, never readable by more than in the end. It is on the disk when this returns.

    path, text : str
    mode : int
        Its permission bits.
    uid, gid : int
        Its owner.
    """
    with _replacing(path) as staged:
        handle = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchown(handle, uid, gid)
            os.fchmod(handle, mode)
            os.fsync(handle)
        set_aside(path)


@contextlib.contextmanager
def _replacing(path):
    """Yield a name beside a path. What is made under it takes the place of what is there, in one atomic step."""
    folder = os.path.dirname(path)
    pid = os.getpid()
    staged = f"{folder}/{STAGED}{pid}-{_born(pid)}-{secrets.token_hex(4)}"
    try:
        yield staged
        os.rename(staged, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(staged)
        raise
    # It is in place whatever the disk says to this.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_staged(*folders):
    """Remove what runs that were killed were just writing in some folders. Other runs may be writing there."""
    for folder in folders:
        for name in list_dir(folder):
            if name.startswith(STAGED):
                pid, born, _ = f"{name[len(STAGED) :]}--".split("-", 2)
                if not pid.isdigit() or _born(pid) != born:
                    remove(f"{folder}/{name}")


def _born(pid):
    """When a process began, which tells it from another one that has its PID later; None where it is gone."""
    stat = read(f"/proc/{pid}/stat", errors="replace")  # a process may call itself anything
    return stat and stat.rpartition(")")[2].split()[19]


def ensure_dir(path, mode, uid=0, gid=0):
    """Make a folder with these permission bits and this owner, or give them to the one there."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path)
    found = os.lstat(path)
    if (found.st_uid, found.st_gid) != (uid, gid):
        os.chown(path, uid, gid, follow_symlinks=False)
    if found.st_mode & 0o7777 != mode:
        os.chmod(path, mode)


def replace_symlink(target, path, uid=0, gid=0):
    """Make a symbolic link, or point the one there elsewhere, in one atomic step."""
    with _replacing(path) as staged:
        os.symlink(target, staged)
        os.chown(staged, uid, gid, follow_symlinks=False)


def remove(path):
    """Remove a file, a link or a whole folder, if it is there; returns whether it was."""
    if not os.path.lexists(path):
        return False
    if os.path.isdir(path) and not os.path.islink(path):
        _remove_tree(path)
    else:
        with contextlib.suppress(FileNotFoundError):  # another hand was quicker
            os.unlink(path)
    return True


def _remove_tree(path):
    try:
        shutil.rmtree(path)
    except (RecursionError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EMFILE:
            raise
        # A build can leave more folders in each other than Python can descend into.
        done = subprocess.run(["rm", "-rf", "--", path], check=False, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise WsgiError(f"{path} could not be removed: {done.stderr.strip()[-500:]}") from None


def has_content(path, text, mode):
    """Return whether a regular file has this text and these permission bits, and is root's."""
    with contextlib.suppress(OSError), untrusted.open_regular(path) as file:
        found = os.fstat(file.fileno())
        there = file.read(len(text.encode()) + 1)
        return (found.st_uid, found.st_gid, found.st_mode & 0o7777, there) == (0, 0, mode, text.encode())
    return False


def read(path, errors="strict"):
    """The text of a file, or None where there is none; ``errors`` is for bytes that are no UTF-8, as ``open`` has it."""
    try:
        with open(path, encoding="utf-8", errors=errors) as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):  # the latter from /proc
        return None


def digest(*parts):
    """A short id: ten hexadecimal digits of the SHA-256 of some JSON-able values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:10]


def group_of(path):
    """The numeric id of a file's group, or None where there is no file."""
    try:
        return os.lstat(path).st_gid
    except FileNotFoundError:
        return None


def read_json(path, needs=None, lost="it is made again"):
    """
    Read a record.

    path : str
    needs : dict
        The keys that a whole one has, to their types.
    lost : str
        What follows where it is damaged, for the administrator.

    Returns a dict; None where there is none, or where it is damaged. That is logged, told by the next
    state, and left as it is until ``set_aside`` or ``write``.
    """
    text = None
    try:
        text = read(path)
        if text is None:
            return None
        found = json.loads(text)
        lacking = "is no object" if not isinstance(found, dict) else ""
        for key, type_ in {} if lacking else (needs or {}).items():
            if not isinstance(found.get(key), type_):
                lacking = f"has no {key!r}"
        if not lacking:
            return found
        why = f"what it holds {lacking}"
    except (ValueError, RecursionError) as error:
        why = "it is empty" if text == "" else str(error)
    note_damage(path, why, lost)
    return None


def note_damage(path, why, lost):
    """
    Remember that a record is damaged, once per run.

    path, why, lost : str
        Which one; what is wrong with it, with nothing of its contents; what follows from that.
    """
    if path not in damaged_records:
        damaged_records[path] = f"{path} is damaged ({why}): {lost}."
        _untold.append(damaged_records[path])
        logger.warning(damaged_records[path])


def set_aside(path):
    """Give a record that was found damaged another name, in the place of the one that was so before."""
    if damaged_records.pop(path, None):
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, f"{path}.damaged")


def take_damage_reports():
    """The sentences on damaged records that no state has told yet; from now on it has."""
    found = [*_untold]
    _untold.clear()
    return found


def list_dir(path):
    """The names in a folder; none where there is no folder."""
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []
