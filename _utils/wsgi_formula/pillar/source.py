"""
Sources: where an app's code comes from, as pillar writes it.
"""

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

from .rules import NAME_LENGTH, TEXT_LENGTH, byte_length, has_file_names, one_line

COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

REVISION = re.compile(r"(?!-)[\w.+/-]+", re.ASCII)

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")

# hashlib's name of each, and its length in hexadecimal digits.
HASHES = {"sha256": 64, "sha384": 96, "sha512": 128}

PINNED = re.compile(r"[A-Za-z0-9][\w.-]*(\[[\w.,\s-]+\])?\s*==\s*[0-9][\w.!+-]*(\s+--hash=\w+:[0-9a-f]+)*", re.ASCII)


@dataclass(frozen=True)
class SourceSpec:
    """
    Where an app's code comes from, as pillar has it.

    kind : str
        ``salt``, ``git``, ``archive``, ``requirement`` or ``path``.
    location : str
        The folder or archive below ``salt://``, the URL (of git without ``git+`` and without the
        revision), the pinned requirement, or the absolute path.
    revision : str
        Of git: a branch, a tag, a full commit, or a whole reference, ``refs/…``.
    subdirectory : str
        The folder in it that is the app's; "" for all of it.
    hash : tuple
        Of an archive: the algorithm, as hashlib has it, and the hexadecimal digest.
    """

    kind: str
    location: str
    revision: str = ""
    subdirectory: str = ""
    hash: tuple = ()


SOURCE_FORMS = (
    "salt://folder, git+https://…@revision (or git+ssh, git+file), an archive's https:// or salt:// URL with "
    "#sha256=…, a pinned requirement such as shop==1.4, or a folder's absolute path"
)


def parse_source(text):
    """
    What an app's ``source`` says.

    text : str

    Returns a ``Source``. Raises ``ValueError`` with a sentence's end where it is none.

    .. code-block:: python

        >>> parse_source("git+ssh://git@example.com/shop.git@v1.5#subdirectory=web")
        Source(kind='git', location='ssh://git@example.com/shop.git', revision='v1.5', subdirectory='web', hash=())
    """
    if not one_line(text):
        raise ValueError(f"must be {SOURCE_FORMS}")
    if byte_length(text) > TEXT_LENGTH or not has_file_names(text):
        raise ValueError(f"is too long: {TEXT_LENGTH} bytes at most, and {NAME_LENGTH} between two slashes")
    if PINNED.fullmatch(text):
        return SourceSpec("requirement", text)
    plain, _, fragment = text.partition("#")
    options = dict(parse_qsl(fragment, keep_blank_values=True))
    subdirectory = options.pop("subdirectory", "").strip("/")
    if ".." in subdirectory.split("/") or "\\" in subdirectory:
        raise ValueError(f"its subdirectory {subdirectory!r} leads out of it")
    if plain.startswith("git+"):
        return _git_source(plain, options, subdirectory)
    if plain.startswith("/"):
        _no_more(options, ("subdirectory",))
        if ".." in plain.split("/") or plain.strip("/") == "":
            raise ValueError("must be a folder's absolute path, without ..")
        return SourceSpec("path", plain.rstrip("/"), subdirectory=subdirectory)
    if plain.startswith(("salt://", "https://", "http://")) and plain.lower().endswith(ARCHIVES):
        return _archive_source(plain, options, subdirectory)
    if plain.startswith("salt://") and plain[len("salt://") :].strip("/"):
        _no_more(options, ("subdirectory",))
        return SourceSpec("salt", plain[len("salt://") :].strip("/"), subdirectory=subdirectory)
    raise ValueError(f"must be {SOURCE_FORMS}")


def _git_source(plain, options, subdirectory):
    _no_more(options, ("subdirectory",))
    parts = urlsplit(plain[len("git+") :])
    try:
        named = parts.hostname and parts.port != 0
    except ValueError as error:
        raise ValueError("must have a port behind its host's colon; host:path is written host/path") from error
    if parts.scheme not in ("https", "ssh", "file") or bool(named) == (parts.scheme == "file"):
        raise ValueError("must be git+https://…, git+ssh://… or git+file://…")
    if parts.scheme == "ssh" and parts.password is not None:
        raise ValueError("must have no password, which ssh would show to all; a key goes into deploy_key")
    path, at, revision = parts.path.rpartition("@")
    if not at or not revision or parts.query:
        raise ValueError("must end in @ and a branch, a tag or a commit")
    if not REVISION.fullmatch(revision) or ".." in revision or revision.endswith(("/", ".lock")):
        raise ValueError(f"{revision!r} can't be a branch, a tag or a commit")
    return SourceSpec("git", parts._replace(path=path).geturl(), revision, subdirectory)


def _archive_source(plain, options, subdirectory):
    named = [(name, options.pop(name).lower()) for name in HASHES if name in options]
    _no_more(options, ("sha256", "subdirectory"))
    if len(named) != 1:
        raise ValueError("is an archive; it must end in #sha256= and its hash, which `sha256sum` prints")
    algorithm, digest = named[0]
    if not re.fullmatch(rf"[0-9a-f]{{{HASHES[algorithm]}}}", digest):
        raise ValueError(f"its {algorithm} must be {HASHES[algorithm]} hexadecimal digits")
    return SourceSpec("archive", plain, subdirectory=subdirectory, hash=(algorithm, digest))


def _no_more(options, known):
    for name in options:
        raise ValueError(f"#{name} is nothing that it can say ({', '.join(f'#{each}=' for each in known)})")


def _source(value):
    try:
        return bool(parse_source(value))
    except ValueError:
        return False
