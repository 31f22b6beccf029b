"""An app whose import waits, except for the first time, while there is a file `gate` in its home."""

import multiprocessing
import os
import socket
import time
from pathlib import Path

HOME = Path(os.environ["HOME"])
if (HOME / "loaded").exists():
    (HOME / "waits").touch()
    while (HOME / "gate").exists():
        time.sleep(0.05)
(HOME / "loaded").touch()


def square(number):
    return number * number


def spawn():
    """Return what a child that multiprocessing spawns computes."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.map_async(square, [3]).get(20)[0]


def steal():
    """Bind the path of this worker's socket again, as a child of the app might."""
    path = os.environ["WSGI_SPAWN_SOCKET"]
    os.unlink(path)
    stolen = socket.socket(socket.AF_UNIX)
    stolen.bind(path)
    stolen.close()


def answer(path):
    does = {"/spawn": spawn, "/steal": steal}.get(path)
    return f"{os.getpid()} {does() if does else ''}".encode()


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [answer(environ["PATH_INFO"])]


async def asgi_application(scope, receive, send):
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": answer(scope["path"])})
