"""
The defaults of an app's settings for nginx, and which of them exclude each other.

This module is pure: it reads no file and starts nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..errors import Problem
from .app import App

# The defaults of settings that are off until pillar has them; each needs one key then.
DEFAULTS: dict[str, dict[str, Any]] = {
    "basic_auth": {"realm": "Restricted", "users": {}, "except": []},
    "cache": {
        "valid": None,
        "size": "100m",
        "paths": ["/"],
        "stale": False,
        # Django's and Flask's
        "bypass_cookies": ["session", "sessionid"],
    },
    "cors": {
        "origins": [],
        "methods": ["GET", "HEAD", "POST"],
        "headers": ["Content-Type"],
        "expose": [],
        "credentials": False,
        "max_age": 600,
    },
}

NEEDED = {"basic_auth": "users", "cache": "valid", "cors": "origins"}

LIMIT_DEFAULTS: dict[str, Any] = {"path": "/", "rate": None, "burst": None, "connections": None}

SECONDS = {"s": 1, "m": 60}

# The headers of a whole site where its TLS has these keys.
TLS_HEADERS = {"hsts": "Strict-Transport-Security", "http3": "Alt-Svc"}

# A response may have several of these headers, each with its own meaning.
SEVERAL = ("link", "set-cookie", "vary")

CORS_HEADERS = [
    f"Access-Control-{word}"
    for word in ("Allow-Origin", "Allow-Credentials", "Allow-Methods", "Allow-Headers", "Expose-Headers", "Max-Age")
]


def complete(app: App) -> dict[str, Any]:
    """
    Return the settings of an app for nginx with their defaults.

    app : App
        With the settings of pillar.

    .. code-block:: python

        >>> complete(app.replace(limits={"login": {"rate": "5r/m"}}))["limits"]
        {'login': {'path': '/', 'rate': '5r/m', 'burst': 4, 'connections': None}}
    """
    found = {key: app[key] and {**defaults, **app[key]} for key, defaults in DEFAULTS.items()}
    return {**found, "limits": {name: _limit(limit) for name, limit in app["limits"].items()}}


def conflicts(key: str, app: App) -> Iterator[Problem]:
    """
    Yield the problems of settings for nginx that exclude each other.

    key : str
        The app's pillar key.
    app : App
        With the defaults of ``complete``.
    """
    for part, needed in NEEDED.items():
        if app[part] and not app[part][needed]:
            yield Problem(f"{key}:{part}:{needed}", f"missing; {part} has no effect without it")
    for name, limit in app["limits"].items():
        if not limit["rate"] and not limit["connections"]:
            yield Problem(f"{key}:limits:{name}:rate", "missing; a limit needs a rate, connections, or both")
    if app["cache"] and not app["buffering"]:
        message = "is not available with buffering: false, because nginx caches only buffered responses"
        yield Problem(f"{key}:cache", message)
    if app["cors"] and app["cors"]["credentials"] and "*" in app["cors"]["origins"]:
        message = "is not available with origins: ['*'], because browsers refuse it; list the origins"
        yield Problem(f"{key}:cors:credentials", message)
    for part, headers in _own_headers(app).items():
        for header in overridden(app, headers):
            message = f"is not available with {part}, which sets this header"
            yield Problem(f"{key}:response_headers:{header}", message)


def overridden(app: Mapping[str, Any], headers: Iterable[str]) -> list[str]:
    """Return those of some headers that an app's ``response_headers`` have too, as they spell them."""
    lower = {header.lower() for header in headers}
    return [header for header in app["response_headers"] if header.lower() in lower]


def replaced_headers(app: Mapping[str, Any]) -> list[str]:
    """Return the names of the headers that nginx hides from an app's response, because it adds its own."""
    pillars = [header for header in app["response_headers"] if header.lower() not in SEVERAL]
    # The app's own Retry-After stays where no limit was met; macros/tls.jinja hides the headers of TLS.
    own = {key: headers for key, headers in _own_headers(app).items() if key in ("cors", "cache")}
    return [*itertools.chain(*own.values()), *pillars]


def _own_headers(app: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the headers that nginx adds for an app's settings: keys to the names of headers."""
    tls = app["tls"] or {}
    found = {
        "cors": CORS_HEADERS if app["cors"] else [],
        "cache": ["X-Cache-Status"] if app["cache"] else [],
        "limits": ["Retry-After"] if app["limits"] else [],
        **{f"tls:{key}": [header] for key, header in TLS_HEADERS.items() if tls.get(key)},
    }
    return {key: headers for key, headers in found.items() if headers}


def _limit(own: Mapping[str, Any]) -> dict[str, Any]:
    limit = {**LIMIT_DEFAULTS, **own}
    if limit["rate"] and limit["burst"] is None:
        # As many requests at once as the rate allows in its whole time, and then one at a time.
        limit["burst"] = int(limit["rate"].split("r/")[0]) - 1
    return limit
