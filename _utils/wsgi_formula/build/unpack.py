"""
Unpack an archive into a folder: python3 unpack.py ARCHIVE FOLDER SUBDIRECTORY KEY SIZE FILES DEPTH

It is a program of its own for an unprivileged user to run, so that no entry of an archive can write where that user
can't. It needs only the standard library of Python 3.9.
"""

from __future__ import annotations

import os
import resource
import stat
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from lzma import LZMAError
from typing import IO, Optional

CHUNK = 2**20  # bytes that are copied at once

NAME = 255  # bytes of a file's name, as Linux allows

PATH = 2048  # bytes of a path in a source; Linux allows 4096 with the release's folder before it

# The memory that the program may use: a fixed part, and one per file for the archive's list of files.
MEMORY, MEMORY_PER_FILE = 2**30, 2**11  # bytes

# The exceptions that Python raises for a damaged archive.
DAMAGED = (ValueError, RuntimeError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error, LZMAError)

UNITS = {"k": 2**10, "m": 2**20, "g": 2**30}


class Refused(Exception):
    """An archive that is not unpacked, and why."""


class Exceeded(Exception):
    """
    A source holds more than an app's ``source_limits`` allow.

    key : str
        The limit's key: ``size``, ``files`` or ``depth``.
    sentence : str
        The error's text.
    """

    def __init__(self, key: str, sentence: str) -> None:
        super().__init__(sentence)
        self.key = key


class Limits:
    """
    The limits of a source, and a count of what was read of it so far. Entries are counted before they are written.

    size : str or int
        Bytes, as pillar has them: ``2g``.
    files : int
        How many files, folders and links are allowed.
    depth : int
        How many names a path may have.
    """

    def __init__(self, size: str | int, files: int, depth: int) -> None:
        self.size, self.files, self.depth = size, files, depth
        self.bytes = int(str(size).rstrip("kKmMgG")) * UNITS.get(str(size)[-1].lower(), 1)
        self._read = self._entries = 0

    def entry(self, path: str) -> None:
        """Count a file, a folder or a link; raise ``Exceeded`` beyond a limit."""
        self._entries += 1
        if self._entries > self.files:
            raise Exceeded(
                "files", f"the source holds more than {self.files} files and folders; {path[:80]!r} is the next"
            )
        parts = path.split("/")
        if len(parts) > self.depth:
            raise Exceeded("depth", f"{path[:80]!r}… is more than {self.depth} folders deep in the source")
        if len(os.fsencode(path)) > PATH or any(len(os.fsencode(part)) > NAME for part in parts):
            raise Exceeded(
                "depth", f"{path[:80]!r}… is a path of more than {PATH} bytes, or a name of more than {NAME}"
            )

    def read(self, count: int, path: str) -> None:
        """Count bytes of a file; raise ``Exceeded`` beyond the limit."""
        self._read += count
        if self._read > self.bytes:
            raise Exceeded("size", f"the source holds more than {self.size}; {path[:80]!r} does not fit")


def unpack(archive: str, folder: str, subdirectory: str, limits: Limits) -> None:
    """
    Unpack an archive.

    archive : str
        The path of a tar, compressed or not, or of a zip.
    folder : str
        An empty folder.
    subdirectory : str
        The folder in the archive to unpack; "" for all of it.
    limits : Limits

    Executable bits are kept, owners and other permission bits are not. Raises ``Refused`` at the first entry that is
    not a file, a folder or a link, or that leads out of the archive, and ``Exceeded`` at the first beyond a limit.
    """
    inside = subdirectory.split("/") if subdirectory else []
    found = False
    top: set[str] = set()
    for name, kind, executable, target, content in _entries(archive, limits):
        parts = _parts(name)
        limits.entry("/".join(parts))
        if len(top) <= 20:
            top.update(parts[:1])
        if parts[: len(inside)] != inside or (parts == inside and kind != "folder"):
            continue
        found = True
        inner = parts[len(inside) :]
        if kind == "folder":
            _make_folders(folder, inner, name, limits)
            continue
        path = _make_folders(folder, inner[:-1], name, limits) + f"/{inner[-1]}"
        if os.path.lexists(path):
            os.unlink(path)
        if kind == "link":
            _check_link(inner[:-1], target, name)
            os.symlink(target, path)
        elif content is not None:
            with open(
                os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755 if executable else 0o644), "wb"
            ) as file:
                # The header may give a smaller size than the content has.
                while chunk := content.read(CHUNK):
                    limits.read(len(chunk), name)
                    file.write(chunk)
        else:
            raise Refused(f"{name[:80]!r} is {kind}; only files, folders and links can be unpacked")
    if not found and inside:
        raise Refused(f"the archive has no folder {subdirectory!r}; at its top are: {', '.join(sorted(top)[:20])}")


# An entry's name, its kind, whether it is executable, a link's target, and a file's content.
Entry = tuple[str, str, bool, str, Optional[IO[bytes]]]


def _entries(archive: str, limits: Limits) -> Iterator[Entry]:
    # A tar with a zip as its last file looks like a zip, too; no zip looks like a tar.
    return _tar_entries(archive, limits) if tarfile.is_tarfile(archive) else _zip_entries(archive)


def _zip_entries(archive: str) -> Iterator[Entry]:
    with zipfile.ZipFile(archive) as opened:
        for entry in opened.infolist():
            mode = entry.external_attr >> 16
            if entry.is_dir():
                yield entry.filename, "folder", False, "", None
                continue
            with opened.open(entry) as content:
                if stat.S_ISLNK(mode):
                    yield entry.filename, "link", False, os.fsdecode(content.read(PATH + 1)), None
                elif stat.S_IFMT(mode) in (0, stat.S_IFREG):
                    yield entry.filename, "file", bool(mode & 0o100), "", content
                else:
                    yield entry.filename, "a device, a pipe or a socket", False, "", None


def _tar_entries(archive: str, limits: Limits) -> Iterator[Entry]:
    # Entries outside of the subdirectory are decompressed, too, and count against the size.
    skipped = Limits(limits.size, 0, 0)
    with tarfile.open(archive) as opened:
        for entry in opened:
            skipped.read(entry.size, entry.name)
            if entry.isdir():
                yield entry.name, "folder", False, "", None
            elif entry.issym():
                yield entry.name, "link", False, entry.linkname, None
            elif entry.isreg() or entry.islnk():
                # A hard link is unpacked as a file of its own.
                try:
                    content = opened.extractfile(entry)
                except KeyError:
                    content = None
                if content is None:
                    raise Refused(f"{entry.name!r} is a link to {entry.linkname!r}, which is not a file in the archive")
                yield entry.name, "file", bool(entry.mode & 0o100), "", content
            else:
                yield entry.name, "a device or a pipe", False, "", None


def _parts(name: str) -> list[str]:
    """Return the names in an entry's path; raise ``Refused`` where the path leads out of the archive."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts:
        raise Refused(f"{name[:80]!r} leads out of the archive")
    return parts


def _check_link(above: list[str], target: str, name: str) -> None:
    """
    Raise ``Refused`` where a link leads out of the folder.

    A link may go up as far as there are folders above it, then down. On its way it may meet another link, which is
    checked as well.
    """
    parts = [part for part in target.split("/") if part not in ("", ".")]
    while above and parts[:1] == [".."]:
        above, parts = above[:-1], parts[1:]
    if target.startswith("/") or ".." in parts:
        raise Refused(f"{name[:80]!r} is a link that leads out of the archive: {target[:80]!r}")


def _make_folders(folder: str, parts: list[str], name: str, limits: Limits) -> str:
    """
    Make the folders above an entry, which an archive need not list; return the path of the last one.

    Raises ``Refused`` where one of them is a link that was unpacked before.
    """
    for number, part in enumerate(parts, 1):
        folder = f"{folder}/{part}"
        if os.path.islink(folder):
            raise Refused(f"{name[:80]!r} leads through a link")
        if not os.path.isdir(folder):
            limits.entry("/".join(parts[:number]))
            os.mkdir(folder)
    return folder


def main(archive: str, folder: str, subdirectory: str, key: str, size: str, files: str, depth: str) -> str | None:
    """Unpack an archive within limits; return an error, which names the pillar key of a limit that is exceeded."""
    memory = MEMORY + MEMORY_PER_FILE * int(files)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    try:
        unpack(archive, folder, subdirectory, Limits(size, int(files), int(depth)))
    except Exceeded as error:
        return f"{key}:{error.key}: {error}"
    except MemoryError:
        return f"{key}:files: the archive takes more than {memory // 2**20} MiB of memory to unpack"
    except (Refused, OSError, *DAMAGED) as error:
        return str(error)
    return None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
