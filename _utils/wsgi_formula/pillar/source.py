"""
Parse the pillar key ``source``, the location of an app's code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from .rules import NAME_LENGTH, TEXT_LENGTH, byte_length, has_file_names, one_line

COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

REVISION = re.compile(r"(?!-)[\w.+/-]+", re.ASCII)

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")

# The algorithms of hashes, as hashlib names them, and the hexadecimal digits that each has.
HASHES = {"sha256": 64, "sha384": 96, "sha512": 128}

PINNED = re.compile(r"[A-Za-z0-9][\w.-]*(\[[\w.,\s-]+\])?\s*==\s*[0-9][\w.!+-]*(\s+--hash=\w+:[0-9a-f]+)*", re.ASCII)


@dataclass(frozen=True)
class SourceSpec:
    """
    The location of an app's code, as pillar has it.

    kind : str
        ``salt``, ``git``, ``archive``, ``requirement`` or ``path``.
    location : str
        The folder or archive below ``salt://``, the URL (of git without ``git+`` and without the
        revision), the pinned requirement, or the absolute path.
    revision : str
        The branch, the tag, the full commit, or the whole reference, ``refs/…``, for git.
    subdirectory : str
        The folder in the source that is the app's; "" for the whole source.
    hash : tuple of str
        The algorithm, as hashlib names it, and the hexadecimal digest, for an archive.
    """

    kind: str
    location: str
    revision: str = ""
    subdirectory: str = ""
    hash: tuple[str, ...] = ()


SOURCE_FORMS = (
    "salt://folder, git+https://…@revision (or git+ssh, git+file), an archive's https:// or salt:// URL with "
    "#sha256=…, a pinned requirement such as shop==1.4, or a folder's absolute path"
)


def parse_source(text: Any) -> SourceSpec:
    """
    Return the parts of an app's ``source``.

    text : Any
        The value of the key.

    Raises ``ValueError`` with the end of a message, such as "must be …", where the value is not a source.

    .. code-block:: python

        >>> parse_source("git+ssh://git@example.com/shop.git@v1.5#subdirectory=web")
        SourceSpec(kind='git', location='ssh://git@example.com/shop.git', revision='v1.5', subdirectory='web', hash=())
    """
    if not one_line(text):
        raise ValueError(f"must be {SOURCE_FORMS}")
    if byte_length(text) > TEXT_LENGTH or not has_file_names(text):
        raise ValueError(f"is too long; at most {TEXT_LENGTH} bytes are allowed, and {NAME_LENGTH} between two slashes")
    if PINNED.fullmatch(text):
        return SourceSpec("requirement", text)
    plain, _, fragment = text.partition("#")
    options = dict(parse_qsl(fragment, keep_blank_values=True))
    subdirectory = options.pop("subdirectory", "").strip("/")
    if ".." in subdirectory.split("/") or "\\" in subdirectory:
        raise ValueError(f"has the subdirectory {subdirectory!r}, which is outside of the source")
    if plain.startswith("git+"):
        return _git_source(plain, options, subdirectory)
    if plain.startswith("/"):
        _refuse_options(options, ("subdirectory",))
        if ".." in plain.split("/") or plain.strip("/") == "":
            raise ValueError("must be the absolute path of a folder, without ..")
        return SourceSpec("path", plain.rstrip("/"), subdirectory=subdirectory)
    if plain.startswith(("salt://", "https://", "http://")) and plain.lower().endswith(ARCHIVES):
        return _archive_source(plain, options, subdirectory)
    if plain.startswith("salt://") and plain[len("salt://") :].strip("/"):
        _refuse_options(options, ("subdirectory",))
        return SourceSpec("salt", plain[len("salt://") :].strip("/"), subdirectory=subdirectory)
    raise ValueError(f"must be {SOURCE_FORMS}")


def _git_source(plain: str, options: dict[str, str], subdirectory: str) -> SourceSpec:
    _refuse_options(options, ("subdirectory",))
    parts = urlsplit(plain[len("git+") :])
    try:
        named = parts.hostname and parts.port != 0
    except ValueError as error:
        raise ValueError("must have a port number after the colon; write host/path instead of host:path") from error
    if parts.scheme not in ("https", "ssh", "file") or bool(named) == (parts.scheme == "file"):
        raise ValueError("must be git+https://…, git+ssh://… or git+file://…")
    if parts.scheme == "ssh" and parts.password is not None:
        raise ValueError("must have no password, which all users could see in the list of processes; use deploy_key")
    path, at, revision = parts.path.rpartition("@")
    if not at or not revision or parts.query:
        raise ValueError("must end in @ and a branch, a tag or a commit")
    if not REVISION.fullmatch(revision) or ".." in revision or revision.endswith(("/", ".lock")):
        raise ValueError(f"has the revision {revision!r}, which is not a valid branch, tag or commit")
    return SourceSpec("git", parts._replace(path=path).geturl(), revision, subdirectory)


def _archive_source(plain: str, options: dict[str, str], subdirectory: str) -> SourceSpec:
    named = [(name, options.pop(name).lower()) for name in HASHES if name in options]
    _refuse_options(options, ("sha256", "subdirectory"))
    if len(named) != 1:
        raise ValueError("is an archive and must end in #sha256= and the hash that `sha256sum` prints")
    algorithm, digest = named[0]
    if not re.fullmatch(rf"[0-9a-f]{{{HASHES[algorithm]}}}", digest):
        raise ValueError(f"must have a {algorithm} of {HASHES[algorithm]} hexadecimal digits")
    return SourceSpec("archive", plain, subdirectory=subdirectory, hash=(algorithm, digest))


def _refuse_options(options: dict[str, str], known: tuple[str, ...]) -> None:
    for name in options:
        raise ValueError(f"has an unknown option #{name} ({', '.join(f'#{each}=' for each in known)})")


def is_source(value: Any) -> bool:
    """Return whether a value is the location of an app's code."""
    try:
        return bool(parse_source(value))
    except ValueError:
        return False
