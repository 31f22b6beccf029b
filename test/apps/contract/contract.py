"""Does what its query string says: the WSGI app of the contract, which needs every feature of a server."""

import hashlib
import json
import logging
import os
import sys
import threading
import time
from urllib.parse import parse_qs
from wsgiref.validate import validator

logging.basicConfig(level=logging.INFO)
LIVE = f"/var/lib/wsgi/live/{os.environ.get('APP')}"
kept = []


def body_of(environ):
    length = int(environ.get("CONTENT_LENGTH") or 0)
    parts = []
    while length > 0:
        part = environ["wsgi.input"].read(length)
        if not part:
            break
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def plain(text, *headers):
    body = text if isinstance(text, bytes) else text.encode()
    headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(body))), *headers]
    return "200 OK", headers, [body]


def tell(environ, seconds="0"):
    """Return what the app sees of the request, after some seconds."""
    began = time.monotonic()
    time.sleep(float(seconds))
    body = body_of(environ)
    seen = {
        "pid": os.getpid(),
        "thread": threading.get_ident(),
        "app": os.environ.get("APP"),
        "environ": {name: value for name, value in environ.items() if isinstance(value, (str, bool))},
        "length": len(body),
        "sha256": hashlib.sha256(body).hexdigest(),
        "began": began,
        "ended": time.monotonic(),
    }
    return plain(json.dumps(seen))


def echo(environ):
    return plain(body_of(environ))


def big(environ, size):
    return plain(b"x" * int(size))


def busy(environ, seconds):
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        pass
    return plain("done")


def outlast(environ, seconds):
    """Answer only when another generation has been live for some seconds."""
    mine = os.readlink(LIVE)
    while os.readlink(LIVE) == mine:
        time.sleep(0.05)
    time.sleep(float(seconds))
    return plain("outlasted")


def fail(environ, word):
    raise RuntimeError(f"asked to fail: {word}")


def fail_at_once(environ, word):
    """Raise after start_response and before any body."""

    def parts():
        raise RuntimeError(f"asked to fail at once: {word}")
        yield b""

    return "200 OK", [("Content-Type", "text/plain")], parts()


def fail_late(environ, word):
    def parts():
        yield b"half"
        raise RuntimeError(f"asked to fail late: {word}")

    return "200 OK", [("Content-Type", "text/plain"), ("Content-Length", "8")], parts()


def stream(environ, count, pause):
    def parts():
        for number in range(int(count)):
            if number:
                time.sleep(float(pause))
            yield f"{time.monotonic()}\n".encode()

    return "200 OK", [("Content-Type", "text/plain"), ("X-Accel-Buffering", "no")], parts()


def unchanged(environ):
    return "304 Not Modified", [("ETag", '"one"')], []


def cookies(environ):
    return plain("two", ("Set-Cookie", "one=1; Path=/"), ("Set-Cookie", "two=2; Path=/"))


def say(environ, word):
    """Write a word in every way in which apps write output."""
    print(f"stdout {word}")
    print(f"stderr {word}", file=sys.stderr)
    logging.getLogger("contract").info("logging %s", word)
    print(f"wsgi.errors {word}", file=environ["wsgi.errors"], flush=True)  # PEP 3333: apps must
    return plain("said")


def leak(environ, mib):
    kept.append(b"x" * int(float(mib) * 2**20))
    return plain(body_of(environ))


DOES = {
    function.__name__: function
    for function in (
        tell,
        echo,
        big,
        busy,
        outlast,
        fail,
        fail_at_once,
        fail_late,
        stream,
        unchanged,
        cookies,
        say,
        leak,
    )
}


def answer(environ, start_response):
    query = {name: values[0] for name, values in parse_qs(environ.get("QUERY_STRING", "")).items()}
    does = DOES.get(query.pop("do", None))
    query.pop("validated", None)
    status, headers, parts = does(environ, **query) if does else tell(environ)
    start_response(status, headers)
    return parts


validated = validator(answer)


def application(environ, start_response):
    asked = "validated=" in environ.get("QUERY_STRING", "")
    return (validated if asked else answer)(environ, start_response)
