"""A second version of the example: answers its server and its environment variables."""

import os


def application(environ, start_response):
    # uWSGI alone tells its name elsewhere.
    server = environ.get("SERVER_SOFTWARE") or f"uWSGI {environ.get('uwsgi.version', b'').decode()}"
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    if not body:
        body = f"{os.environ.get('GREETING', 'hello')} from {server}\n".encode()
    start_response(
        "200 OK",
        [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))],
    )
    return [body]
