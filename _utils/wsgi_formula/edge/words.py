"""
The settings of an app for nginx in nginx's own language: variables, patterns and headers.

This module is pure: it reads no file and starts nothing.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections.abc import Collection

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


def values(name: str, app: dict) -> dict:
    """Return the variables of an app's templates that come from its settings for nginx alone."""
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


def auth_realm(name: str, app: dict) -> str:
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


def added_headers(name: str, app: dict, own: Collection[str] = (), internal: bool = False) -> list:
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


def variable(name: str, purpose: str, *which: str) -> str:
    """
    Return the name of a variable of nginx that belongs to an app. It contains a hash instead of the app's name, which
    may have a hyphen and be too long for variables_hash_bucket_size.

    .. code-block:: python

        >>> variable("shop", "limit", "login")
        '$wsgi_limit_5ef21a5ec1'
    """
    return f"$wsgi_{purpose}_{hashlib.sha256(repr((name, which)).encode()).hexdigest()[:10]}"


def below(path: str) -> str:
    """Return a regular expression for a path and all paths below it, as nginx's ``map`` takes it."""
    return f'"~^{re.escape(path)}"' if path.endswith("/") else rf'"~^{re.escape(path)}(/|\z)"'


def asked_below(path: str) -> str:
    """Return the same for $request_uri, in which nothing is decoded and a query may follow."""
    return f'"~^{re.escape(path)}"' if path.endswith("/") else rf'"~^{re.escape(path)}(/|\?|\z)"'


def quoted(text: str) -> str:
    """Return a text as one argument of a directive."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def origin_pattern(origin: str) -> str:
    """Return a regular expression for an origin, whose host may begin with ``*``."""
    return '"~*^' + re.escape(origin).replace(r"\*", "[a-z0-9.-]+") + '$"'


def cookies_pattern(cookies: list) -> str:
    """Return a regular expression for a Cookie header that has one of some cookies."""
    # Blanks are allowed where http.cookies and Django allow them.
    return r'"~(^|[;,\s])(' + "|".join(map(re.escape, cookies)) + r')\s*="'


def waits(limits: dict) -> dict[str, int]:
    """
    Return the seconds after which a client that has met a limit may retry: the longest of the limits of a path.

    limits : dict
        As ``edge_defaults.complete`` returns them.

    Returns a dict of paths to seconds, the deepest path first.
    """
    paths = sorted({limit["path"] for limit in limits.values()}, key=lambda path: (-len(path), path))
    return {path: max(_wait(limit) for limit in limits.values() if _covers(limit["path"], path)) for path in paths}


def _wait(limit):
    if not limit["rate"]:
        return 1
    number, unit = limit["rate"].split("r/")
    return math.ceil(SECONDS[unit] / int(number))


def _covers(path, other):
    """Return whether another path is this one or below it."""
    return path == other or other.startswith(path.rstrip("/") + "/")
