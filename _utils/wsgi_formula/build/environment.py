"""
The virtual environments of apps. Each is built once and never edited.

An environment's id is a hash of what it is made from, and releases share it, so that a change of code alone installs
nothing. A copy per release would cost disk space and a run of the installer each time.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pwd import struct_passwd
from typing import Protocol, TypeVar

from .. import files, step
from ..errors import WsgiError
from ..host import Host
from ..paths import PATH, SRV
from ..pillar.app import App
from ..pillar.hazards import package_name
from ..pillar.servers import describe_vulnerabilities
from ..redact import passwords_of, without_credentials
from ..untrusted import Tree
from . import ownership
from .installers import UV, Pip, Uv
from .requirements import EDITABLE, Requirements
from .users import take_over

# The file that marks an environment as complete, written last.
COMPLETE = ".complete"

# Free space below which a disk counts as full: venv does not say why its pip could not be installed.
FULL = 2**20  # bytes


class Environment:
    """
    An app's virtual environment, built or not.

    name : str
        The app.
    id : str
        The hash of what the environment is made from, perhaps with ``-2``, ``-3``, … after it: see ``undamaged``.
    """

    def __init__(self, name: str, id: str) -> None:
        self.id = id
        self.path = f"{SRV}/{name}/environments/{id}"

    def built(self, gid: int) -> bool:
        """Return whether the environment is whole and a group may read it."""
        return self.whole() and files.group_of(f"{self.path}/{COMPLETE}") == gid

    def whole(self) -> bool:
        """Return whether the environment was finished and only root may write to its folder."""
        return ownership.is_roots(self.path) and self.finished()

    def finished(self) -> bool:
        """Return whether the environment was finished once; it may be damaged by now."""
        try:
            return os.lstat(f"{self.path}/{COMPLETE}").st_uid == 0
        except (FileNotFoundError, NotADirectoryError):
            return False

    def installed_version(self, requirement: str) -> str | None:
        """
        Return the version of a package in the environment, or None where it is not installed.

        requirement : str
            The package's name; extras and a version may follow.
        """
        name = package_name(requirement)
        lib = os.path.join(self.path, "lib")
        for python in files.list_dir(lib):
            for entry in files.list_dir(os.path.join(lib, python, "site-packages")):
                stem, suffix = os.path.splitext(entry)
                package, _, version = stem.partition("-")
                if suffix in (".dist-info", ".egg-info") and package_name(package) == name:
                    return version.partition("-py")[0]
        return None


class Build(Protocol):
    """An environment or a release."""

    def whole(self) -> bool: ...

    def finished(self) -> bool: ...


AnyBuild = TypeVar("AnyBuild", bound=Build)


def undamaged(hash: str, folder: str, make: Callable[[str], AnyBuild]) -> AnyBuild:
    """
    Return the build of a hash that is whole, or else the one to be built.

    hash : str
        The hash of what it is made from.
    folder : str
        The folder of the builds. Their ids are the hash, or the hash with ``-2``, ``-3``, … after it.
    make : callable
        Takes an id and returns its ``Environment`` or ``Release``.

    A damaged build is not built again in its place but under the next number, as the live generation may still run from
    it.
    """
    for id in sorted(files.list_dir(folder)):
        if id.partition("-")[0] == hash and make(id).whole():
            return make(id)
    build, number = make(hash), 1
    while build.finished():
        number += 1
        build = make(f"{hash}-{number}")
    return build


class Recipe:
    """
    The recipe of an app's environment: what it is made from, and how.

    host : Host
    name : str
        The app.
    app : App
        Its settings, as ``desired_app`` returns them.
    code : str
        The folder that its code was fetched into.
    required : list of str
        The requirements of its source: see ``Source.requirements``.

    Raises ``WsgiError`` where the code does not have the files that ``requirements`` and ``wheels`` name.
    """

    def __init__(self, host: Host, name: str, app: App, code: str, required: list[str]) -> None:
        self.host = host
        self.name = name
        self.app = app
        self.code = code
        self.python = interpreter(host, app)
        self.requirements = Requirements(name, app, code, required)
        # The content of a folder on the machine does not count: the id has to be the same on every host.
        wheels = app["wheels"] or "/"
        sums = None if wheels.startswith("/") else Tree(code).sums(wheels)
        if sums is None and not wheels.startswith("/"):
            raise WsgiError(
                f"wsgi:apps:{name}:wheels: {wheels!r} is not a folder in {without_credentials(app['source'])}, "
                "or a link that leads out of it"
            )
        hash = files.digest(_other_inputs(host, app), self.requirements.identity, sums)
        self.environment = undamaged(hash, f"{SRV}/{name}/environments", lambda id: Environment(name, id))

    def build(self, builder: struct_passwd, gid: int) -> None:
        """
        Build the environment, unless it is built already.

        builder : pwd.struct_passwd
            The user that runs the installer.
        gid : int
            The group of the app's user, which may read the result.

        Raises ``WsgiError`` with the last lines of a failed step's output, and then removes the environment.
        """
        if self.environment.built(gid):
            return
        path = self.environment.path
        if self.environment.whole():
            ownership.take_tree(path, 0, gid)
            return
        # The installer's input, which may have credentials in it. It is beside the environment, since uv makes one only
        # in an empty folder.
        inputs = f"{path}.given"
        for folder, mode in ((path, 0o750), (inputs, 0o700)):
            files.remove(folder)
            files.ensure_dir(folder, mode)
        if self.requirements.lines:
            # In a file, as a command line would show their credentials to every user.
            text = "\n".join(self.requirements.lines) + "\n"
            files.write(f"{inputs}/requirements.txt", text, 0o600, builder.pw_uid, builder.pw_gid)
        # The installer runs code of packages, so never as root. From here on root writes to neither folder.
        for folder in (path, inputs):
            os.chown(folder, builder.pw_uid, builder.pw_gid)
        try:
            self._install(inputs, builder)
            self._check_vulnerable()
            # Without a stamp that the installer may have made.
            take_over(builder, path, gid, without=[COMPLETE])
        except BaseException as error:
            full = shutil.disk_usage(path).free < FULL
            step.kill_user_processes(builder)
            files.remove(path)
            if full and isinstance(error, WsgiError):
                raise WsgiError(f"No space left on device, below {SRV}/{self.name}: {error}") from None
            raise
        finally:
            files.remove(inputs)
        # Even after a power cut, the stamp is on the disk only if the environment is.
        os.sync()
        files.write(f"{path}/{COMPLETE}", "", 0o640, 0, gid)

    def _install(self, inputs: str, builder: struct_passwd) -> None:
        path, requirements = self.environment.path, self.requirements
        installer = self._installer()
        env = {**installer.variables, "HOME": builder.pw_dir, "XDG_CACHE_HOME": f"{builder.pw_dir}/.cache"}
        secrets = requirements.secrets | passwords_of([str(self.app["index"]), *self.app["extra_index"]])

        def run(key: str, cwd: str, *command: str) -> None:
            label = f"wsgi:apps:{self.name}:{key}: {' '.join(command)}"
            uid, gid = builder.pw_uid, builder.pw_gid
            step.run(command, self.name, label=label, uid=uid, gid=gid, cwd=cwd, env=env, secrets=secrets)

        run("python", "/", *installer.make(self.python, path))
        install = [*installer.install(path), *self._sources()]
        cwd = self.code
        if requirements.local:
            # A copy, as a build leaves files in its folder.
            cwd = f"{inputs}/code"
            run("requirements", "/", "cp", "--archive", f"{self.code}/.", cwd)
        if requirements.editable:
            # An editable installation would link to this release's code, and releases share the environment.
            run("requirements", cwd, "sed", "-i", "-E", f"s/{EDITABLE}//", "--", *sorted(requirements.editable))
        files = []
        if requirements.lines:
            files += ["-r", f"{inputs}/requirements.txt"]
        if requirements.lock == "uv.lock" and isinstance(installer, Uv):
            cwd = os.path.join(cwd, os.path.dirname(requirements.file))
            run("requirements", cwd, *installer.export(self.python), "--output-file", f"{inputs}/exported.txt")
            files += ["-r", f"{inputs}/exported.txt"]
        elif requirements.file:
            files += ["-r", requirements.file]
        if files:
            run("requirements", cwd, *install, *installer.hashed(requirements), *files)
        # In a command of its own: an installer that checks hashes demands one of each requirement.
        missing = [
            requirement
            for requirement in self.app.server_requirements
            if not self.environment.installed_version(requirement)
        ]
        if missing:
            run("server", "/", *install, *missing)

    def _installer(self) -> Pip | Uv:
        app, key = self.app, f"wsgi:apps:{self.name}"
        if not shutil.which(self.python, path=PATH):
            present = ", ".join(installed_interpreters()) or "none"
            raise WsgiError(
                f"{key}:python: {app['python']!r} is not installed (installed: {present}); install it first"
            )
        uv = UV if os.path.exists(UV) else shutil.which("uv", path=PATH)
        if app["installer"] == "uv" and not uv:
            raise WsgiError(f"{key}:installer: 'uv' is not installed; state.apply wsgi.uv installs it")
        if app["installer"] != "pip" and uv:
            return Uv(uv, app["index"], app["extra_index"])
        if self.requirements.lock:
            raise WsgiError(f"{key}:requirements: only uv can install {app['requirements']!r}; set installer: uv")
        return Pip(app["index"], app["extra_index"])

    def _sources(self) -> list[str]:
        """Return the options, besides the indexes, that say where both installers look for packages."""
        words = ["--no-index"] if self.app["index"] is False else []
        if self.app["wheels"]:
            folder = os.path.join(self.code, self.app["wheels"])
            if self.app["wheels"].startswith("/") and not os.path.isdir(folder):
                raise WsgiError(f"wsgi:apps:{self.name}:wheels: the folder {self.app['wheels']!r} does not exist")
            words += ["--find-links", folder]
        return words

    def _check_vulnerable(self) -> None:
        """Raise ``WsgiError`` where the app's requirements have brought a server with known vulnerabilities."""
        if self.app["allow_vulnerable"] or not self.app.server_requirements:
            return
        version = self.environment.installed_version(self.app.row["package"])
        message = describe_vulnerabilities(self.app["server"], version, self.app.row) if version else ""
        if message:
            raise WsgiError(f"wsgi:apps:{self.name}:requirements: {message}")


def environment_inputs(host: Host, app: App) -> list:
    """Return the settings of an app that decide its environment, besides its code, as a list for JSON."""
    requirements = app["requirements"]
    if not isinstance(requirements, str):
        requirements = [without_credentials(line) for line in requirements]
    return [requirements, *_other_inputs(host, app)]


def _other_inputs(host: Host, app: App) -> list:
    """Return all inputs but the requirements. The installer is none, as both build the same environment."""
    return [
        interpreter(host, app),
        app["user"],
        app.server_requirements,
        app["wheels"],
        without_credentials(str(app["index"])),
        [without_credentials(url) for url in app["extra_index"]],
    ]


class Interpreters:
    """The paths of the interpreters that one run has found, by their names: see ``Host.shared``."""

    def __init__(self, host: Host) -> None:
        self.paths: dict[str, str] = {}


def interpreter(host: Host, app: App) -> str:
    """
    Return the path of an app's interpreter; its ``python`` as it is where that is not installed yet.

    Links are resolved: /usr/bin/python3 is one, and another interpreter needs another environment.
    """
    paths, name = host.once(Interpreters).paths, app["python"]
    if name not in paths:
        found = shutil.which(name, path=PATH)
        if not found:
            return name
        paths[name] = os.path.realpath(found)
    return paths[name]


def installed_interpreters() -> list[str]:
    """Return the names of the interpreters on this machine, sorted."""
    found = {name for folder in PATH.split(":") for name in files.list_dir(folder)}
    return sorted(name for name in found if re.fullmatch(r"(python|pypy)3(\.\d+)?", name))
