"""Does what its query string says, and records in its home which requests reached it."""

import json
import os
import time
from pathlib import Path
from urllib.parse import parse_qs

HOME = Path(os.environ["HOME"])


def note(line):
    """A line of what it was asked, which outlives the process."""
    with open(HOME / "asked", "a") as asked:
        asked.write(f"{line}\n")


def tell(environ):
    """What the app sees, and its body."""
    seen = {name: value for name, value in environ.items() if isinstance(value, str)}
    seen["body"] = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)).decode("latin-1")
    return [json.dumps(seen).encode()]


def asked(environ):
    """What it was asked until now, and a file that is waited for."""
    (HOME / "go").touch()
    return [(HOME / "asked").read_bytes() if (HOME / "asked").exists() else b""]


def die(environ, word):
    """As a worker does that a request is too much for."""
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    note(word)
    os._exit(1)


def begin(environ, word):
    """Notes the first five bytes of its body as soon as they are there."""
    first = environ["wsgi.input"].read(5)
    note(word + first.decode())
    return [first + environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]) - 5)]


def events(environ):
    """Two events, the second of which is not made before somebody asked what it was `asked`."""
    (HOME / "go").unlink(missing_ok=True)

    def made():
        yield b"data: one\n\n"
        deadline = time.monotonic() + 20
        while not (HOME / "go").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        yield b"data: two\n\n" if (HOME / "go").exists() else b"data: late\n\n"

    return made()


DOES = {function.__name__: function for function in (tell, asked, die, begin, events)}


def application(environ, start_response):
    query = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
    own = [tuple(query.pop("header").split(":"))] if "header" in query else []
    parts = DOES[query.pop("do", "tell")](environ, **query)
    kind = "text/plain" if isinstance(parts, list) else "text/event-stream"
    start_response("200 OK", [("Content-Type", kind), *own])
    return parts
