"""
How nginx writes what an app's settings for it say.

This module is pure: it reads no file and starts nothing.
"""

import functools
import hashlib
import math
import re

from ..pillar import edge_defaults
from ..pillar.edge_defaults import SECONDS


def values(name, app):
    """What the templates of an app know of its words."""
    return {
        "variable": functools.partial(variable, name),
        "below": below,
        "asked_below": asked_below,
        "quoted": quoted,
        "origin_pattern": origin_pattern,
        "cookies_pattern": cookies_pattern,
        "waits": waits(app["limits"]),
        "given_headers": [header.lower() for header in app["response_headers"]],
        "replaced_headers": edge_defaults.replaced_headers(app),
    }


def variable(name, what, *which):
    """
    One of nginx's variables that is an app's own. The app's name itself can't be in it: that may have a
    hyphen, and be too long for variables_hash_bucket_size.

    .. code-block:: python

        >>> variable("shop", "limit", "login")
        '$wsgi_limit_5ef21a5ec1'
    """
    return f"$wsgi_{what}_{hashlib.sha256(repr((name, which)).encode()).hexdigest()[:10]}"


def below(path):
    """A regular expression for a path and all that is below it, as nginx's ``map`` takes it."""
    return f'"~^{re.escape(path)}"' if path.endswith("/") else rf'"~^{re.escape(path)}(/|\z)"'


def asked_below(path):
    """The same for a request line, in which nothing is decoded and a query may follow."""
    return f'"~^{re.escape(path)}"' if path.endswith("/") else rf'"~^{re.escape(path)}(/|\?|\z)"'


def quoted(text):
    """A text as one of nginx's words."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def origin_pattern(origin):
    """A regular expression for an origin, of whose host the first label may be ``*``."""
    return '"~*^' + re.escape(origin).replace(r"\*", "[a-z0-9.-]+") + '$"'


def cookies_pattern(cookies):
    """A regular expression for a request that has one of some cookies."""
    # With blanks where those are heeded who read cookies generously: http.cookies, Django.
    return r'"~(^|[;,\s])(' + "|".join(map(re.escape, cookies)) + r')\s*="'


def waits(limits):
    """
    When who has met a limit may come again: the slowest of those that hold for a path.

    limits : dict
        As ``whole`` returns them.

    Returns a dict of paths to seconds, the deepest first.
    """
    paths = sorted({limit["path"] for limit in limits.values()}, key=lambda path: (-len(path), path))
    return {path: max(_wait(limit) for limit in limits.values() if _covers(limit["path"], path)) for path in paths}


def _wait(limit):
    if not limit["rate"]:
        return 1
    number, unit = limit["rate"].split("r/")
    return math.ceil(SECONDS[unit] / int(number))


def _covers(path, other):
    """Whether another path is this one or below it."""
    return path == other or other.startswith(path.rstrip("/") + "/")
