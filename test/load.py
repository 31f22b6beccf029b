#!/usr/bin/env python3
"""Sends requests to 127.0.0.1, never retries, and reports those that were lost.

    python3 load.py --host hello.example.com --clients 8 --seconds 20 --report /tmp/report.json

Runs inside the machine under test, on its own Python (3.9 or newer). Ends after --seconds or
--requests, or when the file --stop appears. Prints `sending` once every client has had its first
outcome. The report:

    {"seconds": 20.1, "requests": 9120, "lost": 2, "statuses": {"200": 9118},
     "kinds": {"reset": 1, "stale-keepalive": 1},
     "failures": [{"time": 1712345678.901, "mode": "close-post", "kind": "reset", "reason": "…"}]}

`statuses` counts the right responses, `lost` the requests without one; `failures` details the first 1,000. The kinds:

    connect          no connection
    eof, reset       the connection ended before any part of the response came
    stale-keepalive  the same, on a connection that had served before and was not announced to close
    truncated        the response ended too early
    timeout          nothing for --timeout seconds
    status           another status than --statuses
    body             the response to a POST, of status 200, does not contain what was sent
    protocol         not HTTP
"""

import argparse
import collections
import http.client
import itertools
import json
import os
import socket
import ssl
import threading
import time
import uuid

MODES = ("keepalive-get", "keepalive-post", "close-get", "close-post")
DETAILED = 1000


class Lost(Exception):
    """A request without a right response: Lost(kind, reason)."""


class TLSConnection(http.client.HTTPConnection):
    """A connection that trusts any certificate and sends the host's name for SNI."""

    def __init__(self, name, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.name = name
        self.context = ssl._create_unverified_context()

    def connect(self):
        super().connect()
        plain, self.sock = self.sock, None
        self.sock = self.context.wrap_socket(plain, server_hostname=self.name)


class Client(threading.Thread):
    """A client that sends one request after the other in one mode until the load ends."""

    def __init__(self, load, mode):
        super().__init__(daemon=True)
        self.load = load
        self.mode = mode
        self.header, _, self.method = mode.upper().partition("-")
        address = {"host": "127.0.0.1", "port": load.options.port, "timeout": load.options.timeout}
        tls = load.options.tls
        self.connection = TLSConnection(tls, **address) if tls else http.client.HTTPConnection(**address)

    def run(self):
        while self.load.goes_on():
            try:
                self.load.count(self, status=self.request())
            except Lost as lost:
                self.connection.close()
                self.load.count(self, *lost.args)
                time.sleep(0.01)  # a server that is down is not worth all of the processor
            time.sleep(self.load.options.pause)
        self.connection.close()

    def request(self):
        """Send one request and return its status; raise Lost unless the response is right."""
        reused = self.connection.sock is not None  # http.client drops a connection announced to close
        if not reused:
            try:
                self.connection.connect()
            except OSError as error:
                raise Lost("connect", repr(error)) from error
        sent = f"{uuid.uuid4()} " * 20 if self.method == "POST" else ""
        headers = {
            "Host": self.load.options.host,
            "Connection": "close" if self.header == "CLOSE" else "keep-alive",
        }
        try:
            self.connection.request(self.method, self.load.options.path, sent or None, headers)
            answer = self.connection.getresponse()
        except socket.timeout as error:
            raise Lost("timeout", f"no answer in {self.load.options.timeout} s") from error
        except OSError as error:
            eof = isinstance(error, http.client.RemoteDisconnected)
            raise Lost("stale-keepalive" if reused else "eof" if eof else "reset", repr(error)) from error
        except http.client.HTTPException as error:
            raise Lost("protocol", repr(error)) from error
        try:
            received = answer.read().decode(errors="replace")
        except socket.timeout as error:
            raise Lost("timeout", f"half an answer in {self.load.options.timeout} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise Lost("truncated", repr(error)) from error
        if self.header == "CLOSE":
            self.connection.close()
        if answer.status not in self.load.options.statuses:
            raise Lost("status", f"{answer.status} {answer.reason}")
        if answer.status == 200 and sent not in received:
            raise Lost("body", f"sent {len(sent)} bytes, got {len(received)} others: {received[:80]!r}")
        return answer.status


class Load:
    """All clients together, and the counts of their outcomes."""

    def __init__(self, options):
        self.options = options
        self.clients = [Client(self, mode) for mode in itertools.islice(itertools.cycle(options.mode), options.clients)]
        self.lock = threading.Lock()
        self.silent = set(self.clients)
        self.requests = 0
        self.statuses = collections.Counter()
        self.kinds = collections.Counter()
        self.failures = []

    def run(self):
        started = time.monotonic()
        self.deadline = started + self.options.seconds
        for client in self.clients:
            client.start()
        for client in self.clients:
            client.join()
        return {
            "seconds": round(time.monotonic() - started, 3),
            "requests": self.requests,
            "lost": sum(self.kinds.values()),
            "statuses": self.statuses,
            "kinds": self.kinds,
            "failures": self.failures,
        }

    def goes_on(self):
        return (
            time.monotonic() < self.deadline
            and self.requests < self.options.requests
            and not (self.options.stop and os.path.exists(self.options.stop))
        )

    def count(self, client, kind=None, reason=None, status=None):
        with self.lock:
            self.requests += 1
            if status:
                self.statuses[status] += 1
            if client in self.silent:
                self.silent.remove(client)
                if not self.silent:
                    print("sending", flush=True)
            if kind:
                self.kinds[kind] += 1
                if len(self.failures) < DETAILED:
                    self.failures.append({"time": time.time(), "mode": client.mode, "kind": kind, "reason": reason})


def modes(text):
    chosen = MODES if text == "mixed" else text.split(",")
    for mode in chosen:
        if mode not in MODES:
            raise argparse.ArgumentTypeError(f"{mode!r} is not mixed, {', '.join(MODES)}")
    return chosen


def statuses(text):
    return [int(status) for status in text.split(",")]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--host", default="127.0.0.1", help="the Host header")
    parser.add_argument("--port", type=int, default=80)
    parser.add_argument("--tls", metavar="NAME", help="speak TLS, and ask for this host's certificate")
    parser.add_argument("--path", default="/", help="answers 200 to a GET, and to a POST with its body")
    parser.add_argument("--statuses", type=statuses, default=[200], help="what is right, such as 200,503")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--mode", type=modes, default="mixed", help=f"mixed, or some of {','.join(MODES)}")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--requests", type=int, default=10**6, help="end after about so many")
    parser.add_argument("--timeout", type=float, default=60, help="seconds to wait for the server")
    parser.add_argument("--pause", type=float, default=0, help="seconds between two requests of a client")
    parser.add_argument("--stop", metavar="FILE", help="end when this file appears")
    parser.add_argument("--report", metavar="FILE", default="/dev/stdout")
    options = parser.parse_args()
    report = Load(options).run()
    with open(options.report, "w") as file:
        json.dump(report, file, indent=2)


if __name__ == "__main__":
    main()
