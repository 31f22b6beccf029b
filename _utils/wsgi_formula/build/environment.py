"""
Virtual environments, each made once of what it holds and never edited: those of the apps, which
releases share, and those of the formula's own programs.

A shared environment is keyed by its content, so that a change of code alone installs nothing. A
copy per release, of cached wheels, would cost the disk as often, and the installer a run each time.
"""

import os
import re
import shutil

from .. import files, step
from ..errors import WsgiError
from ..paths import PATH, SRV
from ..pillar.hazards import package_name
from ..pillar.servers import requirement_of, vulnerabilities, vulnerable
from ..redact import passwords_of, without_credentials
from ..untrusted import Tree
from . import ownership
from .installers import UV, Pip, Uv
from .requirements import EDITABLE, Requirements
from .users import take_over

# What a finished environment carries, written last.
COMPLETE = ".complete"

# A disk with less space is full. venv does not tell why its pip could not be installed.
FULL = 2**20  # bytes


class Environment:
    """
    An app's virtual environment, there or not.

    name, id : str
        The app; the hash of what it is made from.
    """

    def __init__(self, name, id):
        self.id = id
        self.path = f"{SRV}/{name}/environments/{id}"

    def built(self, gid):
        """Whether it is on the machine, whole, and readable by a group."""
        return self.whole() and files.group_of(f"{self.path}/{COMPLETE}") == gid

    def whole(self):
        """Return whether the environment was finished and its folder is still root's alone to write to; any group will do."""
        return ownership.is_roots(self.path) and self.finished()

    def finished(self):
        """Return whether the environment was finished once; it may be damaged by now."""
        try:
            return os.lstat(f"{self.path}/{COMPLETE}").st_uid == 0
        except (FileNotFoundError, NotADirectoryError):
            return False

    def installed(self, requirement):
        """
        The version of a package in the environment; the app's own requirements may have brought
        it, and theirs wins.

        requirement : str
            The package's name; extras and a version may follow.

        Returns a str, or None where it is not there.
        """
        name = package_name(requirement)
        lib = os.path.join(self.path, "lib")
        for python in files.list_dir(lib):
            for found in files.list_dir(os.path.join(lib, python, "site-packages")):
                stem, suffix = os.path.splitext(found)
                package, _, version = stem.partition("-")
                if suffix in (".dist-info", ".egg-info") and package_name(package) == name:
                    return version.partition("-py")[0]
        return None


def undamaged(id, folder, make):
    """
    Find what is whole of one hash, or what is to be built instead.

    id : str
        The hash.
    folder : str
        Where the ids of that hash are: it, and those with ``-2``, ``-3``, … after it.
    make : callable
        Makes something of such an id, with the methods ``whole`` and ``finished``.

    Returns what ``make`` does: of what is finished and not whole any more, another one of the next number, as the
    live generation may still run from what is left of it.
    """
    for other in sorted(files.list_dir(folder)):
        if other.partition("-")[0] == id and make(other).whole():
            return make(other)
    found, count = make(id), 1
    while found.finished():
        count += 1
        found = make(f"{id}-{count}")
    return found


class Recipe:
    """
    What an app's environment is made from, and how.

    host : Host
    name : str
        The app.
    app : dict
        Its settings, as ``desired_app`` gives them.
    code : str
        The folder that its code was fetched into.
    required : list of str
        What it must have for its source.
    """

    def __init__(self, host, name, app, code, required):
        self.host = host
        self.name = name
        self.app = app
        self.code = code
        self.python = interpreter(host, app)
        self.requirements = Requirements(name, app, code, required)
        # Of a folder on the machine its path has to do: the id is the same on every host.
        wheels = app["wheels"] or "/"
        sums = None if wheels.startswith("/") else Tree(code).sums(wheels)
        if sums is None and not wheels.startswith("/"):
            raise WsgiError(
                f"wsgi:apps:{name}:wheels: {wheels!r} is not a folder in {without_credentials(app['source'])}, "
                "or a link that leads out of it"
            )
        id = files.digest(_surroundings(host, app), self.requirements.identity, sums)
        self.environment = undamaged(id, f"{SRV}/{name}/environments", lambda each: Environment(name, each))

    def build(self, builder, gid):
        """
        Make the environment where it is not there yet.

        builder : pwd.struct_passwd
            The user that runs the installer.
        gid : int
            The group of the app's user, who may read but not write the result.

        Raises ``WsgiError`` with the last lines of what a failed step printed; nothing is left that
        could be taken for finished.
        """
        if self.environment.built(gid):
            return
        path = self.environment.path
        if self.environment.whole():
            ownership.take_tree(path, 0, gid)
            return
        # What the installer is given, credentials among it. Beside the environment, since uv
        # makes one in an empty folder only.
        given = f"{path}.given"
        for folder, mode in ((path, 0o750), (given, 0o700)):
            files.remove(folder)
            files.ensure_dir(folder, mode)
        if self.requirements.lines:
            # There may be credentials in them: not for the command line.
            text = "\n".join(self.requirements.lines) + "\n"
            files.write(f"{given}/requirements.txt", text, 0o600, builder.pw_uid, builder.pw_gid)
        # The installer runs code of the packages it installs: never as root. From here on root writes to neither.
        for folder in (path, given):
            os.chown(folder, builder.pw_uid, builder.pw_gid)
        try:
            self._install(given, builder)
            self._check_installed()
            # The stamp is removed where the installer made one.
            take_over(builder, path, gid, without=[COMPLETE])
        except BaseException as error:
            full = shutil.disk_usage(path).free < FULL
            step.kill_user_processes(builder)
            files.remove(path)
            if full and isinstance(error, WsgiError):
                raise WsgiError(f"No space left on device, below {SRV}/{self.name}: {error}") from None
            raise
        finally:
            files.remove(given)
        # After a power cut, no stamp may be on the disk that what it stands for is not.
        os.sync()
        files.write(f"{path}/{COMPLETE}", "", 0o640, 0, gid)

    def _install(self, given, builder):
        path, requirements = self.environment.path, self.requirements
        installer = self._installer()
        env = {**installer.variables, "HOME": builder.pw_dir, "XDG_CACHE_HOME": f"{builder.pw_dir}/.cache"}
        account = {"uid": builder.pw_uid, "gid": builder.pw_gid}
        secrets = requirements.secrets | passwords_of([str(self.app["index"]), *self.app["extra_index"]])

        def run(key, cwd, *command):
            what = f"wsgi:apps:{self.name}:{key}: {' '.join(command)}"
            step.run(command, self.name, what=what, cwd=cwd, env=env, secrets=secrets, **account)

        run("python", "/", *installer.make(self.python, path))
        install = [*installer.install(path), *self._sources()]
        cwd = self.code
        if requirements.local:
            # A build in the code would leave its traces there.
            cwd = f"{given}/code"
            run("requirements", "/", "cp", "--archive", f"{self.code}/.", cwd)
        if requirements.editable:
            # An editable installation would lead out of the environment, which releases share.
            run("requirements", cwd, "sed", "-i", "-E", f"s/{EDITABLE}//", "--", *sorted(requirements.editable))
        files = []
        if requirements.lines:
            files += ["-r", f"{given}/requirements.txt"]
        if requirements.lock == "uv.lock":
            cwd = os.path.join(cwd, os.path.dirname(requirements.file))
            run("requirements", cwd, *installer.export(self.python), "--output-file", f"{given}/exported.txt")
            files += ["-r", f"{given}/exported.txt"]
        elif requirements.file:
            files += ["-r", requirements.file]
        if files:
            run("requirements", cwd, *install, *installer.hashed(requirements), *files)
        # On its own: requirements with hashes bear none without.
        wanted = [each for each in self._server_requirements() if not self.environment.installed(each)]
        if wanted:
            run("server", "/", *install, *wanted)

    def _installer(self):
        app, key = self.app, f"wsgi:apps:{self.name}"
        if not shutil.which(self.python, path=PATH):
            there = ", ".join(installed_interpreters()) or "none at all"
            raise WsgiError(f"{key}:python: {app['python']!r} is not on this machine ({there}); install it first")
        uv = UV if os.path.exists(UV) else shutil.which("uv", path=PATH)
        if app["installer"] == "uv" and not uv:
            raise WsgiError(f"{key}:installer: 'uv' is not on this machine; state.apply wsgi.uv installs it")
        if app["installer"] != "pip" and uv:
            return Uv(uv, app["index"], app["extra_index"])
        if self.requirements.lock:
            raise WsgiError(f"{key}:requirements: {app['requirements']!r} is for uv to install: say installer: uv")
        return Pip(app["index"], app["extra_index"])

    def _sources(self):
        """Where packages are looked for, as both installers take it; the indexes apart."""
        words = ["--no-index"] if self.app["index"] is False else []
        if self.app["wheels"]:
            folder = os.path.join(self.code, self.app["wheels"])
            if self.app["wheels"].startswith("/") and not os.path.isdir(folder):
                raise WsgiError(f"wsgi:apps:{self.name}:wheels: {self.app['wheels']!r} is not a folder that is there")
            words += ["--find-links", folder]
        return words

    def _check_installed(self):
        """A server with known holes may have come with the app's requirements."""
        row = self.host.servers[self.app["server"]]
        version = self.environment.installed(row["package"]) if self._server_requirements() else None
        found = vulnerabilities(row, version) if version else []
        if found and not self.app["allow_vulnerable"]:
            sentence = vulnerable(self.app["server"], version, found, row)
            raise WsgiError(f"wsgi:apps:{self.name}:requirements: {sentence}")

    def _server_requirements(self):
        return requirement_of(self.app, self.host.servers)


def environment_inputs(host, app):
    """What of an app's settings decides its environment, whatever its code says: JSON-able."""
    requirements = app["requirements"]
    if not isinstance(requirements, str):
        requirements = [without_credentials(line) for line in requirements]
    return [requirements, *_surroundings(host, app)]


def _surroundings(host, app):
    """What else than its requirements. Not the installer: both make the same of it."""
    return [
        interpreter(host, app),
        app["user"],
        requirement_of(app, host.servers),
        app["wheels"],
        without_credentials(str(app["index"])),
        [without_credentials(url) for url in app["extra_index"]],
    ]


def interpreter(host, app):
    """The path of an app's interpreter: /usr/bin/python3 is a link, and a new one needs a new environment."""
    key = "interpreter", app["python"]
    if key not in host.resolved:
        found = shutil.which(app["python"], path=PATH)
        if not found:  # yet
            return app["python"]
        host.resolved[key] = os.path.realpath(found)
    return host.resolved[key]


def installed_interpreters():
    """The names of the interpreters that there are on this machine, a sorted list."""
    found = {name for folder in PATH.split(":") for name in files.list_dir(folder)}
    return sorted(name for name in found if re.fullmatch(r"(python|pypy)3(\.\d+)?", name))
