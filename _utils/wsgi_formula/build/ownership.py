"""
The owners of folder trees that another user can change, or could until now.

A path in such a tree may lead elsewhere a moment after it was checked. So trees are walked by descriptor only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import signal
import stat
from collections.abc import Collection, Iterable, Iterator

from .. import files
from ..errors import WsgiError

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

# Nested folders in a tree that another user can still change: each level takes a descriptor.
MOST_LEVELS = 200

# Extended attributes that grant more than the permission bits show.
PRIVILEGES = ("system.posix_acl_access", "system.posix_acl_default", "security.capability")

KINDS = {
    stat.S_IFSOCK: "a socket",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
}


def is_roots(path: str) -> bool:
    """Return whether a path is a folder that only root may write to."""
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == 0 and not found.st_mode & 0o022


def take_tree(path: str, uid: int, gid: int, without: Iterable[str] = ()) -> None:
    """
    Give the tree that a user made to root; a group may read it, and only root may write to it.

    path : str
        A folder, in one that only root may change.
    uid : int
        The user; no process of theirs may be running any more.
    gid : int
        The group.
    without : iterable of str
        Names in the folder that are removed.

    The walk goes from the top down, so that the entries of a folder can't change any more once they are listed. A file
    with further hard links, which may be outside of the tree, is replaced by its copy. Raises ``WsgiError`` at the first
    entry that belongs to another user, that is not a file, a folder or a symbolic link, or that a process has open for
    writing.
    """
    with contextlib.ExitStack() as opened:
        top = _opened(opened, path, FOLDER)
        _take(top, path, uid, gid)
        for name in without:
            files.remove(f"{path}/{name}")
        folders = [""]
        # All folders above a pending one are root's by now, so that its path is safe: no descriptor per level is needed.
        while folders:
            inner = folders.pop()
            with contextlib.ExitStack() as level:
                here = _opened(level, inner or ".", FOLDER, top)
                for name in os.listdir(here):
                    below = f"{inner}/{name}" if inner else name
                    if _take_entry(here, name, f"{path}/{below}", uid, gid):
                        folders.append(below)


def give_tree(path: str, uid: int, gid: int, former: Collection[int]) -> None:
    """
    Give the entries of some users in a tree to another user.

    path : str
        A folder, in one that only root may change.
    uid, gid : int
        The new owner and its group.
    former : set of int
        The UIDs of the users whose entries change their owner; those of others stay as they are.

    The walk goes from the bottom up, so that a user who can change the tree meanwhile gets nobody else's files. Raises
    ``WsgiError`` where folders are nested too deep.
    """
    with contextlib.ExitStack() as opened:
        top = _opened(opened, path, FOLDER)
        for entry, found in entries(top, path):
            if found.st_uid in former:
                change_owner(entry, uid, gid)
        if os.fstat(top).st_uid in former:
            os.fchown(top, uid, gid)


def entries(folder: int, path: str, levels: int = MOST_LEVELS) -> Iterator[tuple[int, os.stat_result]]:
    """
    Yield the descriptor and the ``stat()`` of each entry of a tree that another user may change meanwhile.

    folder : int
        The descriptor of the tree's top, which is not yielded itself.
    path : str
        The top's path, for errors.
    levels : int
        How many nested folders are allowed.

    The walk goes from the bottom up. A descriptor is valid until the next entry; one of anything but a folder is opened
    with ``O_PATH``, so that no named pipe and no device is read. Raises ``WsgiError`` where folders are nested too deep.
    """
    if not levels:
        raise WsgiError(f"{path} has more than {MOST_LEVELS} nested folders")
    for name in os.listdir(folder):
        with contextlib.ExitStack() as opened:
            try:
                entry = _opened(opened, name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, folder)
                if stat.S_ISDIR(os.fstat(entry).st_mode):
                    entry = _opened(opened, ".", FOLDER, entry)
            except FileNotFoundError:  # another process removed it meanwhile
                continue
            if stat.S_ISDIR(os.fstat(entry).st_mode):
                yield from entries(entry, f"{path}/{name}", levels - 1)
            yield entry, os.fstat(entry)


def change_owner(entry: int, uid: int, gid: int) -> None:
    """Change the owner of a descriptor's entry, even of one opened with ``O_PATH``; -1 leaves a user or group as it is."""
    # For a symbolic link's descriptor this changes the link itself.
    os.chown(f"/proc/self/fd/{entry}", uid, gid)


def _opened(opened: contextlib.ExitStack, name: str, flags: int, folder: int | None = None) -> int:
    handle = os.open(name, flags, dir_fd=folder)
    opened.callback(os.close, handle)
    return handle


def _take_entry(here: int, name: str, path: str, uid: int, gid: int) -> bool:
    """Give an entry of a folder that is root's already to root; return whether the entry is a folder."""
    found = os.stat(name, dir_fd=here, follow_symlinks=False)
    kind = stat.S_IFMT(found.st_mode)
    if kind in KINDS:
        raise WsgiError(f"{path} is {KINDS[kind]}; a build may leave only files, folders and symbolic links")
    _check_owner(path, found, uid)
    if kind == stat.S_IFLNK:
        os.chown(name, 0, gid, dir_fd=here, follow_symlinks=False)
        return False
    with contextlib.ExitStack() as opened:
        handle = _opened(opened, name, FOLDER if kind == stat.S_IFDIR else FILE, here)
        if kind == stat.S_IFDIR:
            _take(handle, path, uid, gid)
        elif found.st_nlink > 1:
            _replace_by_copy(here, name, handle, gid)
        else:
            _take(handle, path, uid, gid)
            _check_no_writer(handle, path)
    return kind == stat.S_IFDIR


def _take(handle: int, path: str, uid: int, gid: int) -> None:
    _check_owner(path, os.fstat(handle), uid)
    # A change of the owner also removes the set-user-id bit and capabilities.
    os.fchown(handle, 0, gid)
    with _where_supported(errno.ENOTSUP):
        for attribute in {*os.listxattr(handle)} & {*PRIVILEGES}:
            os.removexattr(handle, attribute)
    os.fchmod(handle, os.fstat(handle).st_mode & 0o755)


def _check_owner(path: str, found: os.stat_result, uid: int) -> None:
    if found.st_uid != uid:
        raise WsgiError(
            f"{path} belongs to the user with the UID {found.st_uid}; a build may leave only files of UID {uid}"
        )


def _replace_by_copy(here: int, name: str, handle: int, gid: int) -> None:
    staged = f".{secrets.token_hex(8)}"
    found = os.fstat(handle)
    with open(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=here), "wb") as copy:
        with open(handle, "rb", closefd=False) as content:
            shutil.copyfileobj(content, copy)
        copy.flush()
        os.fchown(copy.fileno(), 0, gid)
        os.fchmod(copy.fileno(), found.st_mode & 0o755)
        # Python compares the source's time with the one in its bytecode.
        os.utime(copy.fileno(), ns=(found.st_atime_ns, found.st_mtime_ns))
    os.rename(staged, name, src_dir_fd=here, dst_dir_fd=here)


def _check_no_writer(handle: int, path: str) -> None:
    """Raise ``WsgiError`` where any process, in whatever namespace, has a file open for writing: no lease is granted."""
    with _where_supported(errno.EINVAL, errno.ENOTSUP, errno.ENOLCK, errno.EACCES):
        # The signal of a broken lease is SIGIO by default, which would end this process.
        fcntl.fcntl(handle, fcntl.F_SETSIG, signal.SIGURG)
        try:
            fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except BlockingIOError:
            raise WsgiError(f"{path} is open for writing in a process that outlived the build") from None
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)


@contextlib.contextmanager
def _where_supported(*codes: int) -> Iterator[None]:
    """Ignore the errors by which a file system says that it does not support a call."""
    try:
        yield
    except OSError as error:
        if error.errno not in codes:
            raise
