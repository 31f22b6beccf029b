"""
git, as root runs it: listing, mirroring and checking out a repository.

No hook, filter or helper of any configuration runs, and git never prompts. Credentials reach git in its environment,
and a key in a file that is removed after the command.

A repository on this machine is read by ``git upload-pack``, which follows links and ``alternates`` in the repository:
root reads only what no other user can have changed. Submodules are fetched one by one, each as a repository of its own,
so that the limits count their files before these are on the disk.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import io
import os
import pwd
import re
import shlex
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote, urlsplit

from .. import files, step, untrusted
from ..errors import WsgiError
from ..lock import app_lock
from ..paths import LIB, PATH, RUN
from ..redact import without_credentials
from ..step import MARK
from ..untrusted import TEXT
from .unpack import Limits

RESOLVE_TIMEOUT = 60  # seconds to list a repository's branches and tags

CONNECT_TIMEOUT = 15  # seconds until ssh gives up a connection

# git@example.com:shop.git, git's short form of an ssh:// URL.
SCP = re.compile(r"(?P<host>(\w[\w.-]*@)?\w[\w.-]*):(?!//)[^\s:]+")

# Where git looks for a repository below a path, in its order.
REPOSITORY_SUFFIXES = ("/.git", "", ".git/.git", ".git")

# The UID and GID of a user who can read only what everybody can.
NOBODY = 65534

# Errors of git and OpenSSH: their text, the app's key that is wrong, and an explanation.
EXPLANATIONS = (
    (
        "has changed and you have requested strict checking",
        "known_hosts",
        "{host} shows a host key that differs from the known one; once you know why, set this to the output of `{keyscan}`",
    ),
    (
        "Host key verification failed",
        "known_hosts",
        "the host key of {host} is not known; set this to the output of `{keyscan}`, once you know that it is the host's",
    ),
    (
        r"Permission denied \(",
        "deploy_key",
        "{host} refuses it; it must be a private key without a passphrase, whose public key the repository knows",
    ),
    (
        "Authentication failed|could not read (Username|Password)|returned error: 403",
        "source",
        "{host} refuses the credentials; they are written https://user:password@…",
    ),
    (
        "does not appear to be a git repository|[Rr]epository '?.*not found|returned error: 404",
        "source",
        "{host} has no such repository, or does not let these credentials see it",
    ),
    ("", "source", "{host} could not be reached, or does not speak git's protocol"),
)


class Refused(Exception):
    """
    A commit or a file that a repository does not give.

    key : str
        The key of an app's settings that the error is about.
    sentence : str
        The error's text.
    """

    def __init__(self, key: str, sentence: str) -> None:
        super().__init__(sentence)
        self.key = key


class Repository:
    """
    A git repository, and its mirror on this machine.

    url : str
        ``https://…``, with credentials or without, ``ssh://…``, ``git@host:…`` or ``file://…``.
    deploy_key : str
        A private key for ssh; without one, root's own keys are used.
    known_hosts : str
        The trusted host keys; without them, the machine's known hosts are used.
    """

    def __init__(self, url: str, deploy_key: str | None = None, known_hosts: str | None = None) -> None:
        short = SCP.fullmatch(url)
        parts = urlsplit(f"ssh://{short['host']}" if short else url)
        address = parts.netloc.rpartition("@")[2]
        self.scheme = parts.scheme
        self.host = address or parts.path
        self._keyscan = " ".join(["ssh-keyscan", *(["-p", str(parts.port)] if parts.port else []), str(parts.hostname)])
        self._credentials: tuple[str, str] | None = None
        if parts.scheme == "https" and "@" in parts.netloc:
            self._credentials = unquote(parts.username or ""), unquote(parts.password or "")
            parts = parts._replace(netloc=address)
        self.url = url if short else parts.geturl()
        self._deploy_key = deploy_key
        self._known_hosts = known_hosts
        # The name of the mirror's lock and of its steps. No app has this name, as app names have no dot.
        self._lock = f"git.{files.digest(self.url)}"
        self.mirror = f"{LIB}/git/{files.digest(self.url)}"
        # Of the branches and tags (False), and of all references (True): their commits, or the error of listing them.
        self._listed: dict[bool, dict[str, str] | Refused] = {}
        # The UID and GID that read this repository if it is a submodule on this machine.
        self._submodule_reader: tuple[int, int] | None = None

    def find(self, revision: str) -> str:
        """
        Return the commit of a branch, a tag or a whole reference, in hexadecimal.

        revision : str
            ``main``, ``v1.5``, ``refs/merge-requests/7/head``, …

        The repository's references are listed once, however many apps need them. Raises ``Refused`` where there is no
        such branch or tag, or both.
        """
        _check_installed()
        all_references = _is_other_reference(revision)
        if all_references not in self._listed:
            try:
                self._listed[all_references] = self._list_references(all_references)
            except Refused as error:
                # Kept, so that the next app does not wait for the same time-out.
                self._listed[all_references] = error
        listed = self._listed[all_references]
        if isinstance(listed, Refused):
            raise listed
        return find_commit(listed, revision)

    def checkout(self, commit: str, revision: str, folder: str, limits: Limits, builder: tuple[int, int]) -> None:
        """
        Put the files of a commit and of its submodules into a folder, without ``.git``.

        commit : str
        revision : str
            The branch, tag or reference that the commit was found by.
        folder : str
            A path where nothing exists yet.
        limits : Limits
        builder : tuple of int
            The UID and GID of the user that reads submodules on this machine.

        The mirror of an interrupted run is completed, or made anew where that fails. Raises ``Refused`` and
        ``Exceeded``.
        """
        _check_installed()
        with app_lock(self._lock, "git fetch"):
            for is_last in (False, True):
                try:
                    return self._checkout(commit, revision, folder, copy.copy(limits), builder)
                except WsgiError as error:
                    files.remove(folder)
                    files.remove(self.mirror)
                    if is_last:
                        raise Refused("source", f"{self.url} could not be checked out: {error}") from error

    def _checkout(
        self, commit: str, revision: str, folder: str, limits: Limits, builder: tuple[int, int], above: str = ""
    ) -> None:
        self._fetch(commit, revision)
        submodules = self._count(commit, limits, above)
        self._export(commit, folder)
        for path, submodule_commit, url in self._submodules_with_urls(commit, submodules):
            submodule = self._submodule(path, url, builder)
            target = f"{folder}/{path}"
            # A hostile repository may have both a link and a submodule at one path.
            if os.path.realpath(target) != f"{os.path.realpath(folder)}/{path}":
                raise Refused("source", f"submodule {path!r} leads through a link")
            files.remove(submodule.mirror)
            try:
                submodule._checkout(submodule_commit, submodule_commit, target, limits, builder, f"{above}{path}/")
            except Refused as error:
                raise Refused(error.key, f"submodule {path!r}: {error}") from error
            finally:
                files.remove(submodule.mirror)

    def _count(self, commit: str, limits: Limits, above: str) -> dict[str, str]:
        """
        Count the files of a commit against the limits, before any of them is on the disk.

        above : str
            The path of a submodule in the source with a ``/`` at its end; "" for the source itself.

        Returns the commit's submodules, a dict of paths to commits. Raises ``Exceeded``.
        """
        reader, writer = os.pipe()
        with ThreadPoolExecutor(1) as pool:
            counted = pool.submit(_count_listed, reader, limits, above)
            try:
                with open(writer, "wb") as listed:
                    self._run(self._mirrored, "ls-tree", "-r", "-t", "-z", "--long", commit, stdout=listed)
            except WsgiError:
                # Beyond a limit the pipe is closed, so that git fails.
                if counted.exception() is None:
                    raise
            return counted.result()

    def _submodules_with_urls(self, commit: str, submodules: dict[str, str]) -> list[tuple[str, str, str]]:
        """Return the path, the commit and the URL of each submodule that ``.gitmodules`` does not switch off."""
        if not submodules.pop(".gitmodules", None):
            return []
        sections: dict[str, dict[str, str]] = {}
        names = r"^submodule\..*\.(path|url|update)$"
        with tempfile.TemporaryFile() as listed:
            # git exits with 1 where the file has no such option.
            with contextlib.suppress(WsgiError):
                blob = ["config", "--blob", f"{commit}:.gitmodules", "--null", "--get-regexp", names]
                self._run(self._mirrored, *blob, stdout=listed)
            listed.seek(0)
            for line in listed.read().decode(errors="surrogateescape").split("\0"):
                key, _, value = line.partition("\n")
                name, _, option = key.rpartition(".")
                sections.setdefault(name, {})[option] = value
        by_path = {section.get("path", "").strip("/"): section for section in sections.values()}
        found = []
        for path, submodule_commit in submodules.items():
            section = by_path.get(path, {})
            if section.get("update") == "none":
                continue
            if not section.get("url"):
                raise Refused("source", f"its .gitmodules has no URL for submodule {path!r}")
            found.append((path, submodule_commit, submodule_url(self.url, section["url"])))
        return found

    def _submodule(self, path: str, url: str, builder: tuple[int, int]) -> Repository:
        """Return a submodule's repository; raise ``Refused`` where its URL has a scheme that is not allowed there."""
        if url.startswith("/"):
            url = f"file://{url}"
        allowed = ("https", "ssh", "file") if self.scheme == "file" else ("https", "ssh")
        if _scheme(url) not in allowed:
            known = ", ".join(f"{scheme}://" for scheme in allowed)
            raise Refused("source", f"submodule {path!r} is at {without_credentials(url)!r}; allowed are {known}")
        submodule = Repository(url, self._deploy_key, self._known_hosts)
        if (submodule.scheme, submodule.host) == (self.scheme, self.host) and not submodule._credentials:
            submodule._credentials = self._credentials
        submodule._lock = self._lock
        # Removed after use: otherwise any repository could name a private commit's hash and get its files.
        submodule.mirror = f"{self.mirror}.submodule"
        submodule._submodule_reader = builder
        return submodule

    def _list_references(self, all_references: bool) -> dict[str, str]:
        only = [] if all_references else ["--heads", "--tags"]
        with app_lock(self._lock, "git ls-remote"), tempfile.TemporaryFile() as listed:
            self._run_remote("ls-remote", *self._upload_pack(), *only, self.url, timeout=RESOLVE_TIMEOUT, stdout=listed)
            listed.seek(0)
            lines = listed.read().decode(errors="replace").splitlines()
        return {name: commit for commit, _, name in (line.partition("\t") for line in lines)}

    @property
    def _mirrored(self) -> str:
        return f"--git-dir={self.mirror}"

    def _fetch(self, commit: str, revision: str) -> None:
        """Complete the mirror so that it has a commit."""
        for folder in (LIB, f"{LIB}/git"):
            files.ensure_dir(folder, 0o755 if folder == LIB else 0o700)
        if not os.path.isdir(self.mirror):
            self._run("init", "--quiet", "--bare", "--template=", *_object_format(commit), self.mirror)
        if self._holds(commit):
            return
        names = ["refs/heads/*", "refs/tags/*", *([revision] if _is_other_reference(revision) else [])]
        fetch = [self._mirrored, "fetch", *self._upload_pack(), "--quiet", "--no-tags", "--prune", "--force", self.url]
        try:
            self._run_remote(*fetch, *(f"{name}:{name}" for name in names))
        except Refused:
            # Raises WsgiError where the mirror is damaged, so that `checkout` makes it anew.
            self._run(self._mirrored, "fsck", "--connectivity-only", "--no-dangling", "--no-progress")
            raise
        if not self._holds(commit):
            try:
                # Some servers also give commits that are on no branch.
                self._run_remote(*fetch, commit)
            except Refused as error:
                raise Refused("source", f"{self.url} has no commit {commit}: {error}") from error

    def _holds(self, commit: str) -> bool:
        with contextlib.suppress(WsgiError):
            self._run(self._mirrored, "cat-file", "-e", f"{commit}^{{commit}}")
            return True
        return False

    def _export(self, commit: str, folder: str) -> None:
        """Put a commit's files into a folder, without ``.git``."""
        self._run("init", "--quiet", "--template=", *_object_format(commit), folder)
        # The mirror's objects are used in place. `git clone` would need permission to read local repositories.
        files.write(f"{folder}/.git/objects/info/alternates", f"{self.mirror}/objects\n", 0o600)
        self._run("-C", folder, "checkout", "--quiet", "--force", "--detach", commit)
        files.remove(f"{folder}/.git")

    def _reader(self) -> tuple[int, int, bool] | None:
        """
        Return the user that reads a repository on this machine, or None for root.

        The tuple has a UID, a GID, and whether the user's other groups count.
        """
        if self._submodule_reader:
            return (*self._submodule_reader, False)
        path = unquote(urlsplit(self.url).path).rstrip("/")
        candidates = [f"{path}{suffix}" for suffix in REPOSITORY_SUFFIXES]
        places = [candidate for candidate in candidates if os.path.lexists(candidate)]
        owners = {untrusted.owner_of(place) for place in places} - {0}
        if not owners and all(map(_is_roots_alone, places)):
            return None
        with contextlib.suppress(KeyError):
            if len(owners) == 1 and -1 not in owners:
                user = pwd.getpwuid(*owners)
                return user.pw_uid, user.pw_gid, True
        return NOBODY, NOBODY, False

    def _upload_pack(self) -> list[str]:
        """Return the option by which another user than root reads a repository on this machine. A shell runs it."""
        reader = self._reader() if self.scheme == "file" else None
        if not reader:
            return []
        uid, gid, groups = reader
        # Without root's environment, which the user could read.
        words = ["env", "--ignore-environment", f"PATH={PATH}", f"HOME={self._home}", "LANG=C.UTF-8"]
        kept = [f'{name}="${name}"' for name in ("GIT_PROTOCOL", MARK)]
        drop = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--init-groups" if groups else "--clear-groups"]
        return [f"--upload-pack={shlex.join(words)} {' '.join(kept)} {shlex.join(drop)} --no-new-privs git upload-pack"]

    def _run_remote(self, *words: str, **options: Any) -> None:
        """Run a git command that speaks to the repository; raise ``Refused`` with an explanation of its error."""
        try:
            self._run(*words, **options)
        except WsgiError as error:
            reader = self._reader() if self.scheme == "file" else None
            if reader:
                raise Refused(
                    "source",
                    f"{self.host} could not be read as the user {_user_name(reader[0])}; root itself reads a repository "
                    f"on this machine only if no other user can have changed it, and no submodule: {error}",
                ) from error
            for pattern, key, sentence in EXPLANATIONS:
                if re.search(pattern, str(error)):
                    explanation = sentence.format(host=self.host, keyscan=self._keyscan)
                    raise Refused(key, f"{explanation}: {error}") from error

    def _run(self, *words: str, **options: Any) -> None:
        verb = next(word for word in words if not word.startswith(("-", "/")))
        with self._private_home() as home:
            environment = self._environment(home)
            secrets = self._credentials or ()
            step.run(["git", *words], self._lock, label=f"git {verb}", env=environment, secrets=secrets, **options)

    @property
    def _home(self) -> str:
        return f"{RUN}/{self._lock}"

    @contextlib.contextmanager
    def _private_home(self) -> Iterator[str]:
        """Make a home for one git command, in memory, which only root may list; remove one that a killed run left."""
        home, local = self._home, self.scheme == "file"
        files.remove(home)
        # Another user may read a repository on this machine, and needs the configuration.
        files.ensure_dir(home, 0o711 if local else 0o700)
        try:
            files.write(f"{home}/.gitconfig", self._configuration(), 0o644 if local else 0o600)
            for name, text in (("key", self._deploy_key), ("known_hosts", self._known_hosts)):
                if text:
                    # OpenSSH refuses a key without a newline at its end.
                    files.write(f"{home}/{name}", text.strip() + "\n", 0o600)
            yield home
        finally:
            files.remove(home)

    def _configuration(self) -> str:
        """
        Return the text of git's configuration.

        git does not pass the options of ``-c`` to the programs that it starts for another repository, and before 2.31
        it has no variables for them.
        """
        lines = ["[core]", "hooksPath = /dev/null"]
        # Maintenance in the background would be killed at the end of the command.
        lines += ["[gc]", "autoDetach = false", "[maintenance]", "autoDetach = false"]
        # git gives up a server that sends nothing any more.
        lines += ["[http]", "lowSpeedLimit = 1", f"lowSpeedTime = {RESOLVE_TIMEOUT}"]
        if self.scheme == "file":
            # The repository may be another user's: git runs no hook and no helper of a repository that it only reads.
            lines += ["[safe]", "directory = *"]
        if self._credentials:
            # For this host only, as a submodule may be on another one.
            lines += [f'[credential "https://{self.host}"]', f"helper = {_quoted(HELPER)}"]
        return "\n".join(lines) + "\n"

    def _environment(self, home: str) -> dict[str, str]:
        username, password = self._credentials or ("", "")
        found = {
            "HOME": home,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            # This also restricts redirects. The scheme ext:: would run a command.
            "GIT_ALLOW_PROTOCOL": self.scheme,
            "GIT_SSH_COMMAND": self._ssh(home),
            "GIT_SSH_VARIANT": "ssh",
            "WSGI_GIT_USERNAME": username,
            "WSGI_GIT_PASSWORD": password,
        }
        for gits, usual in (("GIT_SSL_CAINFO", "SSL_CERT_FILE"), ("GIT_SSL_CAPATH", "SSL_CERT_DIR")):
            path = os.environ.get(gits) or os.environ.get(usual)
            if path:
                found[gits] = path
        return found

    def _ssh(self, home: str) -> str:
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "ConnectTimeout": CONNECT_TIMEOUT,
            "ServerAliveInterval": CONNECT_TIMEOUT,
            # A shared connection of root's may have used another key.
            "ControlPath": "none",
            "LogLevel": "ERROR",
        }
        if self._deploy_key:
            options.update(IdentitiesOnly="yes", IdentityAgent="none", IdentityFile=f"{home}/key")
        if self._known_hosts:
            options.update(UserKnownHostsFile=f"{home}/known_hosts", GlobalKnownHostsFile="/dev/null")
        return shlex.join(["ssh", *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))])


# git's credential helper. printf is built into the shell, so that no process has the password as an argument.
HELPER = r"""!f() { printf 'username=%s\npassword=%s\n' "$WSGI_GIT_USERNAME" "$WSGI_GIT_PASSWORD"; }; f"""


def submodule_url(url: str, other: str) -> str:
    """
    Return the URL of a submodule, which may be relative to the URL of its repository.

    url : str
        The repository's URL.
    other : str
        The submodule's URL in ``.gitmodules``.

    .. code-block:: python

        >>> submodule_url("https://example.com/shop.git", "../shared.git")
        'https://example.com/shared.git'
    """
    if not other.startswith(("./", "../")):
        return other
    url = url.rstrip("/")
    while other.startswith(("./", "../")):
        step, _, other = other.partition("/")
        if step == "..":
            # Above git@example.com:shop.git is only the host.
            url = re.sub(r"(/|(?<=:))[^/:]*$", "", url)
    return f"{url}{'' if url.endswith(':') else '/'}{other}".rstrip("/")


def _count_listed(listed: int, limits: Limits, above: str) -> dict[str, str]:
    """
    Count the entries that ``git ls-tree`` lists.

    Returns the paths of submodules to their commits, and of ``.gitmodules``, if it is a file, to its size.
    """
    found = {}
    with open(listed, "rb") as file:
        for line in _nul_terminated(file):
            facts, _, encoded_path = line.partition(b"\t")
            mode, _, commit, size = facts.decode().split()
            path = os.fsdecode(encoded_path)
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


def _nul_terminated(file: io.BufferedReader) -> Iterator[bytes]:
    """Yield the strings before each NUL of a file; of one that is too long for a path, the beginning."""
    rest = b""
    for part in iter(lambda: file.read1(2**16), b""):
        *whole, rest = (rest + part).split(b"\0")
        yield from whole
        if len(rest) > 2**16:
            yield rest


def _is_roots_alone(repository: str) -> bool:
    """Return whether only root can have changed a repository on this machine, and nothing in it leads out of it."""
    if not os.path.isdir(repository):
        return False
    if os.path.lexists(f"{repository}/.git"):
        return True  # the .git itself is among the places that are checked
    if os.path.lexists(f"{repository}/objects/info/alternates") or os.path.lexists(f"{repository}/commondir"):
        return False
    for _, folders, names, here in os.fwalk(repository):
        # Hooks never run.
        folders[:] = [name for name in folders if name != "hooks"]
        for found in (os.stat(name, dir_fd=here, follow_symlinks=False) for name in [".", *folders, *names]):
            shared = stat.S_IWOTH | (stat.S_IWGRP if found.st_gid else 0)
            if found.st_uid or stat.S_ISLNK(found.st_mode) or found.st_mode & shared:
                return False
    return True


def _scheme(url: str) -> str:
    """Return the scheme of a URL that is safe to give to git; "" for any other one."""
    if SCP.fullmatch(url):
        return "ssh"
    with contextlib.suppress(ValueError):  # its port is not a number, or a bracket of its address is missing
        parts = urlsplit(url)
        # ssh would take a host that begins with - as an option.
        named = bool(parts.hostname) and parts.port != 0 and not parts.netloc.startswith("-")
        if url.isprintable() and " " not in url and named != (parts.scheme == "file"):
            return parts.scheme
    return ""


def _user_name(uid: int) -> str:
    with contextlib.suppress(KeyError):
        return f"{pwd.getpwuid(uid).pw_name!r}"
    return f"UID {uid}"


def find_commit(references: Mapping[str, str], revision: str) -> str:
    """
    Return the commit of a branch, a tag or a whole reference.

    references : dict
        The output of ``git ls-remote``: names to hashes, with ``^{}`` after the name of a tag for the tag's commit.
    revision : str

    Raises ``Refused`` where there is no such branch or tag, or both.

    .. code-block:: python

        >>> find_commit({"refs/tags/v1": "1f0c…", "refs/tags/v1^{}": "9b3e…"}, "v1")
        '9b3e…'
    """
    names = [revision] if revision.startswith("refs/") else [f"refs/heads/{revision}", f"refs/tags/{revision}"]
    found = [name for name in names if name in references]
    if len(found) == 2:
        raise Refused("source", f"{revision!r} is both a branch and a tag; write @{names[0]} or @{names[1]}")
    if found:
        return references.get(f"{found[0]}^{{}}", references[found[0]])
    sentence = f"the repository has no branch and no tag {revision!r}"
    if revision.startswith("refs/"):
        sentence = f"the repository has no reference {revision!r}"
        known = sorted(name for name in references if not name.endswith("^{}"))
    else:
        known = sorted({name.split("/", 2)[2] for name in references if name.count("/") > 1 and "^" not in name})
    near = difflib.get_close_matches(revision, known, n=3, cutoff=0.5)
    if near:
        sentence += f"; did you mean {' or '.join(map(repr, near))}?"
    if re.fullmatch(r"[0-9a-fA-F]{4,64}", revision):
        sentence += "; a commit must be whole, 40 or 64 lower-case hexadecimal digits"
    raise Refused("source", sentence)


def _is_other_reference(revision: str) -> bool:
    """Return whether a revision is a whole reference that is neither a branch nor a tag."""
    return revision.startswith("refs/") and not revision.startswith(("refs/heads/", "refs/tags/"))


def _object_format(commit: str) -> list[str]:
    """Return the options of ``git init`` for a repository with commits of this length."""
    return ["--object-format=sha256"] if len(commit) == 64 else []


def _quoted(value: str) -> str:
    """Return a value in the quotes of git's configuration."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _check_installed() -> None:
    if shutil.which("git", path=PATH) is None:
        raise Refused("source", "git is not installed; state.apply wsgi installs it")
