"""An app with programs beside it, which record in its home when they start and end."""

import os
import signal
import sys
import time


def application(environ, start_response):
    length = int(environ.get("CONTENT_LENGTH") or 0)
    body = environ["wsgi.input"].read(length)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def tell(what):
    """Record an event with the monotonic time, which all processes of a machine share."""
    print(what)
    with open(os.path.expanduser("~/told"), "a") as file:
        print(f"{time.monotonic()} {sys.argv[1]} {os.environ['VERSION']} {os.getpid()} {what}", file=file)


def worker():
    """Run, and finish a task after SIGTERM."""
    if os.environ.get("QUEUE") == "none":
        raise SystemExit("there is no queue")
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(tell("stops")))
    tell("starts")
    while not told:
        time.sleep(0.05)
    time.sleep(1)
    tell("ends")


def stubborn():
    """Run, and ignore SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    tell("starts")
    time.sleep(3600)


def job():
    """Run as long as there is a file `hold`."""
    tell("starts")
    if os.path.exists(os.path.expanduser("~/hold")):
        tell("holds")
    while os.path.exists(os.path.expanduser("~/hold")):
        time.sleep(0.05)
    tell("ends")


if __name__ == "__main__":
    {"worker": worker, "stubborn": stubborn, "job": job}[sys.argv[1]]()
