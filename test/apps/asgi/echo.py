"""An ASGI app that answers its scope, echoes bodies, and does what the query string says."""

import asyncio
import json
import os
import time
from urllib.parse import parse_qs


async def application(scope, receive, send):
    await {"lifespan": lifespan, "websocket": websocket, "http": http}[scope["type"]](scope, receive, send)


async def lifespan(scope, receive, send):
    while True:
        message = await receive()
        print(f"{message['type']} of {os.getpid()}", flush=True)
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
        if "state" in scope:
            scope["state"]["started"] = True


async def websocket(scope, receive, send):
    """Sends back each text, and who it is to those who ask `pid`."""
    await receive()
    await send({"type": "websocket.accept"})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            print(f"websocket.disconnect with {message.get('code')} in {os.getpid()}", flush=True)
            return
        text = message.get("text")
        answer = {"pid": str(os.getpid()), "scope": json.dumps(seen(scope))}.get(text, text)
        await send({"type": "websocket.send", "text": answer})


async def http(scope, receive, send):
    body = await body_of(receive)
    query = {name: values[0] for name, values in parse_qs(scope["query_string"].decode()).items()}
    await asyncio.sleep(float(query.get("sleep", 0)))
    time.sleep(float(query.get("block", 0)))  # noqa: ASYNC251 - it is asked to block
    if "raise" in query:
        raise RuntimeError(query["raise"])
    while "stubborn" in query:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            print("not cancelled", flush=True)
    blocks = [body or json.dumps(seen(scope)).encode()]
    if "stream" in query:
        blocks = [b"%d\n" % number for number in range(int(query["stream"]))]
    length = [(b"content-length", str(len(blocks[0])).encode())] if len(blocks) == 1 else []
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json"), *length]}
    )
    for block in blocks:
        await send({"type": "http.response.body", "body": block, "more_body": True})
        if len(blocks) > 1:
            await asyncio.sleep(0.5)
    await send({"type": "http.response.body", "body": b""})


async def body_of(receive):
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


def seen(scope):
    return {
        "pid": os.getpid(),
        "started": scope.get("state", {}).get("started"),
        "client": scope["client"],
        "headers": {name.decode(): value.decode() for name, value in scope["headers"]},
        **{name: scope.get(name) for name in ("type", "scheme", "path", "root_path", "http_version")},
        "query_string": scope["query_string"].decode(),
    }
