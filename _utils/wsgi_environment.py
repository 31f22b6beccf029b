"""
Virtual environments, each made once of what it holds and never edited: those of the apps, which
releases share, and those of the formula's own programs.
"""

import json
import os
import shutil

import wsgi_host
import wsgi_schema
import wsgi_settings
import wsgi_step
from wsgi_host import SRV, Problem

# What a finished environment carries, written last.
COMPLETE = ".complete"
# Lines of a requirements file that point at other files of the source.
POINTS_ELSEWHERE = ("-r", "-c", "-e", "--requirement", "--constraint", "--editable", ".", "file:")


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
        return wsgi_host.group(f"{self.path}/{COMPLETE}") == gid

    def installed(self, requirement):
        """
        The version of a package in the environment; the app's own requirements may have brought
        it, and theirs wins.

        requirement : str
            The package's name; extras and a version may follow.

        Returns a str, or None where it is not there.
        """
        name = wsgi_settings.package_name(requirement)
        lib = os.path.join(self.path, "lib")
        for python in wsgi_host.listdir(lib):
            for found in wsgi_host.listdir(os.path.join(lib, python, "site-packages")):
                stem, suffix = os.path.splitext(found)
                package, _, version = stem.partition("-")
                if suffix in (".dist-info", ".egg-info") and wsgi_settings.package_name(package) == name:
                    return version.partition("-py")[0]
        return None


class Recipe:
    """
    What an app's environment is made from.

    host : wsgi_host.Host
    name : str
        The app.
    app : dict
        Its settings, as ``wsgi_wanted.app`` gives them.
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
        self.required = required
        self.python = interpreter(app)
        self.environment = Environment(
            name, wsgi_host.digest(self.python, app["user"], self._made_of(), self._server_requirements())
        )

    @property
    def lines(self):
        """What the app requires, a list of str; ``Problem`` where the file that says it is not there."""
        requirements = self.app["requirements"]
        if not isinstance(requirements, str):
            return [*self.required, *requirements]
        text = wsgi_host.read(f"{self.code}/{requirements}")
        if text is None:
            raise Problem(
                f"wsgi:apps:{self.name}:requirements: {requirements!r} is not in "
                f"{wsgi_schema.without_credentials(self.app['source'])}"
            )
        return [*self.required, *text.splitlines()]

    def build(self, uid, gid):
        """
        Make the environment where it is not there yet.

        uid, gid : int
            The app's user, who runs the installer, and who may read but not write the result.

        Raises ``Problem`` with the last lines of what a failed step printed; nothing is left that
        could be taken for finished.
        """
        if self.environment.built(gid):
            return
        path = self.environment.path
        if wsgi_host.group(f"{path}/{COMPLETE}") is not None:
            wsgi_host.own(path, 0, gid)
            return
        wsgi_host.remove(path)
        # The installer runs code of the packages it installs: as the app's user, never as root.
        wsgi_host.folder(path, 0o750, uid, gid)
        try:
            self._run([self.python, "-m", "venv", path], uid, gid)
            pip = [f"{path}/bin/python", "-m", "pip", "install", "--quiet", "--no-input"]
            pip += ["--disable-pip-version-check"]
            requirements = self.app["requirements"]
            if isinstance(requirements, str):
                self._run([*pip, "-r", requirements], uid, gid)
            elif requirements:
                self._run([*pip, *requirements], uid, gid)
            wanted = [package for package in self._server_requirements() if not self.environment.installed(package)]
            if wanted:
                self._run([*pip, *wanted], uid, gid)
            self._check_installed()
        except BaseException:
            wsgi_host.remove(path)
            raise
        wsgi_host.own(path, 0, gid)
        wsgi_host.write(f"{path}/{COMPLETE}", "", 0o640, 0, gid)

    def _run(self, command, uid, gid):
        cache = f"{wsgi_host.LIB}/home/{self.name}/.cache"
        env = {"HOME": os.path.dirname(cache), "XDG_CACHE_HOME": cache}
        try:
            wsgi_step.run(command, self.name, cwd=self.code, uid=uid, gid=gid, env=env)
        except FileNotFoundError as error:
            raise Problem(f"{command[0]} is not there: wsgi:apps:{self.name}:python") from error

    def _check_installed(self):
        """A server with known holes may have come with the app's requirements."""
        row = self.host.servers[self.app["server"]]
        version = self.environment.installed(row["package"]) if self._server_requirements() else None
        found = wsgi_settings.vulnerabilities(row, version) if version else []
        if found and not self.app["allow_vulnerable"]:
            sentence = wsgi_settings.vulnerable(self.app["server"], version, found, row)
            raise Problem(f"wsgi:apps:{self.name}:requirements: {sentence}")

    def _made_of(self):
        lines = self.lines
        if any(line.strip().startswith(POINTS_ELSEWHERE) or "@ file:" in line for line in lines):
            return wsgi_host.tree_sums(self.code)
        return lines

    def _server_requirements(self):
        return wsgi_settings.requirement_of(self.app, self.host.servers)


def ingredients(host, app):
    """What of an app's settings decides its environment, whatever its code says: JSON-able."""
    return [
        interpreter(app),
        app["user"],
        app["requirements"],
        wsgi_settings.requirement_of(app, host.servers),
        app["wheels"],
        wsgi_schema.without_credentials(str(app["index"])),
        [wsgi_schema.without_credentials(url) for url in app["extra_index"]],
    ]


def interpreter(app):
    """The path of an app's interpreter: /usr/bin/python3 is a link, and a new one needs a new environment."""
    found = shutil.which(app["python"], path=wsgi_host.PATH)
    return os.path.realpath(found) if found else app["python"]


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
            wsgi_step.run(command, "")
        wsgi_host.write(f"{self.path}/{COMPLETE}", self._stamp, 0o644)
