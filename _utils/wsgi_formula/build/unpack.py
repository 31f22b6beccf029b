"""
Unpacks an archive into a folder: python3 unpack.py ARCHIVE FOLDER SUBDIRECTORY KEY SIZE FILES DEPTH

A program of its own, which an unprivileged user runs, so that no entry of an archive can write where
that user couldn't. It needs no more than Python 3.9 has.
"""

import os
import resource
import stat
import sys
import tarfile
import zipfile
import zlib
from lzma import LZMAError

CHUNK = 2**20  # bytes that are copied at once

NAME = 255  # bytes of a file's name, as Linux has it

PATH = 2048  # bytes of a path in a source: the folder of the release stands before it

# What the program may have of memory: its own, and a tar's or a zip's list of files.
MEMORY, MEMORY_PER_FILE = 2**30, 2**11  # bytes

# What Python says of an archive that is none, or is damaged.
DAMAGED = (ValueError, RuntimeError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error, LZMAError)

UNITS = {"k": 2**10, "m": 2**20, "g": 2**30}


class Refused(Exception):
    """An archive that can't be unpacked, and why."""


class Exceeded(Exception):
    """
    A source holds more than an app's ``source_limits`` allow.

    key : str
        The limit's key: ``size``, ``files`` or ``depth``.
    sentence : str
    """

    def __init__(self, key, sentence):
        super().__init__(sentence)
        self.key = key


class Limits:
    """
    How much a source may hold. Whoever reads one counts here, before writing.

    size : str or int
        Bytes, as pillar has them: ``2g``.
    files : int
        Files, folders and links.
    depth : int
        Names on a path.
    """

    def __init__(self, size, files, depth):
        self.size, self.files, self.depth = size, files, depth
        self.bytes = int(str(size).rstrip("kKmMgG")) * UNITS.get(str(size)[-1].lower(), 1)
        self._read = self._entries = 0

    def entry(self, path):
        """Count a file, a folder or a link. Raises ``Exceeded``."""
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

    def read(self, count, path):
        """Count bytes of a file. Raises ``Exceeded``."""
        self._read += count
        if self._read > self.bytes:
            raise Exceeded("size", f"the source holds more than {self.size}; {path[:80]!r} does not fit in any more")


def unpack(archive, folder, subdirectory, limits):
    """
    Unpack an archive.

    archive : str
        A tar, compressed or not, or a zip.
    folder : str
        Empty, and there.
    subdirectory : str
        The folder in it that is wanted; "" for all of it.
    limits : Limits

    Executable bits are kept, owners and other bits are not. Raises ``Refused`` at the first entry
    that is no file, folder or link, or that leads out, and ``Exceeded`` at the first beyond a limit.
    """
    inside = subdirectory.split("/") if subdirectory else []
    found, top = False, set()
    for name, kind, executable, content in _entries(archive, limits):
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
            _check_link(inner[:-1], content, name)
            os.symlink(content, path)
        elif kind == "file":
            with open(
                os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755 if executable else 0o644), "wb"
            ) as file:
                # A header may say less than there is.
                for chunk in iter(lambda content=content: content.read(CHUNK), b""):
                    limits.read(len(chunk), name)
                    file.write(chunk)
        else:
            raise Refused(f"{name[:80]!r} is {kind}; files, folders and links can be unpacked")
    if not found and inside:
        raise Refused(f"there is no folder {subdirectory!r} in it; at its top are: {', '.join(sorted(top)[:20])}")


def _entries(archive, limits):
    """Yields each entry's name, kind, whether it is executable, and its content or where it leads."""
    # A tar may hold a zip at its end, and then looks like one; never the other way around.
    if not tarfile.is_tarfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for entry in opened.infolist():
                mode = entry.external_attr >> 16
                if entry.is_dir():
                    yield entry.filename, "folder", False, None
                    continue
                with opened.open(entry) as content:
                    if stat.S_ISLNK(mode):
                        yield entry.filename, "link", False, os.fsdecode(content.read(PATH + 1))
                    elif stat.S_IFMT(mode) in (0, stat.S_IFREG):
                        yield entry.filename, "file", bool(mode & 0o100), content
                    else:
                        yield entry.filename, "a device, a pipe or a socket", False, None
        return
    skipped = Limits(limits.size, 0, 0)
    with tarfile.open(archive) as opened:
        for entry in opened:
            # Whatever is passed over has to be unpacked, too, though to nowhere.
            skipped.read(entry.size, entry.name)
            if entry.isdir():
                yield entry.name, "folder", False, None
            elif entry.issym():
                yield entry.name, "link", False, entry.linkname
            elif entry.isreg() or entry.islnk():
                # A hard link is unpacked as a file of its own.
                try:
                    content = opened.extractfile(entry)
                except KeyError:
                    content = None
                if content is None:
                    raise Refused(f"{entry.name!r} is a link to what is no file in it: {entry.linkname!r}")
                yield entry.name, "file", bool(entry.mode & 0o100), content
            else:
                yield entry.name, "a device or a pipe", False, None


def _parts(name):
    """The names on an entry's path, one by one."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts:
        raise Refused(f"{name[:80]!r} leads out of it")
    return parts


def _check_link(above, target, name):
    """A link may go up as far as there are folders above it, then down; what it then meets may be
    another link, which has been checked as well."""
    parts = [part for part in target.split("/") if part not in ("", ".")]
    while above and parts[:1] == [".."]:
        above, parts = above[:-1], parts[1:]
    if target.startswith("/") or ".." in parts:
        raise Refused(f"{name[:80]!r} is a link that leads out of it: {target[:80]!r}")


def _make_folders(folder, parts, name, limits):
    """Make the folders of an entry, of which an archive need not tell; returns the last one's path.
    None of them may be a link that came before it."""
    for number, part in enumerate(parts, 1):
        folder = f"{folder}/{part}"
        if os.path.islink(folder):
            raise Refused(f"{name[:80]!r} leads through a link")
        if not os.path.isdir(folder):
            limits.entry("/".join(parts[:number]))
            os.mkdir(folder)
    return folder


def main(archive, folder, subdirectory, key, size, files, depth):
    """Unpack within limits, of which the pillar key is told where one is exceeded."""
    memory = MEMORY + MEMORY_PER_FILE * int(files)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    try:
        unpack(archive, folder, subdirectory, Limits(size, int(files), int(depth)))
    except Exceeded as error:
        return f"{key}:{error.key}: {error}"
    except MemoryError:
        return f"{key}:files: to unpack it takes more than {memory // 2**20} MiB of memory"
    except (Refused, OSError, *DAMAGED) as error:
        return str(error)
    return None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
