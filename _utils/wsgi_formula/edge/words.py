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

# nginx's modules that pass requests to an app; each has directives of its own.
PROTOCOLS = ("proxy", "uwsgi")

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "strict-origin-when-cross-origin",
}

# Media types that compress well.
TEXT_TYPES = [
    *("application/atom+xml", "application/geo+json", "application/javascript", "application/json"),
    *("application/ld+json", "application/manifest+json", "application/problem+json", "application/rss+xml"),
    *("application/vnd.api+json", "application/wasm", "application/xhtml+xml", "application/xml"),
    *("font/otf", "font/ttf", "image/svg+xml", "text/calendar", "text/css", "text/csv", "text/javascript"),
    *("text/markdown", "text/plain", "text/xml"),
]


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
        "auth_realm": auth_realm(name, app),
        "added_headers": functools.partial(added_headers, name, app),
        "cors_headers": cors_headers(name, app),
        "replaced_headers": edge_defaults.replaced_headers(app),
        "proxy_timeout": app["request_timeout"] + 5,
    }


def auth_realm(name, app):
    """Return the argument of ``auth_basic``: the realm, or the variable that holds it where some paths are open."""
    settings = app["basic_auth"]
    return settings and (variable(name, "realm") if settings["except"] else f'"{settings["realm"]}"')


def cors_headers(name: str, app: dict) -> list:
    """Return the CORS headers of every response of an app, a list of names and nginx's values."""
    cors = app["cors"]
    if not cors:
        return []
    found = [("Access-Control-Allow-Origin", variable(name, "origin"))]
    found += [("Vary", "Origin")] if cors["origins"] != ["*"] else []
    return found + ([("Access-Control-Allow-Credentials", "true")] if cors["credentials"] else [])


def added_headers(name: str, app: dict, own=(), internal: bool = False) -> list:
    """
    Return the headers that nginx adds to the responses of a location.

    own : collection of str
        The headers that the location adds itself, in lower case.
    internal : bool
        Whether the location serves files that the app has nginx send.

    Returns a list of names and values, as nginx writes them.
    """
    found = cors_headers(name, app)
    if app["cors"] and app["cors"]["expose"]:
        found.append(("Access-Control-Expose-Headers", f'"{", ".join(app["cors"]["expose"])}"'))
    if app["limits"] and "retry-after" not in own:
        found.append(("Retry-After", variable(name, "retry")))
    if app["security_headers"]:
        given = {header.lower() for header in app["response_headers"]}
        for header in SECURITY_HEADERS:
            if header.lower() not in given:
                suffix = header.lower().replace("-", "_")
                found.append((header, f"$wsgi_{'internal_' if internal else ''}{suffix}"))
    return found + [
        (header, quoted(text)) for header, text in app["response_headers"].items() if header.lower() not in own
    ]


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
