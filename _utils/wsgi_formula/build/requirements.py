"""
The requirements of an app's environment.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
from collections.abc import Iterator
from typing import Any

from ..errors import WsgiError
from ..pillar.app import App
from ..pillar.rules import list_of, one_line
from ..redact import passwords_of, without_credentials
from ..untrusted import TEXT, TooLong, Tree

# Requirements files that include each other.
MOST_NESTED = 50

PYLOCK = re.compile(r"pylock(\.[^.]+)?\.toml")

# Lock files that neither pip nor uv reads, to the command that exports them to requirements.
EXPORTS = {
    "poetry.lock": "poetry export --output requirements.txt",
    "Pipfile.lock": "pipenv requirements > requirements.txt",
    "pdm.lock": "pdm export --output requirements.txt",
}

# The entries of a lock file that are built from the project's own files, except for the project itself.
LOCAL_IN_LOCK = {
    "uv.lock": re.compile(r'\b(directory|editable|path) = "(?!\.")'),
    "pylock.toml": re.compile(r"\bpath *="),
}

OPTION = re.compile(r"(--requirement|--constraint|--editable|--find-links|-[rcef])[ =]*(.+)")

EDITABLE = r"^\s*(-e|--editable)[ =]*"

ARCHIVE = re.compile(r"[^\s;]+\.(whl|zip|tar|tar\.gz|tgz|tar\.bz2|tar\.xz)")


class Requirements:
    """
    The requirements of an app: a list in pillar, or a file of its code.

    app : App
        The app, as ``desired_app`` returns it.
    code : str
        The folder that its code was fetched into.
    required : list of str
        The requirements of its source: see ``Source.requirements``.

    Attributes:

    lines : list of str
        The requirements that the installer gets in a file of the formula's.
    file : str
        The file of the code that the installer reads, or "".
    lock : str
        ``uv.lock`` or ``pylock.toml`` if ``file`` is such a lock file, which only uv can read, or "".
    identity : list
        A list for JSON that is equal where the same packages are to be installed.
    local : bool
        Whether a requirement is built from files of the code.
    hashed : bool
        Whether each requirement needs a hash, because one has a hash.
    editable : set of str
        The files of the code that have editable requirements.
    secrets : set of str
        The passwords and tokens in URLs.

    Raises ``WsgiError`` where the code does not have the file, or the file can't be installed from.
    """

    def __init__(self, app: App, code: str, required: list[str]) -> None:
        self.key = f"wsgi:apps:{app.name}:requirements"
        self.tree, self._bytes_left = Tree(code), TEXT
        self.lines, self.file, self.lock = [*required], "", ""
        self.local = self.hashed = False
        self.editable: set[str] = set()
        self.secrets: set[str] = set()
        self._followed: set[str] = set()
        requirements, text = app["requirements"], ""
        if isinstance(requirements, list):
            self.lines += requirements
        else:
            text = self._read_present(requirements, app["source"])
            self._use_file(requirements, text)
        self.identity: list = list(self._identity_of("\n".join(self.lines), ""))
        if self.lock:
            self.identity += [text, self._all_code() if LOCAL_IN_LOCK[self.lock].search(text) else None]
        elif self.file:
            self.identity += self._identity_of(text, self.file)

    def _read_present(self, file: str, source: str) -> str:
        text = self._read(file)
        if text is None:
            raise WsgiError(f"{self.key}: {file!r} is not in {without_credentials(source)}")
        return text

    def _use_file(self, file: str, text: str) -> None:
        kind = os.path.basename(file)
        if kind in EXPORTS:
            raise WsgiError(f"{self.key}: {file!r} is not supported; name the file that `{EXPORTS[kind]}` makes")
        if kind == "pyproject.toml":
            self.lines += self._dependencies(file, text)
            return
        self.file = file
        if kind == "uv.lock":
            self.lock = kind
        elif PYLOCK.fullmatch(kind):
            self.lock = "pylock.toml"

    def _dependencies(self, file: str, text: str) -> list[str]:
        """Return the dependencies of a ``pyproject.toml``, without those of its extras."""
        project = _toml(self.key, file, text).get("project")
        project = project if isinstance(project, dict) else {}
        dynamic = project.get("dynamic")
        if isinstance(dynamic, list) and "dependencies" in dynamic:
            raise WsgiError(f"{self.key}: {file!r} has dynamic dependencies; ['.'] installs the project with them")
        if "name" not in project:
            raise WsgiError(f"{self.key}: {file!r} has no [project] with a name")
        dependencies = project.get("dependencies", [])
        if not list_of(dependencies, one_line):
            raise WsgiError(f"{self.key}: the dependencies in {file!r} are not a list of strings of one line each")
        return dependencies

    def _identity_of(self, text: str, file: str, depth: int = 0) -> Iterator[object]:
        """Yield the lines of a requirements file, and the content of the files that they name."""
        if depth > MOST_NESTED:
            raise WsgiError(f"{self.key}: {file!r} is the last of {MOST_NESTED} files, each of which includes the next")
        self._followed.add(file)
        for line in _logical_lines(text):
            yield without_credentials(line)
            self.secrets |= passwords_of([line])
            self.hashed |= "--hash=" in line or line == "--require-hashes"
            match = OPTION.fullmatch(line)
            option, target = match.groups() if match else ("", line)
            inner = os.path.normpath(os.path.join(os.path.dirname(file), target))
            if option in ("-r", "-c", "--requirement", "--constraint"):
                included = None if inner in self._followed else self._read(inner)
                yield from self._identity_of(included or "", inner, depth + 1)
            elif option in ("-f", "--find-links"):
                yield self.tree.sums(inner) or {}
            else:
                if option:
                    self.local = True
                    self.editable.add(file)
                if _is_local(target, bool(option)):
                    yield self._local_identity(target)

    def _local_identity(self, target: str) -> object:
        """Return the sum of a wheel or an archive; for a folder those of all the code, as its build may read any."""
        self.local = True
        path = re.split(r"[\s;[]", re.sub(r"^.*?\bfile:(//)?", "", target))[0]
        return self.tree.sha256(os.path.normpath(path)) or self._all_code()

    def _all_code(self) -> dict[str, str] | None:
        self.local = True
        return self.tree.sums()

    def _read(self, path: str) -> str | None:
        """Return the text of a file of the code, or None where there is none."""
        try:
            text = self.tree.read(path)
        except UnicodeDecodeError as error:
            raise WsgiError(f"{self.key}: {path!r} is not UTF-8: {error.reason}") from None
        except TooLong as error:
            raise WsgiError(f"{self.key}: {error}") from None
        self._bytes_left -= len(text or "")
        if self._bytes_left < 0:
            raise WsgiError(f"{self.key}: {path!r} and the files that include it exceed {TEXT // 2**20} MiB")
        return text


def _logical_lines(text: str) -> Iterator[str]:
    """Yield the lines of a requirements file, continuation lines joined, without comments and empty lines."""
    for line in text.replace("\\\n", " ").splitlines():
        line = " ".join(re.sub(r"(^|\s)#.*", "", line).split())
        if line:
            yield line


def _is_local(requirement: str, editable: bool) -> bool:
    """Return whether a requirement is a file or a folder; an editable one with a plain name is a folder."""
    if "file:" in requirement or "://" in requirement or requirement.startswith("-"):
        return "file:" in requirement and not requirement.startswith("-")
    word = re.split(r"[\s;]", requirement)[0]
    return editable or word.startswith(".") or "/" in word or ARCHIVE.fullmatch(word) is not None


def _toml(key: str, file: str, text: str) -> dict[str, Any]:
    for module in ("tomllib", "tomli", "pip._vendor.tomli"):  # the first is part of Python since 3.11
        with contextlib.suppress(ImportError):
            toml = importlib.import_module(module)
            break
    else:
        raise WsgiError(f"{key}: Salt's Python has no tomllib to read {file!r}; name a requirements file")
    try:
        return toml.loads(text)
    except (toml.TOMLDecodeError, RecursionError) as error:
        raise WsgiError(f"{key}: {file!r} is not TOML: {error}") from None
