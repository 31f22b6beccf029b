"""Does what its query string says: the ASGI app of the contract."""

import asyncio
import hashlib
import json
import logging
import os
import sys
import time
from urllib.parse import parse_qs

logging.basicConfig(level=logging.INFO)
LIVE = f"/var/lib/wsgi/live/{os.environ.get('APP')}"
started = []


async def application(scope, receive, send):
    await {"http": http, "websocket": websocket, "lifespan": lifespan}[scope["type"]](scope, receive, send)


async def lifespan(scope, receive, send):
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            started.append(asyncio.get_running_loop())
            if "state" in scope:
                scope["state"]["shared"] = "by lifespan"
        else:
            print("lifespan shutdown")
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def websocket(scope, receive, send):
    """Echoes; `close` has it close the connection."""
    assert (await receive())["type"] == "websocket.connect"
    protocols = scope.get("subprotocols") or [None]
    await send({"type": "websocket.accept", "subprotocol": protocols[0]})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return
        if message.get("text") == "close":
            await send({"type": "websocket.close", "code": 4321})
            return
        said = {"text": message["text"]} if message.get("text") is not None else {"bytes": message["bytes"]}
        if message.get("text") == "scope":
            said = {"text": json.dumps(plain(scope))}
        await send({"type": "websocket.send", **said})


def plain(scope):
    """Return a scope for JSON, with bytes decoded as latin-1."""
    found = {name: value for name, value in scope.items() if isinstance(value, (str, int, list, tuple, type(None)))}
    for name in ("raw_path", "query_string"):
        found[name] = scope[name].decode("latin-1") if scope.get(name) is not None else None
    found["headers"] = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]]
    return found


async def body_of(receive):
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def http(scope, receive, send):
    query = {name: values[0] for name, values in parse_qs(scope["query_string"].decode()).items()}
    do = query.pop("do", None)
    if do is None:
        await tell(scope, receive, send)
        return
    await {"tell": tell, "echo": echo, "stream": stream, "fail": fail, "outlast": outlast, "say": say}[do](
        scope, receive, send, **query
    )


async def answer(send, text):
    body = text if isinstance(text, bytes) else text.encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    headers += [(b"set-cookie", b"one=1"), (b"set-cookie", b"two=2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def tell(scope, receive, send, seconds="0"):
    began = time.monotonic()
    body = await body_of(receive)
    await asyncio.sleep(float(seconds))
    seen = {
        "pid": os.getpid(),
        "app": os.environ.get("APP"),
        "scope": plain(scope),
        "state": scope.get("state", {}).get("shared"),
        "started": asyncio.get_running_loop() in started,
        "length": len(body),
        "sha256": hashlib.sha256(body).hexdigest(),
        "began": began,
        "ended": time.monotonic(),
    }
    await answer(send, json.dumps(seen))


async def echo(scope, receive, send):
    await answer(send, await body_of(receive))


async def stream(scope, receive, send, count, pause):
    headers = [(b"content-type", b"text/plain"), (b"x-accel-buffering", b"no")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for number in range(int(count)):
        if number:
            await asyncio.sleep(float(pause))
        await send({"type": "http.response.body", "body": f"{time.monotonic()}\n".encode(), "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def fail(scope, receive, send, word):
    raise RuntimeError(f"asked to fail: {word}")


async def outlast(scope, receive, send, seconds):
    """Begins its answer, which then has no timeout, and ends it when another generation has been live for a while."""
    mine = os.readlink(LIVE)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"out", "more_body": True})
    while os.readlink(LIVE) == mine:
        await asyncio.sleep(0.05)
    await asyncio.sleep(float(seconds))
    await send({"type": "http.response.body", "body": b"lasted"})


async def say(scope, receive, send, word):
    print(f"stdout {word}")
    print(f"stderr {word}", file=sys.stderr)
    logging.getLogger("contract").info("logging %s", word)
    await answer(send, "said")
