"""Writes as many numbered lines to its log as the query says, a millisecond apart, and echoes the body."""

import os
import time


def application(environ, start_response):
    for number in range(int(environ["QUERY_STRING"] or 0)):
        os.write(2, b"line %d\n" % number)
        time.sleep(0.001)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))]
