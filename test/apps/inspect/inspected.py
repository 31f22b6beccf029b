"""Answers what a process of the app sees, and does what the query string says."""

import json
import os
import sys
import time
from urllib.parse import parse_qs


def can(path, mode):
    """Return whether the app's user can open a path, or the error of open()."""
    try:
        with open(path, mode):
            return "yes"
    except OSError as error:
        return error.strerror


def seen(environ):
    query = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
    if "sleep" in query:
        print("asleep:", environ["QUERY_STRING"], file=sys.stderr, flush=True)
        time.sleep(float(query["sleep"]))
    if "raise" in query:
        raise RuntimeError(query["raise"])
    return {
        "pid": os.getpid(),
        "uid": os.getuid(),
        "gid": os.getgid(),
        "groups": os.getgroups(),
        "env": dict(os.environ),
        "read": can(query["read"], "rb") if "read" in query else None,
        "write": can(query["write"], "ab") if "write" in query else None,
        "environ": {name: value for name, value in environ.items() if isinstance(value, str)},
    }


def application(environ, start_response):
    length = int(environ.get("CONTENT_LENGTH") or 0)
    body = environ["wsgi.input"].read(length) if length else json.dumps(seen(environ)).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
