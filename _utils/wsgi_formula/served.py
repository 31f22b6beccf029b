"""
The files that Salt serves to one run, and the check that Salt has synced the modules that are served.

Through a master each file is a request of its own. So the formula brings the SHA-256 sums of its files in
``wsgi/SHA256SUMS``: a run requests that one file, and takes every other file with the right sum from the minion's
cache. ``test/manifest`` writes the sums.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

from salt.utils.hashutils import get_hash

from . import untrusted
from .errors import WsgiError

if TYPE_CHECKING:
    from .host import Host

MANIFEST = "wsgi/SHA256SUMS"

# The folders that Salt syncs to the minion.
SYNCED_FOLDERS = ("_modules/", "_states/", "_utils/")

WRONG_SUM = (
    f"salt://{{}} does not have the sum that {MANIFEST} lists: if it was edited on the master, run test/manifest there; "
    "if another folder in file_roots also has it, remove it there; if the formula was updated just now, run this again"
)

# The sums of the modules in this process at the time of their import: paths below salt:// to SHA-256 sums.
_loaded: dict[str, str | None] = {}


class Served:
    """
    The files that Salt serves to one run.

    host : Host
        The run's host.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._found: dict[str, str] = {}
        self._folders: dict[str, tuple[dict[str, str], dict[str, str]]] = {}

    @cached_property
    def sums(self) -> dict[str, str]:
        """
        The SHA-256 sums of the formula's files by their paths below ``salt://``.

        The dict is empty on a machine without a master, which reads the files themselves. ``WsgiError`` is raised where
        the master does not serve the sums.
        """
        if self._host.opts.get("file_client") != "remote":
            return {}
        path = self._cache(MANIFEST)
        if not path:
            raise WsgiError(self.missing(f"salt://{MANIFEST}"))
        with open(path, encoding="utf-8") as file:
            return {path: sum for sum, path in (line.rstrip("\n").split("  ", 1) for line in file)}

    def file(self, url: str) -> str:
        """
        Return the local path of a served file, or an empty string where there is none.

        url : str
            ``salt://…``

        Raises ``WsgiError`` where the master serves a file of the formula with another sum than the formula's.
        """
        path = url[len("salt://") :]
        if path not in self._found:
            self._found[path] = self._checked(path) if path in self.sums else self._cache(path)
        return self._found[path]

    def folder(self, url: str) -> tuple[dict[str, str], dict[str, str]]:
        """
        Return the files of a served folder as two dicts: of their paths in it to local paths, and to SHA-256 sums.

        url : str
            ``salt://…``

        Raises ``WsgiError`` where Salt serves no file there.
        """
        if url not in self._folders:
            files = {inner: self.file(f"salt://{path}") for inner, path in self._paths(url).items()}
            if not files or not all(files.values()):
                raise WsgiError(f"{url} holds no file; is it below a folder in file_roots, or in gitfs?")
            try:
                sums = {inner: untrusted.sha256(path) for inner, path in sorted(files.items())}
            except OSError as error:
                raise WsgiError(f"{url}: {error.filename} could not be read: {error.strerror}") from error
            self._folders[url] = files, sums
        return self._folders[url]

    def missing(self, url: str) -> str:
        """Return a sentence for the administrator where a file of the formula, ``salt://…``, is not served."""
        end = url[len("salt:/") :]
        saltenv = self._host.saltenv
        elsewhere = [path[: -len(end)] for path in self._host.salt["cp.list_master"](saltenv) if path.endswith(end)]
        return (
            f"{url} is not served in saltenv {saltenv}: the formula's checkout has to be a file root of its own, "
            "in file_roots or gitfs_remotes"
        ) + (f"; it is in salt://{elsewhere[0]} of another one" if elsewhere else "")

    def differing(self) -> list[str]:
        """Return a sentence for each of the formula's files that the master serves with another sum."""
        return [WRONG_SUM.format(path) for path in self.sums if not self._is_served(path)]

    @cached_property
    def stale(self) -> tuple[list[str], list[str]]:
        """
        The formula's modules that differ from the served ones, as two lists of paths below ``salt://``.

        Salt has to sync those of the first list. Those of the second are synced, but this process has imported an
        older version. ``WsgiError`` is raised where the master serves modules with other sums than the formula's; it is
        asked only for those that differ.
        """
        folder = self._host.opts["extension_modules"]
        served: dict[str, str | None] = {
            path: sum for path, sum in self.sums.items() if path.startswith(SYNCED_FOLDERS) and path.endswith(".py")
        }
        on_disk = {path: _sum(os.path.join(folder, path[1:])) for path in served or self._synced(folder)}
        served = served or {path: _sum(self._cache(path)) or on_disk[path] for path in on_disk}
        unsynced = [path for path, sum in on_disk.items() if sum != served[path]]
        for path in unsynced if self.sums else ():
            if not self._is_served(path):
                raise WsgiError(WRONG_SUM.format(path))
        return unsynced, [path for path, sum in _loaded.items() if path in served and sum not in (None, on_disk[path])]

    def _synced(self, folder: str) -> Iterator[str]:
        """Yield the formula's modules that Salt has synced into a folder, as paths below ``salt://``."""
        for kind in SYNCED_FOLDERS:
            for parent, _, names in os.walk(f"{folder}/{kind[1:]}"):
                for path in (os.path.relpath(f"{parent}/{name}", folder) for name in names if name.endswith(".py")):
                    if path[len(kind) - 1 :].startswith(("wsgi.py", "wsgi_formula/")):
                        yield f"_{path}"

    def _paths(self, url: str) -> dict[str, str]:
        """Return the files of a folder: their paths in it to their paths below ``salt://``."""
        folder = url[len("salt://") :].strip("/")
        of_formula = [path for path in self.sums if path.startswith(f"{folder}/")]
        paths: Iterable[str] = of_formula or self._host.salt["cp.list_master"](self._host.saltenv, prefix=folder)
        found = {os.path.relpath(path, folder): path for path in paths}
        return {
            inner: path
            for inner, path in found.items()
            if inner.split("/")[0] != ".." and not {"__pycache__", ".git"} & {*inner.split("/")}
        }

    def _checked(self, path: str) -> str:
        """Return the local path of a file of the formula that has the right sum."""
        # Where Salt's file clients keep what they fetched: _cache_loc of salt/fileclient.py.
        cached = os.path.join(self._host.opts["cachedir"], "files", self._host.saltenv, path)
        if _sum(cached) == self.sums[path]:
            return cached
        cached = self._cache(path)
        if _sum(cached) != self.sums[path]:
            raise WsgiError(WRONG_SUM.format(path))
        return cached

    def _is_served(self, path: str) -> bool:
        """Return whether the master serves a file with the sum that the manifest lists; request only its hash."""
        served = self._host.salt["cp.hash_file"](f"salt://{path}", self._host.saltenv) or {"hash_type": "sha256"}
        if served["hash_type"] == "sha256":
            return served.get("hsum") == self.sums[path]
        with contextlib.suppress(WsgiError):
            return get_hash(self._checked(path), served["hash_type"]) == served["hsum"]
        return False

    def _cache(self, path: str) -> str:
        return self._host.salt["cp.cache_file"](f"salt://{path}", self._host.saltenv) or ""


def note_loaded(path: str, file: str) -> None:
    """
    Remember the sums of the modules that this process has imported, for ``Served.stale``.

    path : str
        The path below ``salt://`` of the execution or state module that calls this; Salt imports those anew.
    file : str
        Its path on the disk.
    """
    _loaded[path] = _sum(file)
    package = os.path.dirname(__file__)
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None) or ""
        if file.startswith(f"{package}/"):
            path = f"_utils/{os.path.relpath(file, os.path.dirname(package))}"
            if path not in _loaded:
                _loaded[path] = _sum(file)


def _sum(path: str) -> str | None:
    """Return the SHA-256 of a regular file, or None where there is none."""
    try:
        return untrusted.sha256(path)
    except OSError:
        return None
