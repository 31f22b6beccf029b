"""
Root's reads in folders that other users can write to.

Every path is followed part by part and by descriptor, so that no link leads out of the folder and only regular files
are opened, even if the folder changes meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import stat
from collections.abc import Callable, Iterator
from typing import BinaryIO

TEXT = 16 * 2**20  # bytes of a file that is read as a whole, at most

LINKS = 40  # symbolic links that one path may lead through, as in the kernel

CHUNK = 2**20  # bytes that are read at once

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW

# O_NONBLOCK: the open does not wait if a pipe or a device took the file's place.
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


class Outside(Exception):
    """A link leads out of a folder."""


class TooLong(Exception):
    """A file is too long to be read as a whole."""


class Tree:
    """
    A folder whose files are read without following a link that leads out of it.

    path : str or int
        Its path, or a descriptor of it. Only root may be able to write to the folders above the path.

    The methods take paths relative to the folder; an absolute one leads out of it.
    """

    def __init__(self, path: str | int) -> None:
        self.path = path

    def read(self, path: str) -> str | None:
        """
        Return the text of a file, or None where there is no regular file.

        Raises ``TooLong``, and ``UnicodeDecodeError`` where the file is not UTF-8.
        """
        with self._opened(path) as found:
            if found is None or not _is(stat.S_ISREG, found):
                return None
            with open(found, "rb", closefd=False) as file:
                content = file.read(TEXT + 1)
        if len(content) > TEXT:
            raise TooLong(f"{path!r} has more than {TEXT // 2**20} MiB")
        return content.decode()

    def sha256(self, path: str) -> str | None:
        """Return the SHA-256 of a file in hexadecimal, or None where there is no regular file."""
        with self._opened(path) as found:
            return None if found is None or not _is(stat.S_ISREG, found) else _sha256(found)

    def sums(self, path: str = "") -> dict[str, str] | None:
        """Return the paths in a folder to their files' SHA-256 sums or links' targets; None where there is no folder."""
        with self._opened(path) as found:
            if found is None or not _is(stat.S_ISDIR, found):
                return None
            return dict(sorted(_sums(found)))

    def holds(self, path: str) -> bool:
        """Return whether a path leads to a file or a folder in the tree."""
        with self._opened(path) as found:
            return found is not None

    def check_links(self) -> None:
        """Raise ``Outside`` at the first link that leads out of the tree, even if its target does not exist."""
        assert isinstance(self.path, str)
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
                    raise Outside(f"{inner!r} is a link that leads out of the folder: {target!r}") from None

    @contextlib.contextmanager
    def _opened(self, path: str) -> Iterator[int | None]:
        try:
            with self._followed(path) as found:
                yield found
        except Outside:
            yield None

    def _followed(self, path: str) -> contextlib.AbstractContextManager[int | None]:
        return _follow(self.path, path, bounded=True)


@contextlib.contextmanager
def open_folder(path: str) -> Iterator[int]:
    """
    Open a folder of the machine whose path may lead through other users' folders.

    path : str
        Its absolute path.

    Yields a file descriptor. Raises ``Outside`` where a user's link leads to a folder of somebody else, and
    ``NotADirectoryError`` where there is no such folder.
    """
    met: list[tuple[str, os.stat_result]] = []
    with _follow("/", path.lstrip("/"), met=met) as found:
        if found is None or not _is(stat.S_ISDIR, found):
            raise NotADirectoryError(errno.ENOTDIR, "it is not a folder on this machine", path)
        owner = os.fstat(found).st_uid
        for part, seen in met:
            # Otherwise the link's owner could have root read files that the owner can't.
            if stat.S_ISLNK(seen.st_mode) and seen.st_uid not in (0, owner):
                raise Outside(f"{part!r} in its path is a link of another user (UID {seen.st_uid}) than the folder's")
        yield found


def owner_of(path: str) -> int:
    """
    Return the UID of the user who decides what an absolute path leads to.

    This is the first user but root who owns a folder or a link on the path, -1 where everybody may rename entries of
    a folder on the path, or else 0.
    """
    met: list[tuple[str, os.stat_result]] = []
    with _follow("/", path.lstrip("/"), met=met):
        for _, seen in met:
            if stat.S_ISDIR(seen.st_mode) and seen.st_mode & stat.S_IWOTH and not seen.st_mode & stat.S_ISVTX:
                return -1
            if seen.st_uid:
                return seen.st_uid
    return 0


def copy_content(
    content: io.BufferedIOBase,
    file: BinaryIO | None = None,
    algorithm: str = "sha256",
    count: Callable[[int], None] | None = None,
) -> str:
    """
    Read a file to its end and return its hash in hexadecimal.

    content : binary file
    file : binary file
        A file that the content is copied to.
    algorithm : str
        The hash's name, as ``hashlib`` has it.
    count : callable
        Takes the number of bytes of each part before the part is written; it may raise to stop.
    """
    hash = hashlib.new(algorithm)
    # read1 returns what a slow server has sent, so that `count` can check the time.
    for part in iter(lambda: content.read1(CHUNK), b""):
        if count:
            count(len(part))
        hash.update(part)
        if file:
            file.write(part)
    return hash.hexdigest()


def open_regular(name: str, here: int | None = None, follow: bool = False) -> io.BufferedReader:
    """
    Open a regular file to be read as bytes.

    name : str
        Its path, or its name in ``here``.
    here : int
        The descriptor of an open folder.
    follow : bool
        Whether the name may be a link.

    Raises ``OSError`` where it is anything else.
    """
    handle = os.open(name, FILE & ~os.O_NOFOLLOW if follow else FILE, dir_fd=here)
    if not _is(stat.S_ISREG, handle):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is not a regular file", name)
    return open(handle, "rb")


def _is(kind: Callable[[int], bool], handle: int) -> bool:
    return kind(os.fstat(handle).st_mode)


def sha256(path: str) -> str:
    """Return the SHA-256 of a regular file in hexadecimal; raise ``OSError`` where there is none."""
    with open_regular(path, follow=True) as file:
        return copy_content(file)


def _sha256(handle: int) -> str:
    with open(handle, "rb", closefd=False) as file:
        return copy_content(file)


def _sums(top: int) -> Iterator[tuple[str, str]]:
    for parent, folders, files, here in os.fwalk(".", dir_fd=top):
        for name in files + folders:
            path, kind = os.path.normpath(f"{parent}/{name}"), os.stat(name, dir_fd=here, follow_symlinks=False).st_mode
            if stat.S_ISLNK(kind):
                yield path, f"-> {os.readlink(name, dir_fd=here)}"
            elif stat.S_ISREG(kind):
                with open_regular(name, here) as file:
                    yield path, copy_content(file)


@contextlib.contextmanager
def _follow(
    top: str | int, path: str, bounded: bool = False, met: list[tuple[str, os.stat_result]] | None = None
) -> Iterator[int | None]:
    """
    Follow a path from a folder on, by descriptor.

    top : str or int
        The folder's path or descriptor.
    bounded : bool
        Whether ``..`` above the folder and absolute links raise ``Outside``.
    met : list
        Is filled with each existing part of the path and its ``stat()``.

    Yields a descriptor of the folder or the regular file that the path leads to, or None where it leads to nothing or
    to anything else.
    """
    # The descriptors of the folders from the top on; None for one that does not exist.
    way: list[int | None] = [os.open(".", FOLDER, dir_fd=top) if isinstance(top, int) else os.open(top, FOLDER)]
    found: int | None = None
    links = 0
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
                last = not any(later not in ("", ".") for later in pending)
                found = _open(part, FILE, way[-1]) if last and stat.S_ISREG(kind) else None
                way.append(None)
        if found is not None and not _is(stat.S_ISREG, found):
            _close(found)
            found = None
        yield found if found is not None else way[-1]
    finally:
        for handle in (found, *way):
            _close(handle)


def _status(name: str, here: int | None) -> os.stat_result | None:
    with contextlib.suppress(OSError):
        return None if here is None else os.stat(name, dir_fd=here, follow_symlinks=False)
    return None


def _open(name: str, flags: int, here: int | None) -> int | None:
    """Open an entry that existed a moment ago; return None where it has changed since."""
    with contextlib.suppress(OSError):
        return os.open(name, flags, dir_fd=here)
    return None


def _close(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)
