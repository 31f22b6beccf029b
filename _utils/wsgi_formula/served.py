"""
The files that Salt serves, as one run gets them; and whether the modules that run are among them.

Through a master each file that is asked for is a request. The formula brings the SHA-256 sums of its own files in
``wsgi/SHA256SUMS``: a run asks for that one file, and takes every other one that has the right sum from the minion's
cache. ``test/manifest`` writes it.
"""

import contextlib
import os
import sys
from functools import cached_property

from salt.utils.hashutils import get_hash

from . import untrusted
from .errors import WsgiError

MANIFEST = "wsgi/SHA256SUMS"

KINDS = ("_modules/", "_states/", "_utils/")

OTHER = (
    f"salt://{{}} is not the file of which {MANIFEST} has the sum: where it was edited on the master, run "
    "test/manifest there; where another folder of file_roots has it, too, take it away; where the formula was updated "
    "just now, run this again"
)


# The sums of the modules in this process as they were at their import: paths below salt:// to SHA-256 sums.
_loaded = {}


class Served:
    """
    What Salt serves in one run.

    host : Host
        Of the same run.
    """

    def __init__(self, host):
        self._host = host
        self._found = {}
        self._folders = {}

    @cached_property
    def sums(self):
        """
        The SHA-256 sums of the formula's files by their paths below ``salt://``; empty on a machine without a
        master, which reads the files themselves. Raises ``WsgiError`` where the master does not serve them.
        """
        if self._host.opts.get("file_client") != "remote":
            return {}
        path = self._cache(MANIFEST)
        if not path:
            raise WsgiError(self.missing(f"salt://{MANIFEST}"))
        with open(path, encoding="utf-8") as file:
            return {path: sum for sum, path in (line.rstrip("\n").split("  ", 1) for line in file)}

    def file(self, url):
        """
        Return the local path of a served file, or an empty string where there is none.

        Raises ``WsgiError`` where it is a file of the formula and the master serves another one than the formula has.
        """
        path = url[len("salt://") :]
        if path not in self._found:
            self._found[path] = self._own(path) if path in self.sums else self._cache(path)
        return self._found[path]

    def folder(self, url):
        """
        Return the files of a served folder: paths in the folder to local paths, and to SHA-256 sums.

        Raises ``WsgiError`` where there is none.
        """
        if url not in self._folders:
            files = {inner: self.file(f"salt://{path}") for inner, path in self._paths(url).items()}
            if not files or not all(files.values()):
                raise WsgiError(f"{url} holds no file; is it below a folder in file_roots, or in gitfs?")
            try:
                sums = {inner: untrusted.sha256(path) for inner, path in sorted(files.items())}
            except OSError as error:
                raise WsgiError(f"{url}: {error.filename} can't be read: {error.strerror}") from error
            self._folders[url] = files, sums
        return self._folders[url]

    def missing(self, url):
        """Return a sentence that says what to do where a file of the formula is not served."""
        end = url[len("salt:/") :]
        saltenv = self._host.saltenv
        elsewhere = [path[: -len(end)] for path in self._host.salt["cp.list_master"](saltenv) if path.endswith(end)]
        return (
            f"{url} is not served in saltenv {saltenv}: the formula's checkout has to be a file root of its own, "
            "in file_roots or gitfs_remotes"
        ) + (f"; it is in salt://{elsewhere[0]} of another one" if elsewhere else "")

    def differing(self):
        """Return a sentence for each of the formula's files that the master serves another way; ask it for each."""
        return [OTHER.format(path) for path in self.sums if not self._is_served(path)]

    @cached_property
    def stale(self):
        """
        Which of the formula's modules are not the served ones, as two lists of paths: of those that Salt has
        to sync, and of those that are synced while this process runs older ones. Raises ``WsgiError`` where the master
        serves others than the formula's, which it is asked for only if they differ.
        """
        folder = self._host.opts["extension_modules"]
        wanted = {path: sum for path, sum in self.sums.items() if path.startswith(KINDS) and path.endswith(".py")}
        on_disk = {path: _sum(os.path.join(folder, path[1:])) for path in wanted or self._synced(folder)}
        wanted = wanted or {path: _sum(self._cache(path)) or on_disk[path] for path in on_disk}
        unsynced = [path for path, sum in on_disk.items() if sum != wanted[path]]
        for path in unsynced if self.sums else ():
            if not self._is_served(path):
                raise WsgiError(OTHER.format(path))
        return unsynced, [path for path, sum in _loaded.items() if path in wanted and sum not in (None, on_disk[path])]

    def _synced(self, folder):
        """The formula's modules that Salt has synced, as paths below ``salt://``."""
        for kind in KINDS:
            for parent, _, names in os.walk(f"{folder}/{kind[1:]}"):
                for path in (os.path.relpath(f"{parent}/{name}", folder) for name in names if name.endswith(".py")):
                    if path[len(kind) - 1 :].startswith(("wsgi.py", "wsgi_formula/")):
                        yield f"_{path}"

    def _paths(self, url):
        """The files of a folder: paths in it to paths below ``salt://``."""
        folder = url[len("salt://") :].strip("/")
        own = [path for path in self.sums if path.startswith(f"{folder}/")]
        paths = own or self._host.salt["cp.list_master"](self._host.saltenv, prefix=folder)
        found = {os.path.relpath(path, folder): path for path in paths}
        return {
            inner: path
            for inner, path in found.items()
            if inner.split("/")[0] != ".." and not {"__pycache__", ".git"} & {*inner.split("/")}
        }

    def _own(self, path):
        # Where Salt's file clients keep what they fetched: _cache_loc of salt/fileclient.py.
        cached = os.path.join(self._host.opts["cachedir"], "files", self._host.saltenv, path)
        if _sum(cached) == self.sums[path]:
            return cached
        cached = self._cache(path)
        if _sum(cached) != self.sums[path]:
            raise WsgiError(OTHER.format(path))
        return cached

    def _is_served(self, path):
        """Return whether the master serves the file of which the manifest has the sum. Asks for its hash alone."""
        served = self._host.salt["cp.hash_file"](f"salt://{path}", self._host.saltenv) or {"hash_type": "sha256"}
        if served["hash_type"] == "sha256":
            return served.get("hsum") == self.sums[path]
        with contextlib.suppress(WsgiError):
            return get_hash(self._own(path), served["hash_type"]) == served["hsum"]
        return False

    def _cache(self, path):
        return self._host.salt["cp.cache_file"](f"salt://{path}", self._host.saltenv) or ""


def note_loaded(path, file):
    """
    Remember what this process has imported, for ``Served.stale``; Salt itself imports its modules and states anew.

    path, file : str
        The importing module's path below ``salt://``, and on the disk.
    """
    _loaded[path] = _sum(file)
    package = os.path.dirname(__file__)
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None) or ""
        if file.startswith(f"{package}/"):
            path = f"_utils/{os.path.relpath(file, os.path.dirname(package))}"
            if path not in _loaded:
                _loaded[path] = _sum(file)


def _sum(path):
    """The SHA-256 of a regular file, or None where there is none."""
    try:
        return untrusted.sha256(path)
    except OSError:
        return None
