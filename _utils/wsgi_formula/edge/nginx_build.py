"""The version and the modules of the installed nginx."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass

from .. import files
from ..host import Host
from ..paths import PATH, RUN

# The output of `nginx -V`, and the identity of that nginx.
BUILT = f"{RUN}/nginx.built"


@dataclass(frozen=True)
class NginxBuild:
    """
    What the installed nginx can do.

    version : tuple of int
    modules : tuple of str
        The modules that it was built with, as ``nginx -V`` has them, such as ``http_v2_module``, and those that the
        distribution's packages have it load.
    openssl : tuple of int
        The version of OpenSSL that it runs with.
    """

    version: tuple
    modules: tuple
    openssl: tuple = ()

    @property
    def http2_directive(self) -> bool:
        """Whether ``http2 on`` enables HTTP/2, and no longer an option of the port: https://nginx.org/en/CHANGES."""
        return self.version >= (1, 25, 1)


def installed_nginx(host: Host) -> NginxBuild:
    """
    Return the ``NginxBuild`` of the installed nginx, or of the newest where none is installed yet.

    ``nginx -V`` runs once, and again when nginx has been replaced. Call it by ``host.once(installed_nginx)``.
    """
    nginx = shutil.which("nginx", path=PATH)
    if nginx is None:
        return NginxBuild((99,), tuple(dynamic_modules(host)))
    identity = [nginx, os.stat(nginx).st_mtime, os.stat(nginx).st_size]
    known = files.read_json(BUILT, {"of": list, "version": str, "modules": list, "openssl": str}) or {}
    if known.get("of") != identity:
        printed = subprocess.run([nginx, "-V"], stderr=subprocess.PIPE, text=True, check=False).stderr
        version = re.search(r"nginx/([0-9.]+)", printed)
        known = {"of": identity, "version": version[1] if version else "0"}
        known["modules"] = re.findall(r"--with-(\w+_module)", printed)
        known["openssl"] = (re.findall(r"(?:built|running) with OpenSSL ([0-9.]+)", printed) or ["0"])[-1]
        if not host.opts.get("test"):
            files.ensure_dir(RUN, 0o755)
            files.write(BUILT, json.dumps(known) + "\n", 0o644)
    modules = (*known["modules"], *dynamic_modules(host))
    return NginxBuild(_numbers(known["version"]), modules, _numbers(known["openssl"]))


def dynamic_modules(host: Host) -> list:
    """Return the names of the modules that the distribution has nginx load, such as ``http_brotli_filter_module``."""
    folder = host.family["nginx"]["modules_dir"]
    texts = [files.read(f"{folder}/{file}") or "" for file in sorted(files.list_dir(folder))]
    return re.findall(r"^\s*load_module\s.*\bngx_(\w+)\.so", "\n".join(texts), re.MULTILINE)


def _numbers(version):
    return tuple(int(number) for number in version.split("."))
