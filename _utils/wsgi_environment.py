"""
Virtual environments, each made once of what it holds and never edited: those of the apps, which
releases share, and those of the formula's own programs.

A shared environment is keyed by its content, so that a change of code alone installs nothing. A
copy per release, of cached wheels, would cost the disk as often, and the installer a run each time.
"""

import configparser
import contextlib
import importlib
import json
import os
import re
import shutil
from urllib.parse import unquote

import wsgi_host
import wsgi_ownership
import wsgi_schema
import wsgi_settings
import wsgi_source_tree
import wsgi_step
import wsgi_users
from wsgi_host import PATH, SRV, Problem
from wsgi_schema import without_credentials

# What a finished environment carries, written last.
COMPLETE = ".complete"
# A disk with less space is full. venv does not tell why its pip could not be installed.
FULL = 2**20  # bytes
# The formula's own uv, which wsgi/uv/init.sls installs.
UV = "/usr/local/lib/wsgi/uv/bin/uv"
# Where uv looks for the machine's configuration. It would look into the app's code, too.
UV_CONFIGURATION = "/etc/uv/uv.toml"
# Where pip looks for it, in its order: the last one wins.
PIP_CONFIGURATION = ("/etc/xdg/pip/pip.conf", "/etc/pip.conf")
# What uv, which reads none of pip's configuration, calls it, and what stands between two values.
PIP_AS_UV = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "cert": ("SSL_CERT_FILE", " "),
}
# Requirements files, each of which points at the next.
MOST_NESTED = 50
PYLOCK = re.compile(r"pylock(\.[^.]+)?\.toml")
# Locks that neither pip nor uv reads, and what makes a file of them that both do.
EXPORTS = {
    "poetry.lock": "poetry export --output requirements.txt",
    "Pipfile.lock": "pipenv requirements > requirements.txt",
    "pdm.lock": "pdm export --output requirements.txt",
}
# What a lock has of the project's own files, the project itself left out.
LOCAL_IN_LOCK = {
    "uv.lock": re.compile(r'\b(directory|editable|path) = "(?!\.")'),
    "pylock.toml": re.compile(r"\bpath *="),
}
OPTION = re.compile(r"(--requirement|--constraint|--editable|--find-links|-[rcef])[ =]*(.+)")
EDITABLE = r"^\s*(-e|--editable)[ =]*"
ARCHIVE = re.compile(r"[^\s;]+\.(whl|zip|tar|tar\.gz|tgz|tar\.bz2|tar\.xz)")


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
        return self.whole() and wsgi_host.group(f"{self.path}/{COMPLETE}") == gid

    def whole(self):
        """Return whether the environment was finished and its folder is still root's alone to write to; any group will do."""
        return wsgi_ownership.is_roots(self.path) and self.finished()

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
        name = wsgi_settings.package_name(requirement)
        lib = os.path.join(self.path, "lib")
        for python in wsgi_host.listdir(lib):
            for found in wsgi_host.listdir(os.path.join(lib, python, "site-packages")):
                stem, suffix = os.path.splitext(found)
                package, _, version = stem.partition("-")
                if suffix in (".dist-info", ".egg-info") and wsgi_settings.package_name(package) == name:
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
    for other in sorted(wsgi_host.listdir(folder)):
        if other.partition("-")[0] == id and make(other).whole():
            return make(other)
    found, count = make(id), 1
    while found.finished():
        count += 1
        found = make(f"{id}-{count}")
    return found


class Requirements:
    """
    What an app requires, in whichever form its pillar says it.

    name : str
        The app.
    app : dict
        Its settings, as ``wsgi_wanted.app`` gives them.
    code : str
        The folder that its code was fetched into.
    required : list of str
        What it must have for its source.

    lines : list of str
        What the installer gets in a file of ours.
    file : str
        What it reads in the code, or "".
    lock : str
        ``uv.lock`` or ``pylock.toml`` where ``file`` is one, which uv alone can read; else "".
    identity : list
        JSON-able; equal where the same is to be installed.
    local : bool
        Whether any of it is built from the code's own files.
    hashed : bool
        Whether each one has to have a hash, because one has.
    editable : set of str
        The files in the code that ask for editable installations.
    secrets : set of str
        The passwords and tokens in its URLs.

    Raises ``Problem`` where the code does not hold what it should, or it can't be installed from.
    """

    def __init__(self, name, app, code, required):
        self.key = f"wsgi:apps:{name}:requirements"
        self.tree, self._left = wsgi_source_tree.Tree(code), wsgi_source_tree.TEXT
        self.lines, self.file, self.lock = [*required], "", ""
        self.local = self.hashed = False
        self.editable, self.secrets, self._followed = set(), set(), set()
        said = app["requirements"]
        if isinstance(said, list):
            self.lines += said
        else:
            text = self._read(said)
            if text is None:
                raise Problem(f"{self.key}: {said!r} is not in {without_credentials(app['source'])}")
            self._choose(said, text)
        self.identity = list(self._counting("\n".join(self.lines), ""))
        if self.lock:
            self.identity += [text, self._all_code() if LOCAL_IN_LOCK[self.lock].search(text) else None]
        elif self.file:
            self.identity += self._counting(text, self.file)

    def _choose(self, file, text):
        kind = os.path.basename(file)
        if kind in EXPORTS:
            raise Problem(f"{self.key}: {file!r} can't be installed from; name the file that `{EXPORTS[kind]}` makes")
        if kind == "pyproject.toml":
            self.lines += self._dependencies(file, text)
            return
        self.file = file
        if kind == "uv.lock":
            self.lock = kind
        elif PYLOCK.fullmatch(kind):
            self.lock = "pylock.toml"

    def _dependencies(self, file, text):
        """What a project needs; not the project, nor what it needs for an extra."""
        project = _toml(self.key, file, text).get("project")
        project = project if isinstance(project, dict) else {}
        dynamic = project.get("dynamic")
        if isinstance(dynamic, list) and "dependencies" in dynamic:
            raise Problem(f"{self.key}: {file!r} leaves its dependencies to its build; ['.'] installs it with them")
        if "name" not in project:
            raise Problem(f"{self.key}: {file!r} has no [project], whose dependencies could be installed")
        found = project.get("dependencies", [])
        if not wsgi_schema.list_of(found, wsgi_schema.one_line):
            raise Problem(f"{self.key}: {file!r} has dependencies that are no list of strings of one line each")
        return found

    def _counting(self, text, file, depth=0):
        """What counts of a requirements file: its lines, and what stands in the files that they point at."""
        if depth > MOST_NESTED:
            raise Problem(f"{self.key}: {file!r} is the last of {MOST_NESTED} files, each of which points at the next")
        self._followed.add(file)
        for line in _logical_lines(text):
            yield without_credentials(line)
            self.secrets |= _passwords([line])
            self.hashed |= "--hash=" in line or line == "--require-hashes"
            found = OPTION.fullmatch(line)
            option, target = found.groups() if found else ("", line)
            inner = os.path.normpath(os.path.join(os.path.dirname(file), target))
            if option in ("-r", "-c", "--requirement", "--constraint"):
                pointed = None if inner in self._followed else self._read(inner)
                yield from self._counting(pointed or "", inner, depth + 1)
            elif option in ("-f", "--find-links"):
                yield self.tree.sums(inner) or {}
            else:
                if option:
                    self.local = True
                    self.editable.add(file)
                if _is_local(target, bool(option)):
                    yield self._local(target)

    def _local(self, target):
        """The sum of a wheel or an archive; of a folder's, all the code, since nobody knows what its build reads."""
        self.local = True
        path = re.split(r"[\s;[]", re.sub(r"^.*?\bfile:(//)?", "", target))[0]
        return self.tree.sha256(os.path.normpath(path)) or self._all_code()

    def _all_code(self):
        self.local = True
        return self.tree.sums()

    def _read(self, path):
        """The text of a file of the code, or None where there is none."""
        try:
            text = self.tree.read(path)
        except UnicodeDecodeError as error:
            raise Problem(f"{self.key}: {path!r} can't be read: it is not UTF-8: {error.reason}") from None
        except wsgi_source_tree.TooLong as error:
            raise Problem(f"{self.key}: {error}") from None
        self._left -= len(text or "")
        if self._left < 0:
            raise Problem(
                f"{self.key}: {path!r} and those that point at it have more than {wsgi_source_tree.TEXT // 2**20} MiB"
            )
        return text


class Recipe:
    """
    What an app's environment is made from, and how.

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
        self.python = interpreter(host, app)
        self.requirements = Requirements(name, app, code, required)
        # Of a folder on the machine its path has to do: the id is the same on every host.
        wheels = app["wheels"] or "/"
        sums = None if wheels.startswith("/") else wsgi_source_tree.Tree(code).sums(wheels)
        if sums is None and not wheels.startswith("/"):
            raise Problem(
                f"wsgi:apps:{name}:wheels: {wheels!r} is not a folder in {without_credentials(app['source'])}, "
                "or a link that leads out of it"
            )
        id = wsgi_host.digest(_surroundings(host, app), self.requirements.identity, sums)
        self.environment = undamaged(id, f"{SRV}/{name}/environments", lambda each: Environment(name, each))

    def build(self, builder, gid):
        """
        Make the environment where it is not there yet.

        builder : pwd.struct_passwd
            The user that runs the installer.
        gid : int
            The group of the app's user, who may read but not write the result.

        Raises ``Problem`` with the last lines of what a failed step printed; nothing is left that
        could be taken for finished.
        """
        if self.environment.built(gid):
            return
        path = self.environment.path
        if self.environment.whole():
            wsgi_ownership.take_tree(path, 0, gid)
            return
        # What the installer is given, credentials among it. Beside the environment, since uv
        # makes one in an empty folder only.
        given = f"{path}.given"
        for folder, mode in ((path, 0o750), (given, 0o700)):
            wsgi_host.remove(folder)
            wsgi_host.folder(folder, mode)
        if self.requirements.lines:
            # There may be credentials in them: not for the command line.
            text = "\n".join(self.requirements.lines) + "\n"
            wsgi_host.write(f"{given}/requirements.txt", text, 0o600, builder.pw_uid, builder.pw_gid)
        # The installer runs code of the packages it installs: never as root. From here on root writes to neither.
        for folder in (path, given):
            os.chown(folder, builder.pw_uid, builder.pw_gid)
        try:
            self._install(given, builder)
            self._check_installed()
            # The stamp is removed where the installer made one.
            wsgi_users.take_over(builder, path, gid, without=[COMPLETE])
        except BaseException as error:
            full = shutil.disk_usage(path).free < FULL
            wsgi_step.end_user(builder)
            wsgi_host.remove(path)
            if full and isinstance(error, Problem):
                raise Problem(f"No space left on device, below {SRV}/{self.name}: {error}") from None
            raise
        finally:
            wsgi_host.remove(given)
        # After a power cut, no stamp may be on the disk that what it stands for is not.
        os.sync()
        wsgi_host.write(f"{path}/{COMPLETE}", "", 0o640, 0, gid)

    def _install(self, given, builder):
        path, requirements = self.environment.path, self.requirements
        installer = self._installer()
        env = {**installer.variables, "HOME": builder.pw_dir, "XDG_CACHE_HOME": f"{builder.pw_dir}/.cache"}
        account = {"uid": builder.pw_uid, "gid": builder.pw_gid}
        secrets = requirements.secrets | _passwords([str(self.app["index"]), *self.app["extra_index"]])

        def run(key, cwd, *command):
            what = f"wsgi:apps:{self.name}:{key}: {' '.join(command)}"
            wsgi_step.run(command, self.name, what=what, cwd=cwd, env=env, secrets=secrets, **account)

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
            there = ", ".join(interpreters()) or "none at all"
            raise Problem(f"{key}:python: {app['python']!r} is not on this machine ({there}); install it first")
        uv = UV if os.path.exists(UV) else shutil.which("uv", path=PATH)
        if app["installer"] == "uv" and not uv:
            raise Problem(f"{key}:installer: 'uv' is not on this machine; state.apply wsgi.uv installs it")
        if app["installer"] != "pip" and uv:
            return Uv(uv, app["index"], app["extra_index"])
        if self.requirements.lock:
            raise Problem(f"{key}:requirements: {app['requirements']!r} is for uv to install: say installer: uv")
        return Pip(app["index"], app["extra_index"])

    def _sources(self):
        """Where packages are looked for, as both installers take it; the indexes apart."""
        words = ["--no-index"] if self.app["index"] is False else []
        if self.app["wheels"]:
            folder = os.path.join(self.code, self.app["wheels"])
            if self.app["wheels"].startswith("/") and not os.path.isdir(folder):
                raise Problem(f"wsgi:apps:{self.name}:wheels: {self.app['wheels']!r} is not a folder that is there")
            words += ["--find-links", folder]
        return words

    def _check_installed(self):
        """A server with known holes may have come with the app's requirements."""
        row = self.host.servers[self.app["server"]]
        version = self.environment.installed(row["package"]) if self._server_requirements() else None
        found = wsgi_settings.vulnerabilities(row, version) if version else []
        if found and not self.app["allow_vulnerable"]:
            sentence = wsgi_settings.vulnerable(self.app["server"], version, found, row)
            raise Problem(f"wsgi:apps:{self.name}:requirements: {sentence}")

    def _server_requirements(self):
        return wsgi_settings.requirement_of(self.app, self.host.servers)


class Pip:
    """
    pip, which each environment has its own of.

    index : str, False or None
        The index's URL; False for none, and None for what the machine's configuration says.
    extra_index : list of str
        Further ones.

    variables : dict
        What its processes find in their environment, where nobody else can read it.

    Its cache is in the build user's home, where the app can't alter it.
    """

    def __init__(self, index, extra_index):
        said = {"PIP_INDEX_URL": index, "PIP_EXTRA_INDEX_URL": " ".join(extra_index)}
        self.variables = {name: value for name, value in said.items() if value}

    def make(self, python, path):
        """The words that make an environment in an empty folder."""
        return [python, "-I", "-m", "venv", path]

    def install(self, path):
        """The words before what is to be installed. -I: else modules of the code stand before pip's own."""
        pip = [f"{path}/bin/python", "-I", "-m", "pip"]
        return [*pip, "install", "--quiet", "--no-input", "--disable-pip-version-check"]

    def hashed(self, requirements):
        """The words that ask for a hash of each; pip does so by itself where there is one."""
        return []


class Uv:
    """
    uv, told to do as pip does, so that machines with and without it make the same of one pillar:
    the best version of all indexes, the machine's configuration and certificates, no interpreter
    that is not there, no configuration out of the code. Its attributes are ``Pip``'s.

    program : str
        Its path.
    """

    def __init__(self, program, index, extra_index):
        self.program = program
        has_own = os.path.exists(UV_CONFIGURATION)
        configured = {} if has_own else pip_configuration()
        none = configured.get("no-index", "").lower() in ("1", "on", "t", "true", "y", "yes")
        said = {"UV_DEFAULT_INDEX": index, "UV_INDEX": " ".join(extra_index)}
        self.no_index = ["--no-index"] if index is None and none else []
        self.variables = {
            "UV_INDEX_STRATEGY": "unsafe-best-match",
            "UV_PYTHON_DOWNLOADS": "never",
            "UV_SYSTEM_CERTS": "true",
            **({"UV_CONFIG_FILE": UV_CONFIGURATION} if has_own else {"UV_NO_CONFIG": "true"}),
            **{
                variable: between.join(configured[name].split())
                for name, (variable, between) in PIP_AS_UV.items()
                if name in configured
            },
            **wsgi_step.environment(),
            **{name: value for name, value in said.items() if value},
        }

    def make(self, python, path):
        return [self.program, "venv", "--quiet", "--python", python, path]

    def install(self, path):
        # A hard link into the cache would be a second name, in a folder of the build user's, for a file of root's.
        return [
            *(self.program, "pip", "install", "--quiet", "--python", path),
            *("--link-mode", "copy", "--compile-bytecode", *self.no_index),
        ]

    def hashed(self, requirements):
        return ["--require-hashes"] if requirements.hashed else []

    def export(self, python):
        """The words that make requirements of a ``uv.lock``: those that the app runs with."""
        what = ["--frozen", "--no-dev", "--no-emit-project", "--no-editable"]
        return [self.program, "export", "--quiet", "--python", python, *what]


def pip_configuration():
    """
    The machine's configuration of pip, for an installer that does not read it.

    Returns a dict of option to str. Raises ``Problem`` where a file of it is none.
    """
    files = configparser.RawConfigParser()
    try:
        files.read([*PIP_CONFIGURATION, os.environ.get("PIP_CONFIG_FILE", "")])
    except (configparser.Error, UnicodeDecodeError) as error:
        # Never the line: it may hold a password.
        raise Problem(f"pip's configuration can't be read: {type(error).__name__}") from None
    found = {}
    for section in ("global", "install"):
        if files.has_section(section):
            found.update(files.items(section))
    for variable, value in os.environ.items():
        if variable.startswith("PIP_") and value:
            found[variable[len("PIP_") :].lower().replace("_", "-")] = value
    return found


def ingredients(host, app):
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
        wsgi_settings.requirement_of(app, host.servers),
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


def interpreters():
    """The names of the interpreters that there are on this machine, a sorted list."""
    found = {name for folder in PATH.split(":") for name in wsgi_host.listdir(folder)}
    return sorted(name for name in found if re.fullmatch(r"(python|pypy)3(\.\d+)?", name))


def _logical_lines(text):
    """The lines of a requirements file that say something, each on one line, without comments."""
    for line in text.replace("\\\n", " ").splitlines():
        line = " ".join(re.sub(r"(^|\s)#.*", "", line).split())
        if line:
            yield line


def _is_local(requirement, editable):
    """Whether a line means a file or a folder; of an editable one, a plain name does."""
    if "file:" in requirement or "://" in requirement or requirement.startswith("-"):
        return "file:" in requirement and not requirement.startswith("-")
    word = re.split(r"[\s;]", requirement)[0]
    return editable or word.startswith(".") or "/" in word or ARCHIVE.fullmatch(word) is not None


def _passwords(texts):
    """The passwords and tokens of the URLs in some texts, as they stand and as they are meant."""
    urls = [found for text in texts for found in wsgi_schema.CREDENTIALS.finditer(text)]
    found = {(url["password"] or "")[1:] or url["user"] for url in urls}
    return found | {unquote(each) for each in found}


def _toml(key, file, text):
    for module in ("tomllib", "tomli", "pip._vendor.tomli"):  # Python has one of its own since 3.11
        with contextlib.suppress(ImportError):
            toml = importlib.import_module(module)
            break
    else:
        raise Problem(f"{key}: Salt's Python can't read {file!r}: it has no tomllib; name a requirements file")
    try:
        return toml.loads(text)
    except (toml.TOMLDecodeError, RecursionError) as error:
        raise Problem(f"{key}: {file!r} is not TOML: {error}") from None


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
