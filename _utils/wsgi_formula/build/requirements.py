"""
Requirements: which packages an app's environment is to have.
"""

import contextlib
import importlib
import os
import re

from ..errors import WsgiError
from ..pillar.rules import list_of, one_line
from ..redact import passwords_of, without_credentials
from ..untrusted import TEXT, TooLong, Tree

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


class Requirements:
    """
    What an app requires, in whichever form its pillar says it.

    name : str
        The app.
    app : dict
        Its settings, as ``desired_app`` gives them.
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

    Raises ``WsgiError`` where the code does not hold what it should, or it can't be installed from.
    """

    def __init__(self, name, app, code, required):
        self.key = f"wsgi:apps:{name}:requirements"
        self.tree, self._left = Tree(code), TEXT
        self.lines, self.file, self.lock = [*required], "", ""
        self.local = self.hashed = False
        self.editable, self.secrets, self._followed = set(), set(), set()
        said = app["requirements"]
        if isinstance(said, list):
            self.lines += said
        else:
            text = self._read(said)
            if text is None:
                raise WsgiError(f"{self.key}: {said!r} is not in {without_credentials(app['source'])}")
            self._choose(said, text)
        self.identity = list(self._counting("\n".join(self.lines), ""))
        if self.lock:
            self.identity += [text, self._all_code() if LOCAL_IN_LOCK[self.lock].search(text) else None]
        elif self.file:
            self.identity += self._counting(text, self.file)

    def _choose(self, file, text):
        kind = os.path.basename(file)
        if kind in EXPORTS:
            raise WsgiError(f"{self.key}: {file!r} can't be installed from; name the file that `{EXPORTS[kind]}` makes")
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
            raise WsgiError(f"{self.key}: {file!r} leaves its dependencies to its build; ['.'] installs it with them")
        if "name" not in project:
            raise WsgiError(f"{self.key}: {file!r} has no [project], whose dependencies could be installed")
        found = project.get("dependencies", [])
        if not list_of(found, one_line):
            raise WsgiError(f"{self.key}: {file!r} has dependencies that are no list of strings of one line each")
        return found

    def _counting(self, text, file, depth=0):
        """What counts of a requirements file: its lines, and what stands in the files that they point at."""
        if depth > MOST_NESTED:
            raise WsgiError(
                f"{self.key}: {file!r} is the last of {MOST_NESTED} files, each of which points at the next"
            )
        self._followed.add(file)
        for line in _logical_lines(text):
            yield without_credentials(line)
            self.secrets |= passwords_of([line])
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
            raise WsgiError(f"{self.key}: {path!r} can't be read: it is not UTF-8: {error.reason}") from None
        except TooLong as error:
            raise WsgiError(f"{self.key}: {error}") from None
        self._left -= len(text or "")
        if self._left < 0:
            raise WsgiError(f"{self.key}: {path!r} and those that point at it have more than {TEXT // 2**20} MiB")
        return text


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


def _toml(key, file, text):
    for module in ("tomllib", "tomli", "pip._vendor.tomli"):  # Python has one of its own since 3.11
        with contextlib.suppress(ImportError):
            toml = importlib.import_module(module)
            break
    else:
        raise WsgiError(f"{key}: Salt's Python can't read {file!r}: it has no tomllib; name a requirements file")
    try:
        return toml.loads(text)
    except (toml.TOMLDecodeError, RecursionError) as error:
        raise WsgiError(f"{key}: {file!r} is not TOML: {error}") from None
