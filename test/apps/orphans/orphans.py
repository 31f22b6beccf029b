"""An app whose workers leave a process behind that has none of their marks: no parent, session or environment."""

import subprocess

subprocess.Popen(["sleep", "98765"], env={}, start_new_session=True)


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "3")])
    return [b"ok\n"]
