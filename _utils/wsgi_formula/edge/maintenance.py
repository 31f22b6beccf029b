"""
Maintenance, and the fast path of requests that need no check.

An app is in maintenance while a marker file exists: its site answers 503 with a page. This needs no reload, requests
in flight are finished, and it outlasts highstates, changes and reboots.

The fast path of an app is a file that has the protocol of its live generation in its name. While it exists, nginx
passes requests on without looking for the maintenance marker. Without it, a request takes some microseconds longer.
"""

from __future__ import annotations

import os

from .. import files
from ..errors import WsgiError
from ..host import Host
from ..paths import LIB

FOLDER = f"{LIB}/maintenance"

# One folder for all apps, because each part of a path takes nginx time to look up.
FAST_PATHS = f"{LIB}/shortcuts"

# The names of the files by which nginx chooses the protocol: wsgi/nginx/macros/pass.jinja.
MARKERS = ("uwsgi", "keepalive", "http", "workers")

PLAIN_PAGE = "/usr/local/lib/wsgi/maintenance.html"


def marker_path(name: str) -> str:
    """Return the path of the file that puts an app into maintenance."""
    return f"{FOLDER}/{name}"


def page_path(name: str) -> str:
    """Return the path of an app's own page, which takes precedence over ``PLAIN_PAGE``."""
    return f"{FOLDER}/{name}.html"


def fast_paths(name: str) -> dict[str, str]:
    """Return the paths of the fast path files of an app, by the names in ``MARKERS``."""
    return {marker: f"{FAST_PATHS}/{name}.{marker}" for marker in MARKERS}


def is_in_maintenance(name: str) -> bool:
    """Return whether an app is in maintenance."""
    return os.path.exists(marker_path(name))


def set_maintenance(name: str, enabled: bool) -> None:
    """Put an app into maintenance, or take it out of it."""
    if not enabled:
        files.remove(marker_path(name))
    elif not is_in_maintenance(name):
        files.ensure_dir(FOLDER, 0o755)
        files.write(marker_path(name), "", 0o644)
    enable_fast_path(name)


def enable_fast_path(name: str) -> None:
    """Make the fast path files of an app those of its live generation, or remove them in maintenance."""
    for marker, path in fast_paths(name).items():
        if _fits(name, marker) and not os.path.exists(path):
            files.ensure_dir(FAST_PATHS, 0o755)
            files.write(path, "", 0o644)
        if not _fits(name, marker):  # perhaps only since then: another run may have changed the live generation
            files.remove(path)


def _fits(name, marker):
    return not is_in_maintenance(name) and os.path.exists(f"{LIB}/live/{name}/{marker}")


def disable_fast_path(name: str) -> None:
    """Have nginx make all checks for each request to an app."""
    for path in fast_paths(name).values():
        files.remove(path)


def page_changes(host: Host, name: str) -> dict:
    """
    Return the change that an app's own maintenance page needs.

    Returns an empty dict, or the page's path to the local path of its source, or to None for a page to be removed.
    Raises ``WsgiError`` where Salt does not serve the source.
    """
    url, path = host.settings.apps[name]["maintenance"]["page"], page_path(name)
    source = host.served.file(url) if url else None
    if url and not source:
        key = f"wsgi:apps:{name}:maintenance:page"
        raise WsgiError(f"{key}: {url} is not served; is it below a folder in file_roots, or in gitfs?")
    return {} if _bytes(path) == (source and _bytes(source)) else {path: source}


def _bytes(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None
