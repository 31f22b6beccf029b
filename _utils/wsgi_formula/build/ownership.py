"""
Trees that another user can change, or could: given away, taken over, walked by descriptor alone.

A path in such a tree may lead elsewhere a moment after it was looked at. So nothing here is done to a path in it.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import signal
import stat

from .. import files
from ..errors import WsgiError

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

# Of folders in folders in a tree that somebody can still change: each level takes a descriptor.
MOST_LEVELS = 200

# Extended attributes that allow more than the permission bits tell.
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


def take_tree(path: str, uid: int, gid: int, without=()) -> None:
    """
    Take a tree over from the user who made it: root's, for a group to read, for nobody else to write to.

    path : str
        A folder, in one that nobody but root may change.
    uid : int
        The user, none of whose processes runs any more.
    gid : int
        The group.
    without : iterable of str
        Names at its top that are removed.

    It goes from the top down, so that the entries of a folder can't change any more once they are listed. A file with
    other names, which may be out of the tree, is replaced by its copy. Raises ``WsgiError`` at the first entry that is
    another user's, that is no file, folder or symbolic link, or that somebody has open to write to.
    """
    with contextlib.ExitStack() as opened:
        top = _opened(opened, path, FOLDER)
        _take(top, path, uid, gid)
        for name in without:
            files.remove(f"{path}/{name}")
        folders = [""]
        # Above what is still to come all is root's, so that its path is safe. A descriptor per level might not do.
        while folders:
            inner = folders.pop()
            with contextlib.ExitStack() as level:
                here = _opened(level, inner or ".", FOLDER, top)
                for name in os.listdir(here):
                    below = f"{inner}/{name}" if inner else name
                    if _take_entry(here, name, f"{path}/{below}", uid, gid):
                        folders.append(below)


def give_tree(path: str, uid: int, gid: int, former) -> None:
    """
    Give a tree to a user, from the bottom up: whoever may change it meanwhile is given nothing that is not theirs.

    path : str
        A folder, in one that nobody but root may change.
    uid, gid : int
        The user and its group.
    former : set of int
        The users whose entries these become. What is another user's stays so.

    Raises ``WsgiError`` where folders are nested too deep.
    """
    with contextlib.ExitStack() as opened:
        top = _opened(opened, path, FOLDER)
        for entry, found in entries(top, path):
            if found.st_uid in former:
                change_owner(entry, uid, gid)
        if os.fstat(top).st_uid in former:
            os.fchown(top, uid, gid)


def entries(folder: int, path: str, levels: int = MOST_LEVELS):
    """
    Walk through an open folder that another user may change meanwhile, from the bottom up.

    folder : int
        Its descriptor.
    path : str
        What an error calls it.

    Yields a descriptor and the ``os.stat_result`` of each entry, valid until the next one is asked for. Only folders
    are opened to be read, so that no named pipe and no device is.
    """
    if not levels:
        raise WsgiError(f"{path} has more than {MOST_LEVELS} folders in each other")
    for name in os.listdir(folder):
        with contextlib.ExitStack() as opened:
            try:
                entry = _opened(opened, name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, folder)
                if stat.S_ISDIR(os.fstat(entry).st_mode):
                    entry = _opened(opened, ".", FOLDER, entry)
            except FileNotFoundError:  # its owner was quicker
                continue
            if stat.S_ISDIR(os.fstat(entry).st_mode):
                yield from entries(entry, f"{path}/{name}", levels - 1)
            yield entry, os.fstat(entry)


def change_owner(entry: int, uid: int, gid: int) -> None:
    """Change the owner of what a descriptor stands for, one of ``O_PATH`` too; -1 leaves either as it is."""
    # Of a symbolic link this is the link itself.
    os.chown(f"/proc/self/fd/{entry}", uid, gid)


def _opened(opened, name, how, above=None):
    handle = os.open(name, how, dir_fd=above)
    opened.callback(os.close, handle)
    return handle


def _take_entry(here, name, path, uid, gid):
    """Take over an entry of a folder that is root's already; return whether it is a folder."""
    found = os.stat(name, dir_fd=here, follow_symlinks=False)
    kind = stat.S_IFMT(found.st_mode)
    if kind in KINDS:
        raise WsgiError(f"{path} is {KINDS[kind]}; only files, folders and symbolic links may be left by a build")
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


def _take(handle, path, uid, gid):
    _check_owner(path, os.fstat(handle), uid)
    # This takes the set-user-id bit and capabilities of a file away, too.
    os.fchown(handle, 0, gid)
    with _where_supported(errno.ENOTSUP):
        for attribute in {*os.listxattr(handle)} & {*PRIVILEGES}:
            os.removexattr(handle, attribute)
    os.fchmod(handle, os.fstat(handle).st_mode & 0o755)


def _check_owner(path, found, uid):
    if found.st_uid != uid:
        raise WsgiError(f"{path} belongs to the user with the id {found.st_uid}, not to {uid}, who made the others")


def _replace_by_copy(here, name, handle, gid):
    staged = f".{secrets.token_hex(8)}"
    found = os.fstat(handle)
    with open(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=here), "wb") as copy:
        with open(handle, "rb", closefd=False) as content:
            shutil.copyfileobj(content, copy)
        copy.flush()
        os.fchown(copy.fileno(), 0, gid)
        os.fchmod(copy.fileno(), found.st_mode & 0o755)
        # Bytecode knows its source by the time of its last change.
        os.utime(copy.fileno(), ns=(found.st_atime_ns, found.st_mtime_ns))
    os.rename(staged, name, src_dir_fd=here, dst_dir_fd=here)


def _check_no_writer(handle, path):
    """Refuse a file that any process, in whatever namespace, has open to write to: the kernel gives no lease for it."""
    with _where_supported(errno.EINVAL, errno.ENOTSUP, errno.ENOLCK, errno.EACCES):
        # What a lease is broken with would end this process otherwise.
        fcntl.fcntl(handle, fcntl.F_SETSIG, signal.SIGURG)
        try:
            fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except BlockingIOError:
            raise WsgiError(f"{path} is open to be written to by a process that outlived the build") from None
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)


@contextlib.contextmanager
def _where_supported(*codes):
    """Ignore that a file system has no such thing."""
    try:
        yield
    except OSError as error:
        if error.errno not in codes:
            raise
