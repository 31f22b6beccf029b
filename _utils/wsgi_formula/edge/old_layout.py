"""
nginx's files as the formula wrote them before it had a tree: in folders beside it, with no link to them.

They are read as if they were in the tree, and go into it with the next change.
"""

from __future__ import annotations

import grp
import os
import re

from .. import files
from .nginx_tree import read
from .site_files import FOLDERS, SHARED, SecretFile


def is_present(own_dir: str) -> bool:
    """Return whether the files of a tree lie beside it."""
    return os.path.isfile(f"{os.path.dirname(own_dir)}/proxy.conf") and not os.path.isfile(f"{own_dir}/wsgi.conf")


def read_files(own_dir: str, include: str) -> dict[str, str]:
    """
    Return the files, their future paths in the tree to the text that they will have there.

    include : str
        The path of the file in nginx's own folder, which held what is ``wsgi.conf`` of the tree now.
    """
    folder, found = os.path.dirname(own_dir), {}
    sources = {name: f"{folder}/{name}" for name in SHARED}
    sources.update((f"{kind}/{name}", f"{folder}/{kind}/{name}") for kind in FOLDERS for name in _names(folder, kind))
    sources["wsgi.conf"] = include
    references = re.compile(rf"{re.escape(folder)}/(?=({'|'.join(FOLDERS)})/|\w+\.conf;)")
    for name, source in sorted(sources.items()):
        if os.path.isfile(source):
            found[f"{own_dir}/{name}"] = references.sub(f"{own_dir}/", read(source))
    return found


def with_owners(own_dir: str, texts: dict) -> dict:
    """Return the files of ``read_files`` with the groups of those that are secret."""
    found = {path: text for path, text in texts.items() if path.startswith(f"{own_dir}/")}
    for path, text in found.items():
        if "/private/" in path:
            group = files.group_of(f"{os.path.dirname(own_dir)}/{path[len(own_dir) + 1 :]}")
            found[path] = SecretFile(text, grp.getgrgid(group or 0).gr_name)
    return found


def remove(own_dir: str) -> None:
    """Remove the files, once nginx reads those of the tree."""
    for name in (*FOLDERS, *SHARED):
        files.remove(f"{os.path.dirname(own_dir)}/{name}")


def _names(folder, kind):
    return files.list_dir(f"{folder}/{kind}")
