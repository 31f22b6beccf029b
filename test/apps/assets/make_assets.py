"""make_assets.py ONE: writes what a bundler makes for a release of that name, and some files that must not be served."""

import gzip
import hashlib
import os
import sys
from pathlib import Path

STATIC = Path("static")
content = f"/* {sys.argv[1]} */\n".encode()
style = f"app.{hashlib.sha256(content).hexdigest()[:12]}.css"
(STATIC / "inner").mkdir(parents=True)
(STATIC / style).write_bytes(content)
(STATIC / f"{style}.gz").write_bytes(gzip.compress(content))
(STATIC / "current").write_text(style)
(STATIC / "plain.css").write_bytes(content)
(STATIC / f"only-in-{sys.argv[1]}.txt").write_bytes(content)
(STATIC / "favicon.ico").write_bytes(b"icon")
(STATIC / ".env").write_text("only-the-app-knows")
(STATIC / "inner" / "named.css").symlink_to("../plain.css")
(STATIC / "inner" / "loop").symlink_to("..")
(STATIC / "inner" / "passwd").symlink_to("/etc/passwd")
(STATIC / "inner" / "etc").symlink_to("/etc")
os.chmod(STATIC / "plain.css", 0o600)
