"""
Folders that others have written, read by root: by descriptor and part by part, so that no link leads
out of them, and nothing but regular files is opened.
"""

import contextlib
import errno
import hashlib
import os
import stat

TEXT = 16 * 2**20  # bytes of a file that is read as a whole

LINKS = 40  # that one path may lead through, as the kernel has it

CHUNK = 2**20  # bytes that are read at once

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW

# A pipe or a device that took the file's place can't make anybody wait.
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


class Outside(Exception):
    """A link leads out of a folder."""


class TooLong(Exception):
    """A file is too long to be read as a whole."""


class Tree:
    """
    A folder whose files are read, none of them through a link that leads out of it.

    path : str or int
        Its path, of which nobody but root may change what stands above it; or a descriptor of it.

    All its methods take paths in it; an absolute one leads out.
    """

    def __init__(self, path):
        self.path = path

    def read(self, path):
        """The text of a file, or None where there is none. Raises ``TooLong``, and ``ValueError`` where it isn't UTF-8."""
        with self._opened(path) as found:
            if found is None or not _is(stat.S_ISREG, found):
                return None
            with open(found, "rb", closefd=False) as file:
                content = file.read(TEXT + 1)
        if len(content) > TEXT:
            raise TooLong(f"{path!r} has more than {TEXT // 2**20} MiB")
        return content.decode()

    def sha256(self, path):
        """The SHA-256 of a file, in hexadecimal, or None where there is none."""
        with self._opened(path) as found:
            return None if found is None or not _is(stat.S_ISREG, found) else _sha256(found)

    def sums(self, path=""):
        """
        The SHA-256 sums of the files in a folder, by their paths in it; of a link, where it leads.

        Returns a dict, or None where there is no folder.
        """
        with self._opened(path) as found:
            if found is None or not _is(stat.S_ISDIR, found):
                return None
            return dict(sorted(_sums(found)))

    def holds(self, path):
        """Whether a path leads to a file or a folder, and not out of the tree."""
        with self._opened(path) as found:
            return found is not None

    def check_links(self):
        """Raise ``Outside`` at the first link that leads out, whether there is something or not."""
        for parent, folders, files, here in os.fwalk(self.path):
            for name in sorted(folders + files):
                if not stat.S_ISLNK(os.stat(name, dir_fd=here, follow_symlinks=False).st_mode):
                    continue
                inner = os.path.normpath(os.path.join(os.path.relpath(parent, self.path), name))
                try:
                    with self._followed(inner):
                        pass
                except Outside:
                    target = os.readlink(name, dir_fd=here)
                    raise Outside(f"{inner!r} is a link that leads out of it: {target!r}") from None

    @contextlib.contextmanager
    def _opened(self, path):
        try:
            with self._followed(path) as found:
                yield found
        except Outside:
            yield None

    def _followed(self, path):
        return _follow(self.path, path, bounded=True)


@contextlib.contextmanager
def open_folder(path):
    """
    Open a folder of the machine, whose path may lead through other users' folders.

    path : str
        Its absolute path.

    Yields a file descriptor. Raises ``Outside`` where somebody's link leads to what isn't that
    user's, and NotADirectoryError where there is no such folder.
    """
    met = []
    with _follow("/", path.lstrip("/"), met=met) as found:
        if found is None or not _is(stat.S_ISDIR, found):
            raise NotADirectoryError(errno.ENOTDIR, "it is no folder on this machine", path)
        owner = os.fstat(found).st_uid
        for part, seen in met:
            # Else whoever may write there has root read what that user can't.
            if stat.S_ISLNK(seen.st_mode) and seen.st_uid not in (0, owner):
                raise Outside(f"{part!r} on its way is a link of another user (UID {seen.st_uid}) than it leads to")
        yield found


def owner_of(path):
    """
    Return the user who decides what a path of the machine leads to.

    path : str
        An absolute one.

    Returns the UID of the first user but root who owns a folder or a link on the way, or -1 where
    everybody may rename what is in a folder on the way; else 0.
    """
    met = []
    with _follow("/", path.lstrip("/"), met=met):
        for _, seen in met:
            if stat.S_ISDIR(seen.st_mode) and seen.st_mode & stat.S_IWOTH and not seen.st_mode & stat.S_ISVTX:
                return -1
            if seen.st_uid:
                return seen.st_uid
    return 0


def copy_content(content, file=None, algorithm="sha256", count=None):
    """
    Read a file to its end, into another one where that is given.

    count : callable
        Is given the number of bytes of each part before it is written.

    Returns its hash, in hexadecimal.
    """
    hash = hashlib.new(algorithm)
    # One read of a slow server at a time.
    for part in iter(lambda: content.read1(CHUNK), b""):
        if count:
            count(len(part))
        hash.update(part)
        if file:
            file.write(part)
    return hash.hexdigest()


def open_regular(name, here=None, follow=False):
    """
    Open a regular file.

    name : str
        Its path, or its name in ``here``, an open folder.
    follow : bool
        Whether it may be a link.

    Returns a binary file. Raises ``OSError`` where it is anything else.
    """
    handle = os.open(name, FILE & ~os.O_NOFOLLOW if follow else FILE, dir_fd=here)
    if not _is(stat.S_ISREG, handle):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no regular file", name)
    return open(handle, "rb")


def _is(kind, handle):
    return kind(os.fstat(handle).st_mode)


def sha256(path):
    """Return the SHA-256 of a regular file, in hexadecimal. Raises ``OSError`` where there is none."""
    with open_regular(path, follow=True) as file:
        return copy_content(file)


def _sha256(handle):
    with open(handle, "rb", closefd=False) as file:
        return copy_content(file)


def _sums(top):
    for parent, folders, files, here in os.fwalk(".", dir_fd=top):
        for name in files + folders:
            path, kind = os.path.normpath(f"{parent}/{name}"), os.stat(name, dir_fd=here, follow_symlinks=False).st_mode
            if stat.S_ISLNK(kind):
                yield path, f"-> {os.readlink(name, dir_fd=here)}"
            elif stat.S_ISREG(kind):
                with open_regular(name, here) as file:
                    yield path, copy_content(file)


@contextlib.contextmanager
def _follow(top, path, bounded=False, met=None):
    """
    Go along a path, from a folder, by descriptor.

    bounded : bool
        Whether a step above the folder, or an absolute link, is one that leads out.
    met : list
        Takes each part on the way that is there, and its status.

    Yields a descriptor of the folder or the regular file that it leads to; None where it leads to
    nothing, or to anything else. Raises ``Outside``.
    """
    # The folders that are open, from the top on; None stands for one that is not there.
    way = [os.open(".", FOLDER, dir_fd=top) if isinstance(top, int) else os.open(top, FOLDER)]
    found, links = None, 0
    pending = path.split("/")[::-1]
    try:
        if bounded and path.startswith("/"):
            raise Outside(path)
        while pending:
            part = pending.pop()
            if part in ("", "."):
                continue
            if part == "..":
                if len(way) > 1:
                    _close(way.pop())
                elif bounded:
                    raise Outside(path)
                continue
            seen = _status(part, way[-1])
            if seen is not None and met is not None:
                met.append((part, seen))
            kind = seen.st_mode if seen else 0
            if stat.S_ISLNK(kind):
                links += 1
                target = os.readlink(part, dir_fd=way[-1])
                if target.startswith("/") and bounded:
                    raise Outside(path)
                while target.startswith("/") and len(way) > 1:
                    _close(way.pop())
                pending += target.split("/")[::-1]
                if links > LINKS:
                    way.append(None)
                    break
            elif stat.S_ISDIR(kind):
                way.append(_open(part, FOLDER, way[-1]))
            else:
                last = not any(each not in ("", ".") for each in pending)
                found = _open(part, FILE, way[-1]) if last and stat.S_ISREG(kind) else None
                way.append(None)
        if found is not None and not _is(stat.S_ISREG, found):
            _close(found)
            found = None
        yield found if found is not None else way[-1]
    finally:
        for handle in (found, *way):
            _close(handle)


def _status(name, here):
    with contextlib.suppress(OSError):
        return None if here is None else os.stat(name, dir_fd=here, follow_symlinks=False)
    return None


def _open(name, flags, here):
    """Open what was there a moment ago; None where it has changed since."""
    with contextlib.suppress(OSError):
        return os.open(name, flags, dir_fd=here)
    return None


def _close(handle):
    if handle is not None:
        os.close(handle)
