"""
Files and folders that belong to root: written whole, read and removed. Records in JSON that may be damaged.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Mapping

from . import untrusted
from .errors import WsgiError

# The name of a file that is not whole yet begins so. One that a killed run left is removed by `remove_staged`.
STAGED = ".wsgi-staged-"


logger = logging.getLogger(__name__)

# The records that could not be read and were not replaced yet: paths to sentences.
damaged_records: dict[str, str] = {}

# The sentences that no state has reported yet.
_unreported: list[str] = []


def write(path: str, text: str, mode: int, uid: int = 0, gid: int = 0) -> None:
    """
    Put a file in place whole. It is on the disk when this returns, and at no time more readable than at the end.

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
def _replacing(path: str) -> Iterator[str]:
    """Yield a path beside another one; what the caller makes there then replaces the other one atomically."""
    folder = os.path.dirname(path)
    pid = os.getpid()
    staged = f"{folder}/{STAGED}{pid}-{_start_ticks(pid)}-{secrets.token_hex(4)}"
    try:
        yield staged
        os.rename(staged, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(staged)
        raise
    # The file is in place even if the file system can't sync a folder.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_staged(*folders: str) -> None:
    """Remove from some folders the unfinished files of runs that were killed, and of no run that still goes on."""
    for folder in folders:
        for name in list_dir(folder):
            if name.startswith(STAGED):
                pid, started, _ = f"{name[len(STAGED) :]}--".split("-", 2)
                if not pid.isdigit() or _start_ticks(int(pid)) != started:
                    remove(f"{folder}/{name}")


def _start_ticks(pid: int) -> str | None:
    """Return when a process started, which tells it from a later one with its PID; None where it is gone."""
    stat = read(f"/proc/{pid}/stat", errors="replace")  # a process may have any bytes in its name
    return stat and stat.rpartition(")")[2].split()[19]


def ensure_dir(path: str, mode: int, uid: int = 0, gid: int = 0) -> None:
    """Make a folder with these permission bits and this owner, or set them on the existing one."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path)
    found = os.lstat(path)
    if (found.st_uid, found.st_gid) != (uid, gid):
        os.chown(path, uid, gid, follow_symlinks=False)
    if found.st_mode & 0o7777 != mode:
        os.chmod(path, mode)


def replace_symlink(target: str, path: str, uid: int = 0, gid: int = 0) -> None:
    """Make a symbolic link at a path that leads to the target; it replaces an existing one atomically."""
    with _replacing(path) as staged:
        os.symlink(target, staged)
        os.chown(staged, uid, gid, follow_symlinks=False)


def remove(path: str) -> bool:
    """Remove a file, a link or a whole folder, and return whether there was one."""
    if not os.path.lexists(path):
        return False
    if os.path.isdir(path) and not os.path.islink(path):
        _remove_tree(path)
    else:
        with contextlib.suppress(FileNotFoundError):  # another process removed it first
            os.unlink(path)
    return True


def _remove_tree(path: str) -> None:
    try:
        shutil.rmtree(path)
    except (RecursionError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EMFILE:
            raise
        # A build can nest more folders than Python can descend into.
        result = subprocess.run(["rm", "-rf", "--", path], check=False, stderr=subprocess.PIPE, text=True)
        if result.returncode:
            raise WsgiError(f"{path} could not be removed: {result.stderr.strip()[-500:]}") from None


def has_content(path: str, text: str, mode: int) -> bool:
    """Return whether a path is a regular file of root's with this text and these permission bits."""
    with contextlib.suppress(OSError), untrusted.open_regular(path) as file:
        found = os.fstat(file.fileno())
        content = file.read(len(text.encode()) + 1)
        return (found.st_uid, found.st_gid, found.st_mode & 0o7777, content) == (0, 0, mode, text.encode())
    return False


def read(path: str, errors: str = "strict") -> str | None:
    """
    Return the text of a file, or None where there is no file.

    errors : str
        What to do with bytes that are not UTF-8, as ``open`` takes it.
    """
    try:
        with open(path, encoding="utf-8", errors=errors) as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):  # the latter from /proc
        return None


def digest(*parts: object) -> str:
    """
    Return a short id of some values that JSON can hold: the first ten hexadecimal digits of their SHA-256.

    .. code-block:: python

        >>> digest("shop", ["a", 1])
        'c5da9ce5a8'
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:10]


def group_of(path: str) -> int | None:
    """Return the numeric id of a file's group, or None where there is no file."""
    try:
        return os.lstat(path).st_gid
    except FileNotFoundError:
        return None


def read_json(
    path: str, required: Mapping[str, type] | None = None, consequence: str = "it is made again"
) -> dict | None:
    """
    Return a record, or None where there is none or it is damaged.

    path : str
    required : dict
        The keys that a whole record has, to the types of their values.
    consequence : str
        What a damaged record leads to, for the administrator.

    A damaged record is logged, reported by the next state, and left in place until ``set_aside`` or ``write``.
    """
    text = None
    try:
        text = read(path)
        if text is None:
            return None
        record = json.loads(text)
        flaw = _record_flaw(record, required or {})
        if not flaw:
            return record
    except (ValueError, RecursionError) as error:
        flaw = "it is empty" if text == "" else str(error)
    note_damage(path, flaw, consequence)
    return None


def _record_flaw(record: object, required: Mapping[str, type]) -> str:
    if not isinstance(record, dict):
        return "it is not a JSON object"
    missing = [key for key, type_ in required.items() if not isinstance(record.get(key), type_)]
    return f"it has no valid {missing[0]!r}" if missing else ""


def note_damage(path: str, flaw: str, consequence: str) -> None:
    """
    Log once per run that a record is damaged, and keep the sentence for the next state's comment.

    path : str
        The record.
    flaw : str
        What is wrong with it, without any of its contents.
    consequence : str
        What that leads to.
    """
    if path not in damaged_records:
        damaged_records[path] = f"{path} is damaged ({flaw}): {consequence}."
        _unreported.append(damaged_records[path])
        logger.warning(damaged_records[path])


def set_aside(path: str) -> None:
    """Rename a record that was found damaged to ``<path>.damaged``, in place of an earlier one."""
    if damaged_records.pop(path, None):
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, f"{path}.damaged")


def take_damage_reports() -> list[str]:
    """Return the sentences about damaged records that no state has reported yet, each only once."""
    reports = [*_unreported]
    _unreported.clear()
    return reports


def list_dir(path: str) -> list[str]:
    """Return the names in a folder; an empty list where there is no folder."""
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []
