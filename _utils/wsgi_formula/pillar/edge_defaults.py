"""
The defaults of an app's settings for nginx, and which of them exclude each other.

This module is pure: it reads no file and starts nothing.
"""

import itertools

# Of those words that are none as long as nothing is said: each needs one key, and has these.
DEFAULTS = {
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

LIMIT_DEFAULTS = {"path": "/", "rate": None, "burst": None, "connections": None}

SECONDS = {"s": 1, "m": 60}

# What nginx says for a whole site where its TLS has these keys.
TLS_HEADERS = {"hsts": "Strict-Transport-Security", "http3": "Alt-Svc"}

# Of these an answer may have several, each with its own meaning.
SEVERAL = ("link", "set-cookie", "vary")

CORS_HEADERS = [
    f"Access-Control-{word}"
    for word in ("Allow-Origin", "Allow-Credentials", "Allow-Methods", "Allow-Headers", "Expose-Headers", "Max-Age")
]


def complete(app):
    """
    An app's words with what they leave unsaid.

    app : dict
        Its merged settings.

    Returns a dict of its keys to their values.

    .. code-block:: python

        >>> whole({**app, "limits": {"login": {"rate": "5r/m"}}})["limits"]
        {'login': {'path': '/', 'rate': '5r/m', 'burst': 4, 'connections': None}}
    """
    found = {key: app[key] and {**defaults, **app[key]} for key, defaults in DEFAULTS.items()}
    return {**found, "limits": {name: _limit(said) for name, said in app["limits"].items()}}


def conflicts(app):
    """
    What of an app's words can't be done.

    app : dict
        Its settings, after ``whole``.

    Yields a key below the app's, and a sentence's end.
    """
    for key, needed in NEEDED.items():
        if app[key] and not app[key][needed]:
            yield f"{key}:{needed}", f"missing; {key} does nothing without"
    for name, limit in app["limits"].items():
        if not limit["rate"] and not limit["connections"]:
            yield f"limits:{name}:rate", "missing; a limit needs a rate, connections, or both"
    if app["cache"] and not app["buffering"]:
        yield "cache", "can't be had with buffering: false: nginx keeps what it has read whole"
    if app["cors"] and app["cors"]["credentials"] and "*" in app["cors"]["origins"]:
        yield "cors:credentials", "can't be had with origins: ['*']: browsers refuse that; name the origins"
    for key, headers in _own_headers(app).items():
        for header in overridden(app, headers):
            yield f"response_headers:{header}", f"can't be had with {key}, which says it"


def overridden(app, headers):
    """Those of some headers that an app's ``response_headers`` say, as these write them: a list."""
    lower = {header.lower() for header in headers}
    return [header for header in app["response_headers"] if header.lower() in lower]


def replaced_headers(app):
    """The names of the headers that nginx sets and an app's own give way to."""
    pillars = [header for header in app["response_headers"] if header.lower() not in SEVERAL]
    # Of an answer that limits have nothing to do with, the app's Retry-After stays; of TLS' see tls.jinja.
    own = {key: headers for key, headers in _own_headers(app).items() if key in ("cors", "cache")}
    return [*itertools.chain(*own.values()), *pillars]


def _own_headers(app):
    """What nginx says where an app's words ask for it: their keys to the names of headers."""
    tls = app["tls"] or {}
    found = {
        "cors": CORS_HEADERS if app["cors"] else [],
        "cache": ["X-Cache-Status"] if app["cache"] else [],
        "limits": ["Retry-After"] if app["limits"] else [],
        **{f"tls:{key}": [header] for key, header in TLS_HEADERS.items() if tls.get(key)},
    }
    return {key: headers for key, headers in found.items() if headers}


def _limit(said):
    limit = {**LIMIT_DEFAULTS, **said}
    if limit["rate"] and limit["burst"] is None:
        # So many at once, and then one for each that its time has come.
        limit["burst"] = int(limit["rate"].split("r/")[0]) - 1
    return limit
