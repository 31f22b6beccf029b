"""
The sources of apps' code.

Each form of source has an identity, which is the same on every host as long as the code is the same, and can be fetched
into a folder.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import http.client
import inspect
import io
import os
import re
import ssl
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import cached_property
from urllib.parse import unquote, urlsplit

import salt.utils.http

from .. import files, step, untrusted
from ..errors import WsgiError
from ..host import Host
from ..pillar.app import App
from ..pillar.source import COMMIT, SourceSpec, parse_source
from ..redact import without_credentials
from ..step import BUILD_TIMEOUT
from ..untrusted import Outside, Tree
from . import unpack
from .git import Refused, Repository
from .unpack import Exceeded, Limits

NETWORK_TIMEOUT = 60  # seconds without any data from a server

# Names in a folder on the machine that are not copied.
SKIPPED = (".git", "__pycache__")

# The errors of opening a file that was removed or replaced meanwhile.
CHANGED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.ENXIO)


class Source:
    """
    The source of an app's code. A repository or a server is asked once per run, and only when that is needed.

    host : Host
    name : str
        The app.
    app : App
        Its settings, as ``desired_app`` returns them.
    spec : SourceSpec
        Its ``source``, parsed.

    Attributes:

    text : str
        The ``source`` of pillar, without credentials.
    """

    def __init__(self, host: Host, name: str, app: App, spec: SourceSpec) -> None:
        self.host = host
        self.name = name
        self.app = app
        self.spec = spec
        self.text = without_credentials(app["source"])

    @property
    def identity(self) -> list:
        """A list for JSON that is the same on every host, and differs for other code; it may raise ``WsgiError``."""
        raise NotImplementedError

    @property
    def revision(self) -> dict[str, str]:
        """The revision to show to people, such as ``{"commit": …, "ref": "main"}``; empty where there is none."""
        return {}

    @property
    def requirements(self) -> list[str]:
        """The requirements that the environment must have for this source."""
        return []

    def fetch(self, folder: str, uid: int, gid: int) -> None:
        """
        Put the code into a folder.

        folder : str
            An empty folder of root's, in a folder that is root's, too. The caller sets the owner of the code.
        uid, gid : int
            The user and the group that read what root can't trust.

        Raises ``WsgiError``, also where the source exceeds ``source_limits`` or has a link that leads out of it.
        """
        try:
            self._fetch(folder, uid, gid)
            Tree(folder).check_links()
        except Exceeded as error:
            raise self._exceeded(error) from error
        except Outside as error:
            raise self._problem(
                f"{error}; remove it from the source, or let it lead to a file of the source by a relative path"
            ) from error

    def _fetch(self, folder: str, uid: int, gid: int) -> None:
        raise NotImplementedError

    def read(self, path: str) -> str | None:
        """Return the text of a file of the code; None where there is none, or where only a fetch could tell."""
        return None

    def _limits(self) -> Limits:
        """Return the source's limits, with nothing counted yet."""
        return Limits(**self.app["source_limits"])

    def _exceeded(self, error: Exceeded) -> WsgiError:
        return self._problem(f"{error}; raise the limit if that is right", f"source_limits:{error.key}")

    def _problem(self, sentence: object, key: str = "source") -> WsgiError:
        return WsgiError(f"wsgi:apps:{self.name}:{key}: {sentence}")


class Salt(Source):
    """A folder that Salt serves."""

    @cached_property
    def _folder(self) -> tuple[dict[str, str], dict[str, str]]:
        return self.host.served.folder("/".join(filter(None, ("salt:/", self.spec.location, self.spec.subdirectory))))

    @property
    def identity(self) -> list:
        _, sums = self._folder
        return ["salt", sums]

    def _fetch(self, folder: str, uid: int, gid: int) -> None:
        limits = self._limits()
        local_paths, _ = self._folder
        for inner, path in local_paths.items():
            limits.entry(inner)
            target = f"{folder}/{inner}"
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with untrusted.open_regular(path, follow=True) as content, open(target, "wb") as file:
                untrusted.copy_content(content, file, count=functools.partial(_count, limits, inner))

    def read(self, path: str) -> str | None:
        local_paths, _ = self._folder
        return files.read(local_paths[path]) if path in local_paths else None


class Git(Source):
    """
    A commit of a repository. Branches and tags are listed once per run and repository, however many apps are in the
    repository; a commit named in pillar needs no list.
    """

    @cached_property
    def _repository(self) -> Repository:
        repositories = self.host.once(Sources).repositories
        key = (self.spec.location, self.app["deploy_key"], self.app["known_hosts"])
        if key not in repositories:
            repositories[key] = Repository(*key)
        return repositories[key]

    @cached_property
    def _commit(self) -> str:
        if COMMIT.fullmatch(self.spec.revision):
            return self.spec.revision
        try:
            return self._repository.find(self.spec.revision)
        except Refused as error:
            raise self._problem(error, error.key) from error

    @property
    def identity(self) -> list:
        return ["git", self._commit, self.spec.subdirectory]

    @property
    def revision(self) -> dict[str, str]:
        ref = self.app.get("ref") or self.spec.revision
        return {"commit": self._commit, **({"ref": ref} if ref != self._commit else {})}

    def _fetch(self, folder: str, uid: int, gid: int) -> None:
        whole, subdirectory = f"{folder}.checkout", self.spec.subdirectory
        try:
            self._repository.checkout(self._commit, self.spec.revision, whole, self._limits(), (uid, gid))
            inner = os.path.normpath(f"{whole}/{subdirectory}")
            # A link on the way could lead anywhere.
            if not os.path.isdir(inner) or os.path.realpath(inner) != os.path.realpath(whole) + inner[len(whole) :]:
                top = sorted(entry.name for entry in os.scandir(whole) if entry.is_dir(follow_symlinks=False))
                raise self._problem(
                    f"the repository has no folder {subdirectory!r}; at its top are: {', '.join(top) or 'none'}"
                )
            for name in os.listdir(inner):
                os.rename(f"{inner}/{name}", f"{folder}/{name}")
        except Refused as error:
            raise self._problem(error, error.key) from error
        finally:
            files.remove(whole)


class Archive(Source):
    """A tar or a zip with a known hash. It is removed after unpacking, as a finished release does not need it."""

    @property
    def identity(self) -> list:
        return ["archive", *self.spec.hash, self.spec.subdirectory]

    @property
    def revision(self) -> dict[str, str]:
        algorithm, digest = self.spec.hash
        return {algorithm: digest}

    def _fetch(self, folder: str, uid: int, gid: int) -> None:
        archive = f"{folder}.archive"
        shown = without_credentials(self.spec.location)
        algorithm, expected = self.spec.hash
        try:
            digest = self._download(archive, shown, gid)
            if digest != expected:
                raise self._problem(f"{shown} was not unpacked: its {algorithm} is {digest}, not {expected}")
            os.chown(folder, uid, gid)
            # Not Salt's own Python, which may be in a folder that this user can't read.
            program = ["/usr/bin/python3", "-I", "-c", inspect.getsource(unpack)]
            limits = [str(self.app["source_limits"][key]) for key in ("size", "files", "depth")]
            label = f"wsgi:apps:{self.name}:source: unpacking {shown}"
            key = f"wsgi:apps:{self.name}:source_limits"
            command = [*program, archive, folder, self.spec.subdirectory, key, *limits]
            step.run(command, self.name, label=label, uid=uid, gid=gid)
        finally:
            files.remove(archive)

    def _download(self, archive: str, shown: str, gid: int) -> str:
        """Put the archive where a group can read it, and return its hash."""
        deadline, limits = time.monotonic() + BUILD_TIMEOUT, self._limits()

        def count(size: int) -> None:
            limits.read(size, shown)
            if time.monotonic() > deadline:
                raise TimeoutError("it took too long")

        try:
            with open(archive, "wb") as file, self._opened() as content:
                os.fchown(file.fileno(), 0, gid)
                os.fchmod(file.fileno(), 0o640)
                return untrusted.copy_content(content, file, self.spec.hash[0], count)
        except urllib.error.HTTPError as error:
            hint = "; credentials are written https://user:password@…" if error.code in (401, 403) else ""
            raise self._problem(f"{shown} could not be fetched: {error.code} {error.reason}{hint}") from error
        except (OSError, http.client.HTTPException) as error:
            raise self._problem(f"{shown} could not be fetched: {getattr(error, 'reason', error)}") from error

    def _opened(self) -> io.BufferedIOBase:
        if not self.spec.location.startswith("salt://"):
            return _open_url(self.spec.location)
        path = self.host.salt["cp.cache_file"](self.spec.location, self.host.saltenv)
        if not path:
            raise self._problem(f"Salt does not serve {self.spec.location}")
        return open(path, "rb")


class Requirement(Source):
    """A package of an index. It is installed into the environment, and the folder of the code stays empty."""

    @property
    def identity(self) -> list:
        return ["requirement", self.spec.location]

    @property
    def requirements(self) -> list[str]:
        return [self.spec.location]

    def _fetch(self, folder: str, uid: int, gid: int) -> None:
        pass


class Path(Source):
    """
    A folder on the machine, which is copied: a later change of the folder makes another release. Pipes, sockets and
    devices in it are left out.

    Other users may write to the folder while root reads it, so no link is followed.
    """

    @cached_property
    def _path(self) -> str:
        return f"{self.spec.location}/{self.spec.subdirectory}".rstrip("/")

    @cached_property
    def _files(self) -> dict[str, list]:
        try:
            return self._read_tree()
        except Exceeded as error:
            raise self._exceeded(error) from error

    @property
    def identity(self) -> list:
        return ["path", self._files]

    def _fetch(self, folder: str, uid: int, gid: int) -> None:
        if self._read_tree(folder) != self._files:
            raise self._problem(f"{self._path} was changed while it was copied; apply again")

    def read(self, path: str) -> str | None:
        if path not in self._files:
            return None
        with self._opened() as top:
            return Tree(top).read(path)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        with contextlib.ExitStack() as opened:
            try:
                top = opened.enter_context(untrusted.open_folder(self._path))
            except NotADirectoryError:
                raise self._problem(f"{self._path} is not a folder on this machine") from None
            except Outside as error:
                raise self._problem(f"{self._path} is not read: {error}") from error
            yield top

    def _read_tree(self, copy: str | None = None) -> dict[str, list]:
        """
        Return the folder's entries by their paths: a file's hash and whether it is executable, a link's target.

        copy : str
            A folder that the entries are copied to.
        """
        found: dict[str, list] = {}
        limits = self._limits()
        try:
            with self._opened() as top:
                for parent, folders, files, here in os.fwalk(".", dir_fd=top, onerror=_raise):
                    inner = os.path.normpath(parent)
                    if copy:
                        os.makedirs(f"{copy}/{inner}", exist_ok=True)
                    folders[:] = sorted({*folders} - {*SKIPPED})
                    for name in sorted({*files, *folders} - {*SKIPPED}):
                        path = os.path.normpath(f"{inner}/{name}")
                        limits.entry(path)
                        kind = os.stat(name, dir_fd=here, follow_symlinks=False).st_mode
                        if stat.S_ISLNK(kind):
                            found[path] = ["->", os.readlink(name, dir_fd=here)]
                            if copy:
                                os.symlink(found[path][1], f"{copy}/{path}")
                        elif stat.S_ISREG(kind):
                            found[path] = _read_file(name, here, copy and f"{copy}/{path}", limits, path)
        except OSError as error:
            if error.errno not in CHANGED:
                raise
            raise self._problem(f"{self._path} was changed while it was read; apply again") from error
        return found


FORMS: dict[str, type[Source]] = {
    "salt": Salt,
    "git": Git,
    "archive": Archive,
    "requirement": Requirement,
    "path": Path,
}


class Sources:
    """
    The sources and the git repositories of one run, each resolved once: see ``Host.shared``.

    host : Host
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.by_settings: dict[tuple, Source] = {}
        self.repositories: dict[tuple, Repository] = {}

    def of(self, name: str, app: App) -> Source:
        """Return an app's source; an error in resolving it is raised at its first use."""
        # The key is a part, since `wsgi.plan` asks before the value of an sdb:// key is known.
        key = (name, app["source"], app.get("ref"), app["deploy_key"], app["known_hosts"])
        if key not in self.by_settings:
            spec = parse_source(app["source"])
            self.by_settings[key] = FORMS[spec.kind](self.host, name, app, spec)
        return self.by_settings[key]


def source_of(host: Host, name: str, app: App) -> Source:
    """
    Return an app's source, resolved once per run.

    host : Host
    name : str
        The app.
    app : App
        Its settings, as ``desired_app`` returns them.

    ``WsgiError`` is raised at the source's first use, where it can't be resolved.
    """
    return host.once(Sources).of(name, app)


def with_revision(text: str, revision: str) -> str:
    """
    Return a source at another revision, without the hashes of a requirement.

    text : str
        The source, as pillar has it.
    revision : str
        A branch, a tag or a commit of git, or a version of a requirement.

    Raises ``ValueError`` with a sentence where the source has no revisions, or where this can't be one.

    .. code-block:: python

        >>> with_revision("git+https://example.com/shop.git@v1.4#subdirectory=web", "v1.5")
        'git+https://example.com/shop.git@v1.5#subdirectory=web'
        >>> with_revision("shop[web]==1.4", "1.5")
        'shop[web]==1.5'
    """
    kind = parse_source(text).kind
    if kind == "git":
        plain, hash, fragment = text.partition("#")
        changed = f"{plain.rpartition('@')[0]}@{revision}{hash}{fragment}"
    elif kind == "requirement":
        changed = f"{re.split('[ =]*==', text)[0]}=={revision}"
    else:
        shown = without_credentials(text)
        raise ValueError(f"{shown} has no revisions; deploy another archive or folder with source=")
    if parse_source(changed).kind != kind:
        raise ValueError(f"{revision!r} is not a valid revision of {without_credentials(text)}")
    return changed


def _open_url(url: str) -> io.BufferedIOBase:
    """
    Open an ``http://`` or ``https://`` URL, through the proxy that the environment names.

    Salt's ``cp.cache_file`` would name a file after the URL with its credentials, log them in an error, and keep the
    file.
    """
    parts = urlsplit(url)
    plain = parts._replace(netloc=parts.netloc.rpartition("@")[2])
    passwords = urllib.request.HTTPPasswordMgrWithPriorAuth()
    if "@" in parts.netloc:
        # For this host only: a redirect to another one gets no credentials.
        host = plain._replace(path="/").geturl()
        username, password = unquote(parts.username or ""), unquote(parts.password or "")
        passwords.add_password(None, host, username, password, is_authenticated=True)
    context = ssl.create_default_context()
    if not any(os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR")):
        # Salt's own Python may look for certificates where this system has none.
        context.load_verify_locations(os.environ.get("REQUESTS_CA_BUNDLE") or salt.utils.http.get_ca_bundle())
    opener = urllib.request.build_opener(
        urllib.request.HTTPBasicAuthHandler(passwords), urllib.request.HTTPSHandler(context=context)
    )
    return opener.open(plain.geturl(), timeout=NETWORK_TIMEOUT)


def _read_file(name: str, here: int, copy: str | None, limits: Limits, path: str) -> list:
    """Return the hash of a file in an open folder, and whether it is executable; copy it if a path is given."""
    count = functools.partial(_count, limits, path)
    with untrusted.open_regular(name, here) as content:
        executable = bool(os.fstat(content.fileno()).st_mode & 0o100)
        if copy is None:
            return [untrusted.copy_content(content, count=count), executable]
        with open(copy, "wb") as file:
            os.fchmod(file.fileno(), 0o755 if executable else 0o644)
            return [untrusted.copy_content(content, file, count=count), executable]


def _count(limits: Limits, path: str, size: int) -> None:
    limits.read(size, path)


def _raise(error: OSError) -> None:
    raise error
