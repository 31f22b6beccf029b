"""
Releases: an app's code and the virtual environment it runs in, built once, never edited.

``/srv/wsgi/<app>/releases/<release>/`` holds ``code`` and ``environment``, the latter a link
into ``/srv/wsgi/<app>/environments``, so that a change of code alone installs nothing. Both
ids are hashes of what they are made from, and the same on every host.
"""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess

import wsgi_host
import wsgi_settings
from wsgi_host import SRV, Problem

# What a finished environment or release carries, written last.
COMPLETE = ".complete"
# Lines of a requirements file that point at other files of the source.
POINTS_ELSEWHERE = ("-r", "-c", "-e", "--requirement", "--constraint", "--editable", ".", "file:")
BUILD_TIMEOUT = 1800  # seconds, for one step of a build


def digest(*parts):
    """A short id: ten hexadecimal digits of the SHA-256 of some JSON-able values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:10]


class Release:
    """
    The release that an app's settings ask for.

    host : wsgi_host.Host
    name : str
        The app.
    app : dict
        Its settings, as ``wsgi_settings.Settings.apps`` holds them.
    """

    def __init__(self, host, name, app):
        self.host = host
        self.name = name
        self.app = app
        self.files, self.sums = host.source_files(app["source"])
        self.python = self._python()
        self.environment_id = digest(self.python, app["user"], self._requirements(), self._server_requirements())
        self.id = digest(self.sums, self.environment_id)
        self.path = f"{SRV}/{name}/releases/{self.id}"
        self.code = f"{self.path}/code"
        self.environment = f"{SRV}/{name}/environments/{self.environment_id}"

    def built(self, gid):
        """Whether it is on the machine, whole, and readable by a group."""
        return all(_group(f"{path}/{COMPLETE}") == gid for path in (self.path, self.environment))

    def build(self, uid, gid):
        """
        Build what is not there yet.

        uid, gid : int
            The app's user, who runs the installer, and who may read but not write the result.

        Raises ``Problem`` with the last lines of what a failed step printed; nothing is left
        that could be taken for finished.
        """
        for folder in (SRV, f"{SRV}/{self.name}"):
            wsgi_host.folder(folder, 0o755)
        for folder in ("environments", "releases"):
            wsgi_host.folder(f"{SRV}/{self.name}/{folder}", 0o755)
        self._build_code(gid)
        finished = _group(f"{self.environment}/{COMPLETE}")
        if finished is None:
            self._build_environment(uid, gid)
        elif finished != gid:
            wsgi_host.own(self.environment, 0, gid)
        wsgi_host.write(f"{self.path}/{COMPLETE}", json.dumps(self.sums, indent=1) + "\n", 0o640, 0, gid)

    def _build_code(self, gid):
        wsgi_host.remove(self.path)
        wsgi_host.folder(self.path, 0o750, 0, gid)
        for inner, path in self.files.items():
            target = f"{self.code}/{inner}"
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copyfile(path, target)
        # The app can't write bytecode beside its code.
        self._run([self.python, "-I", "-m", "compileall", "-q", "."], 0, 0, check=False)
        wsgi_host.own(self.path, 0, gid)
        os.symlink(f"../../environments/{self.environment_id}", f"{self.path}/environment")

    def _build_environment(self, uid, gid):
        wsgi_host.remove(self.environment)
        # The installer runs code of the packages it installs: as the app's user, never as root.
        wsgi_host.folder(self.environment, 0o750, uid, gid)
        try:
            self._run([self.python, "-m", "venv", self.environment], uid, gid)
            pip = [f"{self.environment}/bin/python", "-m", "pip", "install", "--quiet", "--no-input"]
            pip += ["--disable-pip-version-check"]
            requirements = self.app["requirements"]
            if isinstance(requirements, str):
                self._run([*pip, "-r", requirements], uid, gid)
            elif requirements:
                self._run([*pip, *requirements], uid, gid)
            wanted = [package for package in self._server_requirements() if not self.installed(package)]
            if wanted:
                self._run([*pip, *wanted], uid, gid)
            self._check_installed()
        except Problem:
            wsgi_host.remove(self.environment)
            raise
        wsgi_host.own(self.environment, 0, gid)
        wsgi_host.write(f"{self.environment}/{COMPLETE}", "", 0o640, 0, gid)

    def _run(self, command, uid, gid, check=True):
        cache = f"{wsgi_host.LIB}/home/{self.name}/.cache"
        try:
            _execute(
                command,
                check,
                cwd=self.code,
                user=uid,
                group=gid,
                extra_groups=[],
                env={**_environment(), "HOME": os.path.dirname(cache), "XDG_CACHE_HOME": cache},
            )
        except FileNotFoundError as error:
            raise Problem(f"{command[0]} is not there: wsgi:apps:{self.name}:python") from error

    def installed(self, requirement):
        """
        The version of a package in the environment; the app's own requirements may have brought
        it, and theirs wins.

        requirement : str
            The package's name; extras and a version may follow.

        Returns a str, or None where it is not there.
        """
        name = wsgi_settings.package_name(requirement)
        lib = os.path.join(self.environment, "lib")
        for python in wsgi_host.listdir(lib):
            for found in wsgi_host.listdir(os.path.join(lib, python, "site-packages")):
                stem, suffix = os.path.splitext(found)
                package, _, version = stem.partition("-")
                if suffix in (".dist-info", ".egg-info") and wsgi_settings.package_name(package) == name:
                    return version.partition("-py")[0]
        return None

    def _check_installed(self):
        """A server with known holes may have come with the app's requirements."""
        row = self.host.servers[self.app["server"]]
        version = self.installed(row["package"]) if self._server_requirements() else None
        found = wsgi_settings.vulnerabilities(row, version) if version else []
        if found and not self.app["allow_vulnerable"]:
            sentence = wsgi_settings.vulnerable(self.app["server"], version, found, row)
            raise Problem(f"wsgi:apps:{self.name}:requirements: {sentence}")

    def _python(self):
        found = shutil.which(self.app["python"], path=wsgi_host.PATH)
        # /usr/bin/python3 is a link to python3.11: a new one needs a new environment.
        return os.path.realpath(found) if found else self.app["python"]

    def requirement_lines(self):
        """
        What the app requires.

        Returns a list of str. Raises ``Problem`` where the file that should say it is not there.
        """
        requirements = self.app["requirements"]
        if not isinstance(requirements, str):
            return requirements
        if requirements not in self.files:
            raise Problem(f"wsgi:apps:{self.name}:requirements: {requirements!r} is not in {self.app['source']}")
        return (wsgi_host.read(self.files[requirements]) or "").splitlines()

    def _requirements(self):
        """What the environment is made from."""
        lines = self.requirement_lines()
        if any(line.strip().startswith(POINTS_ELSEWHERE) or "@ file:" in line for line in lines):
            return self.sums
        return lines

    def _server_requirements(self):
        return wsgi_settings.requirement_of(self.app, self.host.servers)

    def prune(self, in_use):
        """
        Remove old releases, and the environments that none of the kept ones uses.

        in_use : set of str
            The ids of releases that must stay, whatever their age. Of the others the newest
            stay, ``keep_releases`` in all.
        """
        releases = f"{SRV}/{self.name}/releases"
        by_age = sorted(
            wsgi_host.listdir(releases),
            key=lambda release: os.lstat(f"{releases}/{release}").st_mtime,
            reverse=True,
        )
        kept = set(by_age[: self.app["keep_releases"]]) | in_use
        for release in by_age:
            if release not in kept:
                wsgi_host.remove(f"{releases}/{release}")
        used = {
            os.path.basename(os.readlink(f"{releases}/{release}/environment"))
            for release in kept
            if os.path.islink(f"{releases}/{release}/environment")
        }
        for environment in wsgi_host.listdir(f"{SRV}/{self.name}/environments"):
            if environment not in used:
                wsgi_host.remove(f"{SRV}/{self.name}/environments/{environment}")


def warnings(host):
    """
    What the apps' settings allow and their requirements make dangerous.

    host : wsgi_host.Host

    Returns a list of sentences, each beginning with the pillar key it is about.
    """
    found = []
    for name, app in host.settings.apps.items():
        if app["threads"] > 1 or app["preload"]:
            with contextlib.suppress(Problem):  # the release's state tells of it
                lines = Release(host, name, app).requirement_lines()
                found += wsgi_settings.warnings(f"wsgi:apps:{name}", app, lines)
    return found


class Tool:
    """
    A program of the formula's own, in a virtual environment that root makes and runs it from.

    path : str
        The environment's folder.
    requirements : list of str
        What pip installs, each with its version.
    python : str
        The interpreter's path.
    """

    def __init__(self, path, requirements, python):
        self.path = path
        self.requirements = requirements
        self.python = python
        self._stamp = json.dumps([os.path.realpath(python), requirements]) + "\n"

    def built(self):
        """Whether it is there, whole."""
        return wsgi_host.read(f"{self.path}/{COMPLETE}") == self._stamp

    def build(self):
        """Install it over what is there. Raises ``Problem`` with what a failed step printed last."""
        wsgi_host.remove(f"{self.path}/{COMPLETE}")
        os.makedirs(self.path, mode=0o755, exist_ok=True)
        pip = [f"{self.path}/bin/python", "-m", "pip", "install", "--quiet", "--no-input"]
        make = [self.python, "-m", "venv"]
        if os.path.basename(self.python).startswith("python2"):
            make = ["virtualenv", "--quiet", "--python", self.python]
        for command in (
            [*make, self.path],
            [*pip, "--disable-pip-version-check", "--no-cache-dir", "--no-deps", *self.requirements],
        ):
            _execute(command, cwd="/", env=_environment())
        wsgi_host.write(f"{self.path}/{COMPLETE}", self._stamp, 0o644)


def tail(text, lines=15):
    """The last lines of a text, indented, for a comment."""
    return "\n".join("  " + line for line in text.rstrip().splitlines()[-lines:])


def _group(path):
    try:
        return os.lstat(path).st_gid
    except FileNotFoundError:
        return None


def _environment():
    """What a build may see of Salt's own environment: how to reach an index, and no more."""
    passed = ("PIP_", "SSL_CERT_", "REQUESTS_CA_", "HTTP_", "HTTPS_", "NO_PROXY", "ALL_PROXY")
    return {
        "PATH": wsgi_host.PATH,
        "LANG": "C.UTF-8",
        **{name: value for name, value in os.environ.items() if name.upper().startswith(passed)},
    }


def _execute(command, check=True, **process):
    """Run a step of a build; a ``Problem`` with what it printed last where it fails."""
    words = " ".join(command)
    try:
        done = subprocess.run(
            command,
            umask=0o022,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=BUILD_TIMEOUT,
            text=True,
            errors="replace",
            check=False,
            **process,
        )
    except subprocess.TimeoutExpired as error:
        raise Problem(f"{words} did not end within {BUILD_TIMEOUT} s") from error
    if check and done.returncode:
        raise Problem(f"{words} failed:\n{tail(done.stdout)}")
