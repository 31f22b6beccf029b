"""
The rules that values of pillar are checked against, and the tests that rules share.

``find_flaw`` runs before any rule: it refuses values that no file could hold, so that each rule may convert, print
and copy the value that it tests.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Callable

from ..redact import without_credentials

DOMAIN = re.compile(
    r"(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
    re.IGNORECASE | re.ASCII,
)

# The limit of DNS: https://www.rfc-editor.org/rfc/rfc1035#section-2.3.4
DOMAIN_LENGTH = 253

# The most bytes that the name of a file or folder may have on Linux.
NAME_LENGTH = 255

# The most bytes of a str whose rule has no other limit.
TEXT_LENGTH = 2000

# nginx refuses a parameter of 4096 bytes, with its quotes and escapes.
NGINX_WORD = 4000

# The most levels and characters that the value of one pillar key may have.
DEPTH = 16

SIZE = 2**20

# The most characters of a value, and of a name, that a problem shows.
SHOWN = 100

SHOWN_NAME = 60

# The most items of a collection, and levels of nesting, that a problem shows.
SHOWN_ITEMS, SHOWN_LEVELS = 10, 4

# NUL, and halves of surrogate pairs.
UNWRITABLE = re.compile("[\0\ud800-\udfff]")

# Names that need no escaping in the key of a problem.
PLAIN_NAME = re.compile(r"[\w.*/@+-]{1,60}", re.ASCII)

# Paths without a character that nginx would need quoted.
URL_PATH = re.compile(r"/([\w.~+@%-]+/)*([\w.~+@%-]+)?", re.ASCII)


@dataclass(frozen=True)
class Rule:
    """
    The values that one key may have.

    allowed : str
        A description of these values, for "it must be …".
    test : callable
        The test that such a value passes.
    secret : bool
        Whether no problem may show the value.
    most : int
        The most bytes that a str may have, or each str of a list.
    keys : dict
        The rule of each key, for a mapping with known keys.
    names : Rule
        The rule of the keys, for a mapping whose keys the user chooses.
    each : Rule
        The rule of the values, for such a mapping.
    """

    allowed: str
    test: Callable[[Any], bool]
    secret: bool = False
    most: int = TEXT_LENGTH
    keys: Any = None
    names: Any = None
    each: Any = None


def integer(low: int, high: int) -> Rule:
    """Return the rule for an integer from ``low`` to ``high``."""
    return Rule(
        f"an integer from {low} to {high}",
        lambda value: type(value) is int and low <= value <= high,
    )


def matching(pattern: re.Pattern[str], allowed: str, most: int = TEXT_LENGTH) -> Rule:
    """Return the rule for a str that a pattern matches and that has at most ``most`` bytes."""
    return Rule(allowed, lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None, most=most)


def mapping(keys: Mapping[str, Rule]) -> Rule:
    """Return the rule for a mapping with known keys, a dict of names to rules."""
    return Rule("a mapping", lambda value: isinstance(value, Mapping), keys=keys)


def collection(allowed: str, names: Rule | re.Pattern[str], each: Rule) -> Rule:
    """
    Return the rule for a mapping whose keys the user chooses.

    allowed : str
        A description of the keys, for "it must be …".
    names : Rule or re.Pattern
        The rule or the pattern of the keys.
    each : Rule
        The rule of the values.
    """
    names = names if isinstance(names, Rule) else matching(names, allowed)
    return Rule("a mapping", lambda value: isinstance(value, Mapping), names=names, each=each)


def one_line(value: Any) -> bool:
    """Return whether a value is a str of one line that is not empty."""
    return isinstance(value, str) and value != "" and value.isprintable()


def is_domain(value: Any) -> bool:
    """Return whether a value is a host name, whose first label may be ``*``."""
    return isinstance(value, str) and len(value) <= DOMAIN_LENGTH and DOMAIN.fullmatch(value) is not None


def list_of(value: Any, test: Callable[[Any], bool]) -> bool:
    """Return whether a value is a list whose items all pass a test."""
    return isinstance(value, list) and all(test(item) for item in value)


def has_file_names(path: str) -> bool:
    """Return whether each part of a path is short enough to be the name of a file."""
    return all(byte_length(part) <= NAME_LENGTH for part in path.split("/"))


def absolute_path(value: Any) -> bool:
    """Return whether a value is an absolute path without ``..``."""
    return one_line(value) and value.startswith("/") and ".." not in value.split("/") and has_file_names(value)


def path_below(value: Any) -> bool:
    """Return whether a value is the path of a URL that nginx needs no quotes for."""
    return isinstance(value, str) and URL_PATH.fullmatch(value) is not None and ".." not in value.split("/")


def byte_length(text: str) -> int:
    """Return how many bytes a text has in UTF-8; half of a surrogate pair counts as three."""
    return len(text.encode("utf-8", "surrogatepass"))


def find_excess(value: Any, rule: Rule) -> str | None:
    """
    Return the message about a str, or one in a list, with more bytes than its rule allows; None where there is none.

    The message shows the value unless it is a secret.
    """
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and byte_length(text) > rule.most:
            shown = "is" if rule.secret or "PRIVATE KEY" in text else f"{describe(text)} is"
            return f"{shown} {byte_length(text)} bytes long; at most {rule.most} are allowed"
    return None


def describe(value: Any) -> str:
    """
    Return a value as a problem shows it: its ``repr``, shortened and without the passwords of URLs.

    .. code-block:: python

        >>> describe(["https://me:secret@example.com"]), describe("a" * 70000)
        ("['https://me:***@example.com']", "'aaaaaaaaaaaaa…' (70000 characters)")
    """
    if isinstance(value, str) and len(value) > SHOWN:
        return f"{_sketch(value, 0)} ({len(value)} characters)"
    text = _sketch(value, SHOWN_LEVELS)
    return text if len(text) <= 2 * SHOWN else text[: 2 * SHOWN] + "…"


def describe_name(name: Any) -> str:
    """Return a name that the user chose as the key of a problem shows it: its text, shortened."""
    text = without_credentials(name[: 20 * SHOWN]) if isinstance(name, str) else _sketch(name, 1)
    return text if len(text) <= SHOWN_NAME else text[:SHOWN_NAME] + "…"


def _sketch(value: Any, levels: int) -> str:
    if isinstance(value, str):
        # Passwords are hidden before the text is cut, so that no part of one is left.
        text = without_credentials(value[: 20 * SHOWN])
        return repr(text if len(text) <= SHOWN else text[: SHOWN // 2] + "…")
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 64:
        return f"an integer of about {int(value.bit_length() * math.log10(2)) + 1} digits"
    if isinstance(value, Mapping):
        return (
            "{" + _sketches(value.items(), levels, lambda pair: ": ".join(_sketch(e, levels - 1) for e in pair)) + "}"
        )
    if isinstance(value, (list, tuple, set, frozenset)):
        opening, closing = "[]" if isinstance(value, list) else "()" if isinstance(value, tuple) else "{}"
        return opening + _sketches(value, levels, lambda item: _sketch(item, levels - 1)) + closing
    return repr(value)


def _sketches(items: Any, levels: int, sketch: Callable[[Any], str]) -> str:
    if items and not levels:
        return "…"
    shown = [sketch(item) for _, item in zip(range(SHOWN_ITEMS), items)]
    return ", ".join([*shown, *(["…"] if len(items) > SHOWN_ITEMS else [])])


class _Flaw(Exception):
    """The keys that lead to a flaw of a value, a tuple of names, and the message about it."""


def find_flaw(value: Any) -> tuple | None:
    """
    Return why no file could hold a value, or why the checks themselves could not test it.

    YAML's anchors can nest a value in itself, and make a small file into a huge value. Python can't print an
    integer of more than 4300 digits; no file holds half of a surrogate pair.

    Returns a pair: the names of the keys that lead to the flaw, a tuple, and the message, which does not
    show the value; or None.
    """
    try:
        _, size = _measure(value, 0, (), {})
    except _Flaw as flaw:
        return flaw.args
    return ((), f"has more than {SIZE} characters") if size > SIZE else None


def _measure(value: Any, level: int, place: tuple, known: dict) -> tuple:
    """Return how many levels a value has, and how many characters; raise ``_Flaw``."""
    if isinstance(value, str):
        if UNWRITABLE.search(value):
            raise _Flaw(place, "contains a character that no file can hold, such as NUL")
        return 0, len(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise _Flaw(place, "is an integer that does not fit into 64 bits")
    if isinstance(value, float) and not math.isfinite(value):
        raise _Flaw(place, "is not a finite number")
    if not isinstance(value, (Mapping, list, tuple, set, frozenset)):
        return 0, 8
    # A value that anchors repeat is measured once.
    if id(value) not in known:
        if level >= DEPTH:
            raise _Flaw((), f"is nested deeper than {DEPTH} levels")
        inner = [(name, place) for name in value]
        if isinstance(value, Mapping):
            inner += [(value[name], (*place, name) if _is_plain(name) else place) for name in value]
        measures = [_measure(each, level + 1, there, known) for each, there in inner]
        levels = 1 + max((levels for levels, _ in measures), default=0)
        known[id(value)] = levels, 8 + sum(size for _, size in measures)
    if level + known[id(value)][0] > DEPTH:
        raise _Flaw((), f"is nested deeper than {DEPTH} levels")
    return known[id(value)]


def _is_plain(name: Any) -> bool:
    return isinstance(name, str) and PLAIN_NAME.fullmatch(name) is not None


BOOLEAN = Rule("true or false", lambda value: isinstance(value, bool))

MAPPING = Rule("a mapping", lambda value: isinstance(value, Mapping))
