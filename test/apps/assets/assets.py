"""Names files that nginx serves: the style sheet of its release, an internal file, an upload; and redirects to itself."""

import os
from pathlib import Path

STYLE = Path("static/current").read_text().strip()
SECRET = "only-the-app-knows"


def application(environ, start_response):
    path, mount = environ["PATH_INFO"], environ.get("SCRIPT_NAME", "")
    headers = [("Content-Type", "text/plain")]
    status, body = "200 OK", f"{mount}/static/{STYLE}"
    if path.startswith("/download/"):
        headers.append(("X-Accel-Redirect", f"{mount}/protected/{path[len('/download/') :]}"))
    elif path == "/sent-on":
        headers.append(("X-Accel-Redirect", f"{mount}/"))
    elif path.startswith("/upload/"):
        folder = Path(os.environ["HOME"], "media", "2026")
        folder.mkdir(exist_ok=True)
        folder.joinpath(path[len("/upload/") :]).write_bytes(environ["wsgi.input"].read())
    elif path not in ("/", "/healthz"):
        status, body = "404 Not Found", "not the app's"
    start_response(status, headers)
    return [body.encode()]
