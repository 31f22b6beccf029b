"""
git, as root runs it: repositories asked, mirrored and checked out.

No hook, filter or helper of anybody's configuration runs, nothing is asked on a terminal, and
credentials reach git by its environment, a key by a file that is gone with the command.
"""

import contextlib
import difflib
import os
import re
import shlex
import shutil
import tempfile
from urllib.parse import unquote, urlsplit

import wsgi_host
import wsgi_lock
import wsgi_step
from wsgi_host import LIB, RUN, Problem

RESOLVE_TIMEOUT = 60  # seconds, to ask a repository for its branches and tags
CONNECT_TIMEOUT = 15  # seconds, for ssh to be greeted
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
        ``https://…``, with credentials or without, ``ssh://…`` or ``file://…``.
    deploy_key : str
        A private key for ssh; root's own keys when not given.
    known_hosts : str
        The host keys that are trusted; the machine's own when not given.
    """

    def __init__(self, url, deploy_key=None, known_hosts=None):
        parts = urlsplit(url)
        address = parts.netloc.rpartition("@")[2]
        self.scheme = parts.scheme
        self.host = address or parts.path
        self._keyscan = " ".join(["ssh-keyscan", *(["-p", str(parts.port)] if parts.port else []), str(parts.hostname)])
        self._credentials = None
        if parts.scheme == "https" and "@" in parts.netloc:
            self._credentials = unquote(parts.username or ""), unquote(parts.password or "")
            parts = parts._replace(netloc=address)
        self.url = parts.geturl()
        self._deploy_key = deploy_key
        self._known_hosts = known_hosts
        # No app's name has a dot: this lock is the mirror's, and so are the processes marked with it.
        self._lock = f"git.{wsgi_host.digest(self.url)}"
        self.mirror = f"{LIB}/git/{wsgi_host.digest(self.url)}"
        self._answers = {}

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

    def checkout(self, commit, revision, folder):
        """
        Put the files of a commit, and of its submodules, into a folder, with nothing of git's.

        commit : str
        revision : str
            What it was asked for as.
        folder : str
            It must not be there yet.

        Raises ``Refused``. What an interrupted run left of the mirror is completed; where that
        can't be done it is made anew, once.
        """
        _installed()
        with wsgi_lock.locked(self._lock, "a fetch"):
            for again in (True, False):
                try:
                    self._fetch(commit, revision)
                    return self._export(commit, folder)
                except Problem as error:
                    wsgi_host.remove(folder)
                    wsgi_host.remove(self.mirror)
                    if not again:
                        raise Refused("source", f"{self.url} can't be checked out: {error}") from error

    def _references(self, others):
        only = [] if others else ["--heads", "--tags"]
        with wsgi_lock.locked(self._lock, "a look at its branches"), tempfile.TemporaryFile() as listed:
            self._ask("ls-remote", *only, self.url, timeout=RESOLVE_TIMEOUT, stdout=listed)
            listed.seek(0)
            lines = listed.read().decode(errors="replace").splitlines()
        return {name: commit for commit, _, name in (line.partition("\t") for line in lines)}

    def _fetch(self, commit, revision):
        for folder in (LIB, f"{LIB}/git"):
            wsgi_host.folder(folder, 0o755 if folder == LIB else 0o700)
        if not os.path.isdir(self.mirror):
            self._run("init", "--quiet", "--bare", "--template=", *_format(commit), self.mirror)
        if self._holds(commit):
            return
        names = ["refs/heads/*", "refs/tags/*", *([revision] if _apart(revision) else [])]
        fetch = [f"--git-dir={self.mirror}", "fetch", "--quiet", "--no-tags", "--prune", "--force", self.url]
        try:
            self._ask(*fetch, *(f"{name}:{name}" for name in names))
        except Refused:
            # Fails with a Problem where the mirror is what is wrong.
            self._run(f"--git-dir={self.mirror}", "fsck", "--connectivity-only", "--no-dangling", "--no-progress")
            raise
        if not self._holds(commit):
            try:
                # Servers may give away what no branch leads to.
                self._ask(*fetch, commit)
            except Refused as error:
                raise Refused("source", f"{commit} is no commit in {self.url}: {error}") from error

    def _holds(self, commit):
        with contextlib.suppress(Problem):
            self._run(f"--git-dir={self.mirror}", "cat-file", "-e", f"{commit}^{{commit}}")
            return True
        return False

    def _export(self, commit, folder):
        self._run("init", "--quiet", "--template=", *_format(commit), folder)
        # Nothing is copied, and `git clone` would have to be allowed to read local repositories.
        wsgi_host.write(f"{folder}/.git/objects/info/alternates", f"{self.mirror}/objects\n", 0o600)
        inside = ["-C", folder]
        # What relative URLs of submodules are relative to.
        self._run(*inside, "config", "remote.origin.url", self.url)
        self._run(*inside, "checkout", "--quiet", "--force", "--detach", commit)
        if os.path.lexists(f"{folder}/.gitmodules"):
            self._ask(*inside, "submodule", "--quiet", "update", "--init", "--recursive", "--force")
        for parent, folders, files in os.walk(folder):
            if ".git" in folders + files:
                wsgi_host.remove(f"{parent}/.git")
            folders[:] = [name for name in folders if name != ".git"]

    def _ask(self, *words, **options):
        """Run git where it speaks to the repository: what fails then is told by what it says."""
        try:
            self._run(*words, **options)
        except Problem as error:
            for pattern, key, sentence in REASONS:
                if re.search(pattern, str(error)):
                    told = sentence.format(host=self.host, keyscan=self._keyscan)
                    raise Refused(key, f"{told}: {error}") from error

    def _run(self, *words, **options):
        verb = next(word for word in words if not word.startswith(("-", "/")))
        with self._private() as home:
            environment = self._environment(home)
            secrets = self._credentials or ()
            wsgi_step.run(["git", *words], self._lock, what=f"git {verb}", env=environment, secrets=secrets, **options)

    @contextlib.contextmanager
    def _private(self):
        """A home for git alone, in memory, which only root may enter, for one command. What a killed
        run left of it goes with the next one."""
        home = f"{RUN}/{self._lock}"
        wsgi_host.remove(home)
        wsgi_host.folder(home, 0o700)
        try:
            wsgi_host.write(f"{home}/.gitconfig", self._configuration(), 0o600)
            for name, text in (("key", self._deploy_key), ("known_hosts", self._known_hosts)):
                if text:
                    # OpenSSH reads no key whose last line has no end.
                    wsgi_host.write(f"{home}/{name}", text.strip() + "\n", 0o600)
            yield home
        finally:
            wsgi_host.remove(home)

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
            # Also for submodules; ext:: would be a command.
            "GIT_ALLOW_PROTOCOL": "https:ssh:file" if self.scheme == "file" else "https:ssh",
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
    if shutil.which("git", path=wsgi_host.PATH) is None:
        raise Refused("source", "git is not on this machine; state.apply wsgi installs it")
