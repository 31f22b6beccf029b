#!/usr/bin/env python3
"""Sends requests to the machine's apps through nginx, and lists their processes, for tests that run elsewhere.

Reads JSON lines and works on all of them at once: {"id": 1, "do": "ask", "with": {…}} is
answered by {"id": 1, "result": …} or {"id": 1, "error": "…"} as soon as it is done.
"""

import base64
import contextlib
import http.client
import json
import os
import pwd
import socket
import sys
import threading
import time

lock = threading.Lock()
PAGE = os.sysconf("SC_PAGE_SIZE")
MOMENT = 0.2  # seconds
PING = 9  # an opcode of https://www.rfc-editor.org/rfc/rfc6455#section-5.2


def ask(host, requests, port=80, timeout=30):
    """Send requests over one connection, each after the response to the one before."""
    with socket.create_connection(("127.0.0.1", port), timeout) as sock:
        return [exchange(sock, host, **request) for request in requests]


def exchange(sock, host, target="/", method="GET", headers=(), body="", size=0, chunked=False, expect=False):
    """Send one request and return its response. `body` and `target` are bytes decoded as latin-1."""
    content = body.encode("latin-1") or b"0123456789abcdef" * (size // 16)
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *(": ".join(header) for header in headers)]
    if chunked:
        lines.append("Transfer-Encoding: chunked")
    elif content or method in ("POST", "PUT"):
        lines.append(f"Content-Length: {len(content)}")
    if expect:
        lines.append("Expect: 100-continue")
    sent = time.monotonic()
    sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
    interim = expect and head(sock).split("\r\n")[0]
    for part in chunks(content) if chunked else [content]:
        sock.sendall(part)
    response = http.client.HTTPResponse(sock, method=method)
    response.begin()
    received, arrivals = b"", []
    while True:
        part = response.read1(65536)
        if not part:
            break
        arrivals.append(time.monotonic())
        received += part
    if response.length:
        raise ConnectionError(f"closed {response.length} bytes before the answer's end")
    return {
        "status": response.status,
        "headers": response.getheaders(),
        "body": received.decode("latin-1"),
        "interim": interim,
        "sent": sent,
        "arrivals": arrivals,
    }


def raw(text, port=80, timeout=3):
    """Send bytes, decoded as latin-1, and return all that comes back until nginx closes or is silent."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout) as sock, contextlib.suppress(OSError):
        sock.sendall(text.encode("latin-1"))
        for part in iter(lambda: sock.recv(65536), b""):
            received += part
    return received.decode("latin-1")


def head(sock):
    """Read up to an empty line, and nothing after it."""
    received = b""
    while not received.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        if not byte:
            raise ConnectionError(f"closed after {received!r}")
        received += byte
    return received.decode("latin-1")


def chunks(content, size=60_000):
    for start in range(0, len(content), size):
        part = content[start : start + size]
        yield b"%x\r\n%s\r\n" % (len(part), part)
    yield b"0\r\n\r\n"


def websocket(host, messages, target="/", port=80, timeout=10):
    """Send texts to a WebSocket app, each after the answer to the one before, and return the answers (RFC 6455)."""
    key = base64.b64encode(os.urandom(16)).decode()
    lines = [f"GET {target} HTTP/1.1", f"Host: {host}", "Connection: Upgrade", "Upgrade: websocket"]
    lines += ["Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Protocol: contract"]
    with socket.create_connection(("127.0.0.1", port), timeout) as sock:
        sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        answered = head(sock).split("\r\n")
        answers = []
        if " 101 " in answered[0]:
            for message in messages:
                content, mask = message.encode(), os.urandom(4)
                # The length has its shortest form, which some servers require.
                assert len(content) < 126, message
                sock.sendall(
                    bytes([0x81, 0x80 | len(content)])
                    + mask
                    + bytes(byte ^ mask[at % 4] for at, byte in enumerate(content))
                )
                answers.append(frame(sock))
    return {"head": answered, "answers": answers}


def frame(sock):
    """Return opcode and text of the next frame that is not a ping; for a close, 8 and its code."""
    opcode = PING
    while opcode == PING:
        first, length = exactly(sock, 2)
        if length >= 126:
            length = int.from_bytes(exactly(sock, 2 if length == 126 else 8), "big")
        content = exactly(sock, length)
        opcode = first & 15
    return [opcode, int.from_bytes(content[:2], "big") if opcode == 8 else content.decode()]


def exactly(sock, count):
    received = b""
    while len(received) < count:
        part = sock.recv(count - len(received))
        if not part:
            raise ConnectionError(f"closed after {received!r}")
        received += part
    return received


def processes(user):
    """Return a user's processes, PID to resident MiB, without short ones: Passenger runs ps every five seconds."""
    before = look(user)
    time.sleep(MOMENT)
    return {pid: mib for pid, mib in look(user).items() if pid in before}


def look(user):
    uid = pwd.getpwnam(user).pw_uid
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as stat, open(f"/proc/{pid}/statm") as statm:
                if os.stat(f"/proc/{pid}").st_uid == uid and stat.read().rpartition(")")[2].split()[0] not in "ZX":
                    found[pid] = int(statm.read().split()[1]) * PAGE / 2**20
        except OSError:  # it just ended
            pass
    return found


def folders(path):
    return [entry.name for entry in os.scandir(path) if entry.is_dir()]


WORK = {function.__name__: function for function in (ask, raw, websocket, processes, folders)}


def work(line):
    order = json.loads(line)
    try:
        outcome = {"result": WORK[order["do"]](**order["with"])}
    except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
        outcome = {"error": f"{type(error).__name__}: {error}"}
    with lock:
        print(json.dumps({"id": order["id"], **outcome}), flush=True)


if __name__ == "__main__":
    for line in sys.stdin:
        threading.Thread(target=work, args=[line], daemon=True).start()
