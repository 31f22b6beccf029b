"""
Where an app's code comes from: each form of source resolved to what it is, the same on every host,
and fetched into a folder.
"""

import contextlib
import errno
import http.client
import inspect
import os
import re
import ssl
import stat
import time
import urllib.error
import urllib.request
from functools import cached_property
from urllib.parse import unquote, urlsplit

import salt.utils.http

from .. import files, step, untrusted
from ..errors import WsgiError
from ..pillar.source import COMMIT, parse_source
from ..redact import without_credentials
from ..step import BUILD_TIMEOUT
from ..untrusted import Outside, Tree
from . import unpack
from .git import Refused, Repository
from .unpack import Exceeded, Limits

NETWORK_TIMEOUT = 60  # seconds that a server may say nothing

# What is no code, wherever code is taken from.
SKIPPED = (".git", "__pycache__")

# How a file fails to open that was another kind of file a moment ago, or is gone.
CHANGED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.ENXIO)


class Source:
    """
    A source. What has to be asked for is asked for once per run, when it is needed.

    host : Host
    name : str
        The app.
    app : dict
        Its settings, as ``desired_app`` gives them.
    said : SourceSpec
        What they say of its source.

    text : str
        As pillar has it, without credentials.
    """

    def __init__(self, host, name, app, said):
        self.host = host
        self.name = name
        self.app = app
        self.said = said
        self.text = without_credentials(app["source"])

    @property
    def identity(self):
        """What it is, a JSON-able list: equal on every host, another one for other code. Raises ``WsgiError``."""
        raise NotImplementedError

    @property
    def revision(self):
        """What is told of it, a dict such as ``{"commit": …}``."""
        return {}

    @property
    def requirements(self):
        """What the environment must have for it, a list of str."""
        return []

    def fetch(self, folder, uid, gid):
        """
        Put the code into a folder.

        folder : str
            Empty and root's, in one that is root's too and not finished yet. Whose it becomes is
            the caller's.
        uid, gid : int
            The user who does what can't be trusted.

        Raises ``WsgiError``, also where the source holds more than ``source_limits`` allow, or a link
        that leads out of it.
        """
        try:
            self._fetch(folder, uid, gid)
            Tree(folder).check_links()
        except Exceeded as error:
            raise self._exceeded(error) from error
        except Outside as error:
            raise self._problem(
                f"{error}; remove it from the source, or have it lead to a file of the source by a relative path"
            ) from error

    def _fetch(self, folder, uid, gid):
        raise NotImplementedError

    def read(self, path):
        """The text of one of its files, or None where that is not there, or not known without a fetch."""

    def _limits(self):
        """Its limits, with nothing counted yet."""
        return Limits(**self.app["source_limits"])

    def _exceeded(self, error):
        return self._problem(f"{error}; raise the limit if it is to be", f"source_limits:{error.key}")

    def _problem(self, sentence, key="source"):
        return WsgiError(f"wsgi:apps:{self.name}:{key}: {sentence}")


class Salt(Source):
    """A folder that Salt serves, or one in it."""

    @cached_property
    def _found(self):
        return self.host.served.folder("/".join(filter(None, ("salt:/", self.said.location, self.said.subdirectory))))

    @property
    def identity(self):
        return ["salt", self._found[1]]

    def _fetch(self, folder, uid, gid):
        limits = self._limits()
        for inner, path in self._found[0].items():
            limits.entry(inner)
            target = f"{folder}/{inner}"
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with untrusted.open_regular(path, follow=True) as content, open(target, "wb") as file:
                untrusted.copy_content(content, file, count=lambda count, inner=inner: limits.read(count, inner))

    def read(self, path):
        found = self._found[0]
        return files.read(found[path]) if path in found else None


class Git(Source):
    """
    A commit of a repository. Branches and tags are looked up once per run and repository, however
    many apps are in it; a commit that is named needs no look.
    """

    @cached_property
    def _repository(self):
        key = ("git", self.said.location, self.app["deploy_key"], self.app["known_hosts"])
        if key not in self.host.resolved:
            self.host.resolved[key] = Repository(*key[1:])
        return self.host.resolved[key]

    @cached_property
    def _commit(self):
        if COMMIT.fullmatch(self.said.revision):
            return self.said.revision
        try:
            return self._repository.find(self.said.revision)
        except Refused as error:
            raise self._problem(error, error.key) from error

    @property
    def identity(self):
        return ["git", self._commit, self.said.subdirectory]

    @property
    def revision(self):
        ref = self.app.get("ref") or self.said.revision
        return {"commit": self._commit, **({"ref": ref} if ref != self._commit else {})}

    def _fetch(self, folder, uid, gid):
        whole, inner = f"{folder}.checkout", self.said.subdirectory
        try:
            self._repository.checkout(self._commit, self.said.revision, whole, self._limits(), (uid, gid))
            wanted = os.path.normpath(f"{whole}/{inner}")
            # A link there could lead anywhere.
            if not os.path.isdir(wanted) or os.path.realpath(wanted) != os.path.realpath(whole) + wanted[len(whole) :]:
                top = sorted(entry.name for entry in os.scandir(whole) if entry.is_dir(follow_symlinks=False))
                raise self._problem(f"there is no folder {inner!r} in it; at its top are: {', '.join(top) or 'none'}")
            for name in os.listdir(wanted):
                os.rename(f"{wanted}/{name}", f"{folder}/{name}")
        except Refused as error:
            raise self._problem(error, error.key) from error
        finally:
            files.remove(whole)


class Archive(Source):
    """A tar or a zip, told by its hash. A finished release needs it no more, so it is not kept."""

    @property
    def identity(self):
        return ["archive", *self.said.hash, self.said.subdirectory]

    @property
    def revision(self):
        return dict([self.said.hash])

    def _fetch(self, folder, uid, gid):
        archive = f"{folder}.archive"
        shown = without_credentials(self.said.location)
        algorithm, expected = self.said.hash
        try:
            found = self._copied(archive, shown, gid)
            if found != expected:
                raise self._problem(f"{shown} was not unpacked: its {algorithm} is {found}, not {expected}")
            os.chown(folder, uid, gid)
            # Not by the Python that Salt runs on, which may be where that user can't read.
            program = ["/usr/bin/python3", "-I", "-c", inspect.getsource(unpack)]
            limits = [str(self.app["source_limits"][key]) for key in ("size", "files", "depth")]
            what = f"wsgi:apps:{self.name}:source: unpacking {shown}"
            key = f"wsgi:apps:{self.name}:source_limits"
            words = [*program, archive, folder, self.said.subdirectory, key, *limits]
            step.run(words, self.name, what=what, uid=uid, gid=gid)
        finally:
            files.remove(archive)

    def _copied(self, archive, shown, gid):
        """Put it where the user who unpacks it can read it; returns its hash."""
        deadline, limits = time.monotonic() + BUILD_TIMEOUT, self._limits()

        def count(size):
            limits.read(size, shown)
            if time.monotonic() > deadline:
                raise TimeoutError("it took too long")

        try:
            with open(archive, "wb") as file, self._opened() as content:
                os.fchown(file.fileno(), 0, gid)
                os.fchmod(file.fileno(), 0o640)
                return untrusted.copy_content(content, file, self.said.hash[0], count)
        except urllib.error.HTTPError as error:
            told = "; credentials stand in it as https://user:password@…" if error.code in (401, 403) else ""
            raise self._problem(f"{shown} can't be had: {error.code} {error.reason}{told}") from error
        except (OSError, http.client.HTTPException) as error:
            raise self._problem(f"{shown} can't be had: {getattr(error, 'reason', error)}") from error

    def _opened(self):
        if not self.said.location.startswith("salt://"):
            return _download(self.said.location)
        path = self.host.salt["cp.cache_file"](self.said.location, self.host.saltenv)
        if not path:
            raise self._problem(f"Salt serves no {self.said.location}")
        return open(path, "rb")


class Requirement(Source):
    """A package of an index: the environment has all of it, and the app's folder is empty."""

    @property
    def identity(self):
        return ["requirement", self.said.location]

    @property
    def requirements(self):
        return [self.said.location]

    def _fetch(self, folder, uid, gid):
        pass


class Path(Source):
    """
    A folder on the machine, copied: what is done there afterwards is another release. Pipes, sockets
    and devices in it are left out.

    Others may write to it while root reads it, so no link is followed on the way.
    """

    @cached_property
    def _path(self):
        return f"{self.said.location}/{self.said.subdirectory}".rstrip("/")

    @cached_property
    def _files(self):
        try:
            return self._taken()
        except Exceeded as error:
            raise self._exceeded(error) from error

    @property
    def identity(self):
        return ["path", self._files]

    def _fetch(self, folder, uid, gid):
        if self._taken(folder) != self._files:
            raise self._problem(f"{self._path} was changed while it was copied; apply again")

    def read(self, path):
        if path not in self._files:
            return None
        with self._opened() as top:
            return Tree(top).read(path)

    @contextlib.contextmanager
    def _opened(self):
        with contextlib.ExitStack() as opened:
            try:
                top = opened.enter_context(untrusted.open_folder(self._path))
            except NotADirectoryError:
                raise self._problem(f"{self._path} is no folder on this machine") from None
            except Outside as error:
                raise self._problem(f"{self._path} is not read: {error}") from error
            yield top

    def _taken(self, folder=None):
        """
        What is in it, by path: of a file its hash, and whether it is executable; of a link, where
        it leads. It is copied into a folder, where one is given.
        """
        found, limits = {}, self._limits()
        try:
            with self._opened() as top:
                for parent, folders, files, here in os.fwalk(".", dir_fd=top, onerror=_raise):
                    inner = os.path.normpath(parent)
                    if folder:
                        os.makedirs(f"{folder}/{inner}", exist_ok=True)
                    folders[:] = sorted({*folders} - {*SKIPPED})
                    for name in sorted({*files, *folders} - {*SKIPPED}):
                        path = os.path.normpath(f"{inner}/{name}")
                        limits.entry(path)
                        kind = os.stat(name, dir_fd=here, follow_symlinks=False).st_mode
                        if stat.S_ISLNK(kind):
                            found[path] = ["->", os.readlink(name, dir_fd=here)]
                            if folder:
                                os.symlink(found[path][1], f"{folder}/{path}")
                        elif stat.S_ISREG(kind):
                            found[path] = _take(name, here, folder and f"{folder}/{path}", limits, path)
        except OSError as error:
            if error.errno not in CHANGED:
                raise
            raise self._problem(f"{self._path} was changed while it was read; apply again") from error
        return found


FORMS = {"salt": Salt, "git": Git, "archive": Archive, "requirement": Requirement, "path": Path}


def source_of(host, name, app):
    """The app's source, resolved once per run; ``WsgiError`` where that can't be done is raised at its first use."""
    # Before the first state it is asked without the value that an sdb:// key stands for.
    key = (name, app["source"], app.get("ref"), app["deploy_key"], app["known_hosts"])
    if key not in host.resolved:
        said = parse_source(app["source"])
        host.resolved[key] = FORMS[said.kind](host, name, app, said)
    return host.resolved[key]


def with_revision(text, revision):
    """
    A source at another revision of it.

    text : str
        As pillar has it.
    revision : str
        Of git, a branch, a tag or a commit; of a requirement, a version.

    Returns a str that keeps all else, but the hashes of a requirement. Raises ``ValueError`` with
    a sentence where the source has no revisions, or that can't be one.

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
        raise ValueError(f"{shown} has no revisions; another archive or folder is deployed with source=")
    if parse_source(changed).kind != kind:
        raise ValueError(f"{revision!r} can't be a revision of {without_credentials(text)}")
    return changed


def _download(url):
    """
    Open what an ``http://`` or ``https://`` URL gives.

    Not by Salt's ``cp.cache_file``: it would name a file after the URL, credentials and all, log
    them when it fails, and keep the file. The proxy's variables are respected.
    """
    parts = urlsplit(url)
    plain = parts._replace(netloc=parts.netloc.rpartition("@")[2])
    passwords = urllib.request.HTTPPasswordMgrWithPriorAuth()
    if "@" in parts.netloc:
        # For this host alone, also where it redirects to another one.
        host = plain._replace(path="/").geturl()
        username, password = unquote(parts.username or ""), unquote(parts.password or "")
        passwords.add_password(None, host, username, password, is_authenticated=True)
    context = ssl.create_default_context()
    if not any(os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR")):
        # A Python that Salt brings along may look for them elsewhere than this system has them.
        context.load_verify_locations(os.environ.get("REQUESTS_CA_BUNDLE") or salt.utils.http.get_ca_bundle())
    opener = urllib.request.build_opener(
        urllib.request.HTTPBasicAuthHandler(passwords), urllib.request.HTTPSHandler(context=context)
    )
    return opener.open(plain.geturl(), timeout=NETWORK_TIMEOUT)


def _take(name, here, copy, limits, path):
    """The hash of a file in an open folder, and whether it is executable; it is copied where a path is given."""

    def count(size):
        limits.read(size, path)

    with untrusted.open_regular(name, here) as content:
        executable = bool(os.fstat(content.fileno()).st_mode & 0o100)
        if copy is None:
            return [untrusted.copy_content(content, count=count), executable]
        with open(copy, "wb") as file:
            os.fchmod(file.fileno(), 0o755 if executable else 0o644)
            return [untrusted.copy_content(content, file, count=count), executable]


def _raise(error):
    raise error
