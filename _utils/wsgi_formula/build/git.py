"""
git, as root runs it: repositories asked, mirrored and checked out.

No hook, filter or helper of anybody's configuration runs, nothing is asked on a terminal, and
credentials reach git by its environment, a key by a file that is gone with the command.

A repository on this machine is read by ``git upload-pack``, which follows links and ``alternates`` in
it: as root only where nobody else can have put them there. Submodules are fetched one by one, each as a
repository of its own, so that what they hold counts before it is on the disk.
"""

import contextlib
import copy
import difflib
import os
import pwd
import re
import shlex
import shutil
import stat
import tempfile
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote, urlsplit

from .. import files, step, untrusted
from ..errors import WsgiError
from ..lock import app_lock
from ..paths import LIB, PATH, RUN
from ..redact import without_credentials
from ..step import MARK
from ..untrusted import TEXT
from .unpack import Limits

RESOLVE_TIMEOUT = 60  # seconds, to ask a repository for its branches and tags

CONNECT_TIMEOUT = 15  # seconds, for ssh to be greeted

# git@example.com:shop.git, as git and OpenSSH take it beside ssh://.
SCP = re.compile(r"(?P<host>(\w[\w.-]*@)?\w[\w.-]*):(?!//)[^\s:]+")

# Where git looks for a repository of that path, in its order.
PLACES = ("/.git", "", ".git/.git", ".git")

# A user who can read only what everybody can.
NOBODY = 65534

# What git and OpenSSH say, the app's key that mends it, and how.
REASONS = (
    (
        "has changed and you have requested strict checking",
        "known_hosts",
        "{host} shows another host key than the one that is known; once you know why, put what `{keyscan}` prints here",
    ),
    (
        "Host key verification failed",
        "known_hosts",
        "the host key of {host} is not known; put what `{keyscan}` prints here, once you know that it is the host's",
    ),
    (
        r"Permission denied \(",
        "deploy_key",
        "{host} refuses it; here must stand a private key without a passphrase, whose public key is the repository's",
    ),
    (
        "Authentication failed|could not read (Username|Password)|returned error: 403",
        "source",
        "{host} refuses the credentials; they stand in it as https://user:password@…",
    ),
    (
        "does not appear to be a git repository|[Rr]epository '?.*not found|returned error: 404",
        "source",
        "{host} has no such repository, or does not show it to these credentials",
    ),
    ("", "source", "{host} can't be reached, or does not answer as git does"),
)


class Refused(Exception):
    """
    What can't be had of a repository.

    key : str
        The key of an app's settings that mends it.
    sentence : str
    """

    def __init__(self, key, sentence):
        super().__init__(sentence)
        self.key = key


class Repository:
    """
    A repository somewhere, and its mirror on this machine.

    url : str
        ``https://…``, with credentials or without, ``ssh://…``, ``git@host:…`` or ``file://…``.
    deploy_key : str
        A private key for ssh; root's own keys when not given.
    known_hosts : str
        The host keys that are trusted; the machine's own when not given.
    """

    def __init__(self, url, deploy_key=None, known_hosts=None):
        short = SCP.fullmatch(url)
        parts = urlsplit(f"ssh://{short['host']}" if short else url)
        address = parts.netloc.rpartition("@")[2]
        self.scheme = parts.scheme
        self.host = address or parts.path
        self._keyscan = " ".join(["ssh-keyscan", *(["-p", str(parts.port)] if parts.port else []), str(parts.hostname)])
        self._credentials = None
        if parts.scheme == "https" and "@" in parts.netloc:
            self._credentials = unquote(parts.username or ""), unquote(parts.password or "")
            parts = parts._replace(netloc=address)
        self.url = url if short else parts.geturl()
        self._deploy_key = deploy_key
        self._known_hosts = known_hosts
        # No app's name has a dot: this lock is the mirror's, and so are the processes marked with it.
        self._lock = f"git.{files.digest(self.url)}"
        self.mirror = f"{LIB}/git/{files.digest(self.url)}"
        self._answers = {}
        # The UID and GID that read this repository if it is a submodule on this machine; else None.
        self._submodule_reader = None

    def find(self, revision):
        """
        What a branch, a tag or a whole reference stands for.

        revision : str

        Returns a commit, in hexadecimal. Raises ``Refused`` where it stands for nothing, or for
        two things. The repository is asked once, whatever it is asked for.
        """
        _installed()
        others = _apart(revision)
        if others not in self._answers:
            try:
                self._answers[others] = self._references(others)
            except Refused as error:
                # The next app need not wait as long to hear the same.
                self._answers[others] = error
        if isinstance(self._answers[others], Refused):
            raise self._answers[others]
        return find(self._answers[others], revision)

    def checkout(self, commit, revision, folder, limits, builder):
        """
        Put the files of a commit, and of its submodules, into a folder, with nothing of git's.

        commit : str
        revision : str
            What it was asked for as.
        folder : str
            It must not be there yet.
        limits : Limits
        builder : tuple of int
            The UID and GID of the user who reads submodules that are on this machine.

        Raises ``Refused`` and ``Exceeded``. What an interrupted run left of the mirror is completed; where that
        can't be done it is made anew, once.
        """
        _installed()
        with app_lock(self._lock, "a fetch"):
            for again in (True, False):
                try:
                    return self._checkout(commit, revision, folder, copy.copy(limits), builder)
                except WsgiError as error:
                    files.remove(folder)
                    files.remove(self.mirror)
                    if not again:
                        raise Refused("source", f"{self.url} can't be checked out: {error}") from error

    def _checkout(self, commit, revision, folder, limits, builder, above=""):
        self._fetch(commit, revision)
        submodules = self._count(commit, limits, above)
        self._export(commit, folder)
        for path, wanted, url in self._located(commit, submodules):
            submodule = self._submodule(path, url, builder)
            target = f"{folder}/{path}"
            # A hostile tree may hold a link and a submodule of one path.
            if os.path.realpath(target) != f"{os.path.realpath(folder)}/{path}":
                raise Refused("source", f"submodule {path!r} leads through a link")
            files.remove(submodule.mirror)
            try:
                submodule._checkout(wanted, wanted, target, limits, builder, f"{above}{path}/")
            except Refused as error:
                raise Refused(error.key, f"submodule {path!r}: {error}") from error
            finally:
                files.remove(submodule.mirror)

    def _count(self, commit, limits, above):
        """
        Count what a commit holds, before any of it is on the disk.

        above : str
            Where it goes in the source: "", or a submodule's path and ``/``.

        Returns its submodules, a dict of paths to commits. Raises ``Exceeded``.
        """
        reader, writer = os.pipe()
        with ThreadPoolExecutor(1) as pool:
            counted = pool.submit(_counted, reader, limits, above)
            try:
                with open(writer, "wb") as listed:
                    self._run(self._mirrored, "ls-tree", "-r", "-t", "-z", "--long", commit, stdout=listed)
            except WsgiError:
                # Beyond a limit nobody reads on, and git fails for that.
                if counted.exception() is None:
                    raise
            return counted.result()

    def _located(self, commit, submodules):
        """Return the submodules that ``.gitmodules`` names, a list of paths, commits and URLs."""
        if not submodules.pop(".gitmodules", None):
            return []
        said = {}
        names = r"^submodule\..*\.(path|url|update)$"
        with tempfile.TemporaryFile() as listed:
            # Exits with 1 where there is nothing of that.
            with contextlib.suppress(WsgiError):
                blob = ["config", "--blob", f"{commit}:.gitmodules", "--null", "--get-regexp", names]
                self._run(self._mirrored, *blob, stdout=listed)
            listed.seek(0)
            for line in listed.read().decode(errors="surrogateescape").split("\0"):
                key, _, value = line.partition("\n")
                name, _, word = key.rpartition(".")
                said.setdefault(name, {})[word] = value
        told = {each.get("path", "").strip("/"): each for each in said.values()}
        found = []
        for path, wanted in submodules.items():
            if told.get(path, {}).get("update") == "none":
                continue
            if not told.get(path, {}).get("url"):
                raise Refused("source", f"its .gitmodules has no URL for submodule {path!r}")
            found.append((path, wanted, beside(self.url, told[path]["url"])))
        return found

    def _submodule(self, path, url, builder):
        """A submodule's repository. Raises ``Refused`` where its URL is none that it may have."""
        if url.startswith("/"):
            url = f"file://{url}"
        allowed = ("https", "ssh", "file") if self.scheme == "file" else ("https", "ssh")
        if _scheme(url) not in allowed:
            known = ", ".join(f"{each}://" for each in allowed)
            raise Refused("source", f"submodule {path!r} is at {without_credentials(url)!r}; it can be at {known}")
        found = Repository(url, self._deploy_key, self._known_hosts)
        if (found.scheme, found.host) == (self.scheme, self.host) and not found._credentials:
            found._credentials = self._credentials
        found._lock = self._lock
        # Not kept: a mirror would give this commit to any repository that knows its hash.
        found.mirror = f"{self.mirror}.submodule"
        found._submodule_reader = builder
        return found

    def _references(self, others):
        only = [] if others else ["--heads", "--tags"]
        with app_lock(self._lock, "a look at its branches"), tempfile.TemporaryFile() as listed:
            self._ask("ls-remote", *self._upload_pack(), *only, self.url, timeout=RESOLVE_TIMEOUT, stdout=listed)
            listed.seek(0)
            lines = listed.read().decode(errors="replace").splitlines()
        return {name: commit for commit, _, name in (line.partition("\t") for line in lines)}

    @property
    def _mirrored(self):
        return f"--git-dir={self.mirror}"

    def _fetch(self, commit, revision):
        for folder in (LIB, f"{LIB}/git"):
            files.ensure_dir(folder, 0o755 if folder == LIB else 0o700)
        if not os.path.isdir(self.mirror):
            self._run("init", "--quiet", "--bare", "--template=", *_format(commit), self.mirror)
        if self._holds(commit):
            return
        names = ["refs/heads/*", "refs/tags/*", *([revision] if _apart(revision) else [])]
        fetch = [self._mirrored, "fetch", *self._upload_pack(), "--quiet", "--no-tags", "--prune", "--force", self.url]
        try:
            self._ask(*fetch, *(f"{name}:{name}" for name in names))
        except Refused:
            # Fails with a WsgiError where the mirror is what is wrong.
            self._run(self._mirrored, "fsck", "--connectivity-only", "--no-dangling", "--no-progress")
            raise
        if not self._holds(commit):
            try:
                # Servers may give away what no branch leads to.
                self._ask(*fetch, commit)
            except Refused as error:
                raise Refused("source", f"{commit} is no commit in {self.url}: {error}") from error

    def _holds(self, commit):
        with contextlib.suppress(WsgiError):
            self._run(self._mirrored, "cat-file", "-e", f"{commit}^{{commit}}")
            return True
        return False

    def _export(self, commit, folder):
        self._run("init", "--quiet", "--template=", *_format(commit), folder)
        # Nothing is copied, and `git clone` would have to be allowed to read local repositories.
        files.write(f"{folder}/.git/objects/info/alternates", f"{self.mirror}/objects\n", 0o600)
        self._run("-C", folder, "checkout", "--quiet", "--force", "--detach", commit)
        files.remove(f"{folder}/.git")

    def _reader(self):
        """
        Who reads a repository on this machine.

        Returns a UID, a GID, and whether all groups of the user count; None for root.
        """
        if self._submodule_reader:
            return (*self._submodule_reader, False)
        path = unquote(urlsplit(self.url).path).rstrip("/")
        places = [f"{path}{place}" for place in PLACES if os.path.lexists(f"{path}{place}")]
        owners = {untrusted.owner_of(place) for place in places} - {0}
        if not owners and all(map(_is_roots_alone, places)):
            return None
        with contextlib.suppress(KeyError):
            if len(owners) == 1 and -1 not in owners:
                user = pwd.getpwuid(*owners)
                return user.pw_uid, user.pw_gid, True
        return NOBODY, NOBODY, False

    def _upload_pack(self):
        """The option that has a repository on this machine read by who may, which a shell runs."""
        reader = self._reader() if self.scheme == "file" else None
        if not reader:
            return []
        uid, gid, groups = reader
        # Root's environment is left out, because the user could read it.
        words = ["env", "--ignore-environment", f"PATH={PATH}", f"HOME={self._home}", "LANG=C.UTF-8"]
        kept = [f'{name}="${name}"' for name in ("GIT_PROTOCOL", MARK)]
        drop = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--init-groups" if groups else "--clear-groups"]
        return [f"--upload-pack={shlex.join(words)} {' '.join(kept)} {shlex.join(drop)} --no-new-privs git upload-pack"]

    def _ask(self, *words, **options):
        """Run git where it speaks to the repository: what fails then is told by what it says."""
        try:
            self._run(*words, **options)
        except WsgiError as error:
            reader = self._reader() if self.scheme == "file" else None
            if reader:
                raise Refused(
                    "source",
                    f"{self.host} can't be read by {_name(reader[0])}, as whom it is read: root reads a repository of this "
                    f"machine only where nobody else can have changed it, and no submodule: {error}",
                ) from error
            for pattern, key, sentence in REASONS:
                if re.search(pattern, str(error)):
                    told = sentence.format(host=self.host, keyscan=self._keyscan)
                    raise Refused(key, f"{told}: {error}") from error

    def _run(self, *words, **options):
        verb = next(word for word in words if not word.startswith(("-", "/")))
        with self._private() as home:
            environment = self._environment(home)
            secrets = self._credentials or ()
            step.run(["git", *words], self._lock, what=f"git {verb}", env=environment, secrets=secrets, **options)

    @property
    def _home(self):
        return f"{RUN}/{self._lock}"

    @contextlib.contextmanager
    def _private(self):
        """A home for git alone, in memory, which only root may list, for one command. What a killed
        run left of it goes with the next one."""
        home, local = self._home, self.scheme == "file"
        files.remove(home)
        # Another user may read a repository on this machine, and needs the configuration.
        files.ensure_dir(home, 0o711 if local else 0o700)
        try:
            files.write(f"{home}/.gitconfig", self._configuration(), 0o644 if local else 0o600)
            for name, text in (("key", self._deploy_key), ("known_hosts", self._known_hosts)):
                if text:
                    # OpenSSH reads no key whose last line has no end.
                    files.write(f"{home}/{name}", text.strip() + "\n", 0o600)
            yield home
        finally:
            files.remove(home)

    def _configuration(self):
        """
        What can't be given by ``-c``, which git takes away from the programs that it starts for
        another repository. git before 2.31 has no variables for it.
        """
        lines = ["[core]", "hooksPath = /dev/null"]
        # What is cleared up in the background would be killed with the command.
        lines += ["[gc]", "autoDetach = false", "[maintenance]", "autoDetach = false"]
        # A server that says nothing any more is given up.
        lines += ["[http]", "lowSpeedLimit = 1", f"lowSpeedTime = {RESOLVE_TIMEOUT}"]
        if self.scheme == "file":
            # It may be another user's; git runs no hook and no helper of a repository that it reads.
            lines += ["[safe]", "directory = *"]
        if self._credentials:
            # For this host alone: a submodule may lie elsewhere.
            lines += [f'[credential "https://{self.host}"]', f"helper = {_quoted(HELPER)}"]
        return "\n".join(lines) + "\n"

    def _environment(self, home):
        username, password = self._credentials or ("", "")
        found = {
            "HOME": home,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            # Also where a server redirects to; ext:: would be a command.
            "GIT_ALLOW_PROTOCOL": self.scheme,
            "GIT_SSH_COMMAND": self._ssh(home),
            "GIT_SSH_VARIANT": "ssh",
            "WSGI_GIT_USERNAME": username,
            "WSGI_GIT_PASSWORD": password,
        }
        for own, usual in (("GIT_SSL_CAINFO", "SSL_CERT_FILE"), ("GIT_SSL_CAPATH", "SSL_CERT_DIR")):
            path = os.environ.get(own) or os.environ.get(usual)
            if path:
                found[own] = path
        return found

    def _ssh(self, home):
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "ConnectTimeout": CONNECT_TIMEOUT,
            "ServerAliveInterval": CONNECT_TIMEOUT,
            # A connection that root shares may be another key's.
            "ControlPath": "none",
            "LogLevel": "ERROR",
        }
        if self._deploy_key:
            options.update(IdentitiesOnly="yes", IdentityAgent="none", IdentityFile=f"{home}/key")
        if self._known_hosts:
            options.update(UserKnownHostsFile=f"{home}/known_hosts", GlobalKnownHostsFile="/dev/null")
        return shlex.join(["ssh", *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))])


# What git asks for credentials; printf is the shell's own, so no process is given them as arguments.
HELPER = r"""!f() { printf 'username=%s\npassword=%s\n' "$WSGI_GIT_USERNAME" "$WSGI_GIT_PASSWORD"; }; f"""


def beside(url, other):
    """
    The URL of a submodule, which may be relative to that of its repository.

    .. code-block:: python

        >>> beside("https://example.com/shop.git", "../shared.git")
        'https://example.com/shared.git'
    """
    if not other.startswith(("./", "../")):
        return other
    url = url.rstrip("/")
    while other.startswith(("./", "../")):
        step, _, other = other.partition("/")
        if step == "..":
            # Above git@example.com:shop.git there is only the host.
            url = re.sub(r"(/|(?<=:))[^/:]*$", "", url)
    return f"{url}{'' if url.endswith(':') else '/'}{other}".rstrip("/")


def _counted(listed, limits: Limits, above):
    """Count what ``git ls-tree`` lists; returns the submodules among it, and the size of ``.gitmodules`` where it is a
    file."""
    found = {}
    with open(listed, "rb") as file:
        for line in _lines(file):
            said, _, path = line.partition(b"\t")
            mode, _, commit, size = said.decode().split()
            path = os.fsdecode(path)
            limits.entry(f"{above}{path}")
            if mode == "160000":
                found[path] = commit
            elif size.isdigit():
                limits.read(int(size), f"{above}{path}")
            if path == ".gitmodules" and stat.S_ISREG(int(mode, 8)):
                if int(size) > TEXT:
                    raise Refused("source", f"its {above}{path} has more than {TEXT // 2**20} MiB")
                found[path] = size
    return found


def _lines(file):
    """Yields what stands before each NUL; of what is too long for a path, the beginning."""
    rest = b""
    for part in iter(lambda: file.read1(2**16), b""):
        *whole, rest = (rest + part).split(b"\0")
        yield from whole
        if len(rest) > 2**16:
            yield rest


def _is_roots_alone(repository):
    """Whether nobody but root can have put anything into a repository on this machine, and nothing leads out of it."""
    if not os.path.isdir(repository):
        return False
    if os.path.lexists(f"{repository}/.git"):
        return True  # it is looked at by itself
    if os.path.lexists(f"{repository}/objects/info/alternates") or os.path.lexists(f"{repository}/commondir"):
        return False
    for _, folders, names, here in os.fwalk(repository):
        # None of these runs.
        folders[:] = [name for name in folders if name != "hooks"]
        for found in (os.stat(name, dir_fd=here, follow_symlinks=False) for name in [".", *folders, *names]):
            shared = stat.S_IWOTH | (stat.S_IWGRP if found.st_gid else 0)
            if found.st_uid or stat.S_ISLNK(found.st_mode) or found.st_mode & shared:
                return False
    return True


def _scheme(url):
    """The scheme of a URL that git can be given; "" of any other one."""
    if SCP.fullmatch(url):
        return "ssh"
    with contextlib.suppress(ValueError):  # no port, or half an address in brackets
        parts = urlsplit(url)
        # A host that begins with - would be an option of ssh.
        named = bool(parts.hostname) and parts.port != 0 and not parts.netloc.startswith("-")
        if url.isprintable() and " " not in url and named != (parts.scheme == "file"):
            return parts.scheme
    return ""


def _name(uid):
    with contextlib.suppress(KeyError):
        return f"{pwd.getpwuid(uid).pw_name!r}"
    return f"UID {uid}"


def find(references, revision):
    """
    The commit that a branch, a tag or a whole reference stands for.

    references : dict
        Of whole names to what ``git ls-remote`` says, with ``^{}`` for what a tag is of.
    revision : str

    Raises ``Refused``.

    .. code-block:: python

        >>> find({"refs/tags/v1": "1f0c…", "refs/tags/v1^{}": "9b3e…"}, "v1")
        '9b3e…'
    """
    names = [revision] if revision.startswith("refs/") else [f"refs/heads/{revision}", f"refs/tags/{revision}"]
    found = [name for name in names if name in references]
    if len(found) == 2:
        raise Refused("source", f"{revision!r} is a branch and a tag; say @{names[0]} or @{names[1]}")
    if found:
        return references.get(f"{found[0]}^{{}}", references[found[0]])
    sentence = f"{revision!r} is neither a branch nor a tag of it"
    if revision.startswith("refs/"):
        sentence = f"{revision!r} is not in it"
        known = sorted(name for name in references if not name.endswith("^{}"))
    else:
        known = sorted({name.split("/", 2)[2] for name in references if name.count("/") > 1 and "^" not in name})
    near = difflib.get_close_matches(revision, known, n=3, cutoff=0.5)
    if near:
        sentence += f"; did you mean {' or '.join(map(repr, near))}?"
    if re.fullmatch(r"[0-9a-fA-F]{4,64}", revision):
        sentence += "; a commit must be whole, 40 or 64 lower-case hexadecimal digits"
    raise Refused("source", sentence)


def _apart(revision):
    """Whether a revision is a whole reference that is neither a branch nor a tag."""
    return revision.startswith("refs/") and not revision.startswith(("refs/heads/", "refs/tags/"))


def _format(commit):
    """What makes a repository one of such commits."""
    return ["--object-format=sha256"] if len(commit) == 64 else []


def _quoted(value):
    """A value as git's configuration has it."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _installed():
    if shutil.which("git", path=PATH) is None:
        raise Refused("source", "git is not on this machine; state.apply wsgi installs it")
