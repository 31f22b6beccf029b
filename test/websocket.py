#!/usr/bin/env python3
"""A WebSocket client with the standard library: sends texts, stays, and prints what comes back as lines of JSON.

websocket.py --text hello --stay 5 http://127.0.0.1/ prints
{"after": 0.012, "status": 101}
{"after": 0.015, "text": "hello"}
{"after": 3.2, "close": 1012}
"""

import argparse
import base64
import json
import os
import socket
import struct
import sys
import time
from urllib.parse import urlsplit

CONTINUATION, TEXT, CLOSE, PING, PONG = 0, 1, 8, 9, 10  # opcodes: https://www.rfc-editor.org/rfc/rfc6455#section-5.2


class Client:
    def __init__(self, url, host):
        self.started = time.monotonic()
        parts = urlsplit(url)
        self.sock = socket.create_connection((parts.hostname, parts.port or 80), 10)
        self.received = b""
        self.text = b""
        key = base64.b64encode(os.urandom(16)).decode()
        self.sock.sendall(
            f"GET {parts.path or '/'} HTTP/1.1\r\nHost: {host or parts.netloc}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        while b"\r\n\r\n" not in self.received:
            self._receive()
        head, _, self.received = self.received.partition(b"\r\n\r\n")
        self.status = int(head.split()[1])

    def tell(self, **what):
        print(json.dumps({"after": round(time.monotonic() - self.started, 3), **what}), flush=True)

    def send(self, opcode, payload):
        mask = os.urandom(4)
        size = len(payload)
        length = bytes([0x80 | size]) if size < 126 else struct.pack("!BQ", 0x80 | 127, size)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        self.sock.sendall(bytes([0x80 | opcode]) + length + mask + masked)

    def read(self):
        """Return the next frame: whether it is the last of a message, opcode, payload; servers do not mask."""
        while True:
            size, start = self.received[1:2], 2
            if size == b"\x7e":
                size, start = self.received[2:4], 4
            elif size == b"\x7f":
                size, start = self.received[2:10], 10
            end = start + int.from_bytes(size, "big")
            if len(self.received) >= max(start, end) and size:
                frame, self.received = self.received[:end], self.received[end:]
                return frame[0] & 0x80, frame[0] & 0x0F, frame[start:]
            self._receive()

    def _receive(self):
        received = self.sock.recv(65536)
        if not received:
            raise EOFError
        self.received += received

    def until(self, deadline, wanted=False):
        """Print what comes until a text, if one is wanted, or the deadline. Return whether the connection stays open."""
        while time.monotonic() < deadline:
            self.sock.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                last, opcode, payload = self.read()
            except socket.timeout:
                return not wanted
            except (EOFError, OSError):
                self.tell(close=None)
                return False
            if opcode == PING:
                self.send(PONG, payload)
                self.tell(ping=True)
            elif opcode == CLOSE:
                self.tell(close=struct.unpack("!H", payload[:2])[0] if payload else 1005)
                self.send(CLOSE, payload[:2])
                return False
            else:
                self.text += payload
            if last and opcode in (TEXT, CONTINUATION):
                self.tell(text=self.text.decode())
                self.text = b""
                if wanted:
                    return True
        return not wanted


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--host", help="the Host header")
    parser.add_argument("--text", action="append", default=[], help="sent before and after the stay")
    parser.add_argument("--stay", type=float, default=0, help="seconds without a word")
    options = parser.parse_args()
    client = Client(options.url, options.host)
    client.tell(status=client.status)
    if client.status != 101:
        sys.exit(1)
    for stay in [0, options.stay] if options.stay else [0]:
        if not client.until(time.monotonic() + stay):
            sys.exit(2)
        for text in options.text:
            client.send(TEXT, text.encode())
            if not client.until(time.monotonic() + 10, wanted=True):
                sys.exit(2)
    client.send(CLOSE, struct.pack("!H", 1000))
    client.tell(left=True)


if __name__ == "__main__":
    main()
