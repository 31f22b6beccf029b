"""A package index on loopback: package_index.py FOLDER PORT serves what `make` put into FOLDER.

/<name>/simple/ is the index (PEP 503) of the folder FOLDER/<name>. If FOLDER/credentials exists, requests need them;
FOLDER/delay holds the seconds to wait before a package is sent; each answered request is written to FOLDER/requests.
"""

import base64
import hashlib
import io
import sys
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def make(folder, name, version, requires=(), text=""):
    """Write a wheel with one module, and return its SHA-256."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {each}\n" for each in requires)
    files = {
        f"{name}.py": text or f"version = {version!r}\n",
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, contents in files.items():
            archive.writestr(zipfile.ZipInfo(path), contents)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}-{version}-py3-none-any.whl").write_bytes(wheel.getvalue())
    return hashlib.sha256(wheel.getvalue()).hexdigest()


class Index(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root = None

    def do_GET(self):
        credentials = self.root / "credentials"
        if credentials.exists():
            wanted = base64.b64encode(credentials.read_bytes().strip()).decode()
            if self.headers["Authorization"] != f"Basic {wanted}":
                return self._answer(401, b"", ("WWW-Authenticate", "Basic realm=index"))
        with open(self.root / "requests", "a") as log:
            log.write(f"{self.path}\n")
        index, _, rest = self.path.strip("/").partition("/")
        if rest.startswith("simple"):
            name = rest[len("simple") :].strip("/")
            found = [each.name for each in (self.root / index).glob("*") if each.name.split("-")[0] == name]
            links = "".join(f'<a href="/{index}/files/{each}">{each}</a>\n' for each in sorted(found))
            return self._answer(200 if found else 404, f"<!DOCTYPE html><body>{links}</body>".encode())
        path = self.root / index / rest.rpartition("/")[2]
        if not path.is_file():
            return self._answer(404, b"")
        delay = self.root / "delay"
        time.sleep(float(delay.read_text()) if delay.exists() else 0)
        return self._answer(200, path.read_bytes(), ("Content-Type", "application/octet-stream"))

    do_HEAD = do_GET

    def _answer(self, status, body, header=("Content-Type", "text/html")):
        self.send_response(status)
        self.send_header(*header)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    Index.root = Path(sys.argv[1])
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Index).serve_forever()
