"""
What the rules of the schema are made of.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Callable

DOMAIN = re.compile(
    r"(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
    re.IGNORECASE | re.ASCII,
)
# Where nothing needs to be quoted in nginx's words.
URL_PATH = re.compile(r"/([\w.~+@%-]+/)*([\w.~+@%-]+)?", re.ASCII)


@dataclass(frozen=True)
class Rule:
    """
    What one key may hold.

    allowed : str
        The words that say what passes.
    test : callable
        Whether a value does.
    secret : bool
        Whether no problem may show the value.
    keys : dict
        Of a mapping: the rule of each key that it may have.
    names : Rule
        Of a mapping whose keys are the user's own names: what these may be.
    each : Rule
        Of such a mapping: what every value may be.
    """

    allowed: str
    test: Callable[[Any], bool]
    secret: bool = False
    keys: Any = None
    names: Any = None
    each: Any = None


def integer(low, high):
    """The rule of an integer between two."""
    return Rule(
        f"an integer from {low} to {high}",
        lambda value: type(value) is int and low <= value <= high,
    )


def matching(pattern, allowed, numbers=False):
    """The rule of a str that a compiled pattern matches; with ``numbers``, of an int too."""
    kinds = (str, int) if numbers else (str,)
    return Rule(allowed, lambda value: type(value) in kinds and pattern.fullmatch(str(value)) is not None)


def mapping(keys):
    """The rule of a mapping with such keys, a dict of names to rules."""
    return Rule("a mapping", lambda value: isinstance(value, Mapping), keys=keys)


def collection(allowed, names, each):
    """
    The rule of a mapping whose keys the user chooses.

    allowed : str
        What a key may be, in words.
    names : Rule or re.Pattern
        What it may be.
    each : Rule
        What every value may be.
    """
    names = names if isinstance(names, Rule) else matching(names, allowed)
    return Rule("a mapping", lambda value: isinstance(value, Mapping), names=names, each=each)


def one_line(value):
    """Whether a value is a str of one line, not empty."""
    return isinstance(value, str) and value != "" and value.isprintable()


def is_domain(value):
    """Whether a value is a host name, of which the first label may be ``*``."""
    return isinstance(value, str) and DOMAIN.fullmatch(value) is not None


def list_of(value, test):
    """Whether a value is a list whose items all pass."""
    return isinstance(value, list) and all(test(item) for item in value)


def absolute_path(value):
    """Whether a value is an absolute path that leads nowhere else."""
    return one_line(value) and value.startswith("/") and ".." not in value.split("/")


def path_below(value):
    """Whether a value is a URL's path that needs no quotes in nginx's words."""
    return isinstance(value, str) and URL_PATH.fullmatch(value) is not None and ".." not in value.split("/")


BOOLEAN = Rule("true or false", lambda value: isinstance(value, bool))
MAPPING = Rule("a mapping", lambda value: isinstance(value, Mapping))
