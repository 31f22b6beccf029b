"""
A folder of files that changes in one atomic step.

``live`` is a symbolic link to one of the numbered folders in ``trees`` beside it. A change is staged as a new
folder, in which the unchanged files are hard links, and goes live by one rename of the link. So whoever reads
the files through ``live`` finds one version of all of them or the next one, whenever a run is killed.

One run at a time may use these functions: see ``reload.locked``.
"""

from __future__ import annotations

import contextlib
import os

from .. import files


def version(live: str) -> str | None:
    """Return where the link leads, a str that no later version will have, or None where there is no link."""
    with contextlib.suppress(OSError):
        return os.readlink(live)
    return None


def leftovers(live: str) -> list[str]:
    """Return the paths that a killed run left: staged folders, and a link or a placeholder that leads to none."""
    folder, current = _trees(live), os.path.basename(version(live) or "")
    found = [f"{folder}/{name}" for name in sorted(files.list_dir(folder)) if name != current]
    placeholder = os.path.isdir(live) and not os.path.islink(live) and not os.listdir(live)
    return found + [live] * placeholder + [f"{live}.new"] * os.path.lexists(f"{live}.new")


def stage(live: str, changes: dict) -> str:
    """
    Make a new folder beside the live one.

    live : str
    changes : dict
        Paths below ``live`` to None, for a file that goes, or to text, permission bits and the id of a group.

    Returns the path of the folder, which is complete but for ``fsync``.
    """
    folder = _trees(live)
    for path in (os.path.dirname(live), folder):
        os.makedirs(path, mode=0o755, exist_ok=True)
    names = [*os.listdir(folder), os.path.basename(version(live) or "")]
    staged = f"{folder}/{1 + max((int(name) for name in names if name.isdigit()), default=0)}"
    files.ensure_dir(staged, 0o755)
    for inner, _, contents in os.walk(live):
        inner = os.path.relpath(inner, live)
        files.ensure_dir(os.path.normpath(f"{staged}/{inner}"), 0o755)
        for name in contents:
            path = os.path.normpath(f"{inner}/{name}")
            if path not in changes:
                os.link(f"{live}/{path}", f"{staged}/{path}", follow_symlinks=False)
    for path, content in changes.items():
        if content is not None:
            os.makedirs(os.path.dirname(f"{staged}/{path}"), mode=0o755, exist_ok=True)
            create(f"{staged}/{path}", *content)
    return staged


def swap(live: str, staged: str, changes: dict) -> None:
    """
    Have the link lead to a folder that was staged with these changes, and remove the folder before it.

    Returns when the new folder and the link outlast a power cut; at no moment the link leads to less than that.
    """
    before = os.path.realpath(live)
    for path, content in changes.items():
        if content is not None:
            fsync(f"{staged}/{path}")
    for inner, _, _ in os.walk(staged, topdown=False):
        fsync(inner)
    fsync(_trees(live))
    if os.path.isdir(live) and not os.path.islink(live):
        # Somebody has put a folder in the place of the link, or a test needed an empty one.
        os.rename(live, f"{staged}.before")
        before = f"{staged}.before"
    files.replace_symlink(f"{os.path.basename(_trees(live))}/{os.path.basename(staged)}", live)
    fsync(os.path.dirname(live))
    if os.path.dirname(before) == os.path.realpath(_trees(live)):
        files.remove(before)


def fsync(path: str) -> None:
    """Have a file or a folder outlast a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read(path: str) -> str:
    """Return the text of a file, whatever bytes an editor may have left in it."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def create(path: str, text: str, mode: int = 0o644, gid: int = 0) -> None:
    """Write a new file, which nobody else can read before it has its permission bits and its group."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        os.fchown(file.fileno(), 0, gid)
        os.fchmod(file.fileno(), mode)


def replace(path: str, text: str) -> None:
    """Put a file that everybody may read in place in one step, so that it outlasts a power cut."""
    staged = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.new")
    files.remove(staged)
    create(staged, text)
    fsync(staged)
    os.rename(staged, path)
    fsync(os.path.dirname(path))


def _trees(live):
    return f"{os.path.dirname(live)}/trees"
