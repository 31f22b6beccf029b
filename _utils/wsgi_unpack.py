"""
Unpacks an archive into a folder: python3 wsgi_unpack.py ARCHIVE FOLDER [SUBDIRECTORY]

A program of its own, which the app's user runs, so that no entry of an archive can write where
the app couldn't. It needs no more than Python 3.9 has.
"""

import os
import shutil
import stat
import sys
import tarfile
import zipfile


class Refused(Exception):
    """An archive that can't be unpacked, and why."""


def unpack(archive, folder, subdirectory=""):
    """
    Unpack an archive.

    archive : str
        A tar, compressed or not, or a zip.
    folder : str
        Empty, and there.
    subdirectory : str
        The folder in it that is wanted; "" for all of it.

    Executable bits are kept, owners and other bits are not. Raises ``Refused`` at the first entry
    that is no file, folder or link, or that leads out.
    """
    inside = subdirectory.split("/") if subdirectory else []
    found, top = False, set()
    for name, kind, executable, content in _entries(archive):
        parts = _parts(name)
        top.update(parts[:1])
        if parts[: len(inside)] != inside or (parts == inside and kind != "folder"):
            continue
        found = True
        path = _place(folder, parts[len(inside) :], name)
        if kind == "folder":
            os.makedirs(path, exist_ok=True)
            continue
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.lexists(path):
            os.unlink(path)
        if kind == "link":
            _check_link(parts[len(inside) : -1], content, name)
            os.symlink(content, path)
        elif kind == "file":
            with open(
                os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755 if executable else 0o644), "wb"
            ) as file:
                shutil.copyfileobj(content, file)
        else:
            raise Refused(f"{name!r} is {kind}; files, folders and links can be unpacked")
    if not found and inside:
        raise Refused(f"there is no folder {subdirectory!r} in it; at its top are: {', '.join(sorted(top)[:20])}")


def _entries(archive):
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
                        yield entry.filename, "link", False, content.read().decode()
                    elif stat.S_IFMT(mode) in (0, stat.S_IFREG):
                        yield entry.filename, "file", bool(mode & 0o100), content
                    else:
                        yield entry.filename, "a device, a pipe or a socket", False, None
        return
    with tarfile.open(archive) as opened:
        for entry in opened:
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
        raise Refused(f"{name!r} leads out of it")
    return parts


def _check_link(above, target, name):
    """A link may go up as far as there are folders above it, then down; what it then meets may be
    another link, which has been checked as well."""
    parts = [part for part in target.split("/") if part not in ("", ".")]
    while above and parts[:1] == [".."]:
        above, parts = above[:-1], parts[1:]
    if target.startswith("/") or ".." in parts:
        raise Refused(f"{name!r} is a link that leads out of it: {target!r}")


def _place(folder, parts, name):
    """Where an entry goes: never through a link that came before it."""
    place = folder
    for part in parts[:-1]:
        place = f"{place}/{part}"
        if os.path.islink(place):
            raise Refused(f"{name!r} leads through a link")
    return "/".join([folder, *parts])


if __name__ == "__main__":
    try:
        unpack(*sys.argv[1:])
    except (Refused, OSError, ValueError, RuntimeError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
        sys.exit(str(error))
