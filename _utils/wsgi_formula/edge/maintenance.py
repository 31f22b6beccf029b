"""
Maintenance: an app's site answers 503 with a page as long as a file lies on the disk. Nothing is
reloaded for it, requests in flight are finished, and it outlasts highstates, changes and reboots.

nginx looks for the file with each request that finds no shortcut: a file that says what the live
generation speaks. A shortcut that is missing, in maintenance or for any other reason, costs some
microseconds and nothing else.
"""

import os

from .. import files
from ..errors import Problem
from ..paths import LIB

FOLDER = f"{LIB}/maintenance"

# A look at few folders: each costs.
FAST_PATHS = f"{LIB}/shortcuts"

# What tells nginx how to ask a live generation: wsgi/nginx/macros/pass.jinja.
MARKERS = ("uwsgi", "keepalive", "http", "workers")

PLAIN_PAGE = "/usr/local/lib/wsgi/maintenance.html"


def marker_path(name):
    """The path of the file that puts an app into maintenance."""
    return f"{FOLDER}/{name}"


def page_path(name):
    """The path of an app's own page, which goes before the plain one."""
    return f"{FOLDER}/{name}.html"


def fast_path_links(name):
    """The paths of the files that may be there while an app is not in maintenance, each by its marker's name."""
    return {marker: f"{FAST_PATHS}/{name}.{marker}" for marker in MARKERS}


def is_in_maintenance(name):
    """Whether an app is in maintenance."""
    return os.path.exists(marker_path(name))


def set_maintenance(name, wanted):
    """
    Put an app into maintenance, or out of it, if it isn't yet.

    name : str
        The app.
    wanted : bool
    """
    if not wanted:
        files.remove(marker_path(name))
    elif not is_in_maintenance(name):
        files.ensure_dir(FOLDER, 0o755)
        files.write(marker_path(name), "", 0o644)
    enable_fast_path(name)


def enable_fast_path(name):
    """Have the shortcuts to an app be its live generation's, unless the app is in maintenance."""
    for marker, path in fast_path_links(name).items():
        if _fits(name, marker) and not os.path.exists(path):
            files.ensure_dir(FAST_PATHS, 0o755)
            files.write(path, "", 0o644)
        if not _fits(name, marker):  # perhaps no more: another run may have changed what is live
            files.remove(path)


def _fits(name, marker):
    return not is_in_maintenance(name) and os.path.exists(f"{LIB}/live/{name}/{marker}")


def disable_fast_path(name):
    """Have nginx look into all that may be unusual with an app."""
    for path in fast_path_links(name).values():
        files.remove(path)


def pending(host, name):
    """
    What would have to change for an app's own page to be as pillar has it.

    host : Host
    name : str
        The app, one of ``host.settings.apps``.

    Returns a dict: empty, or of the page's path to the local path of its source, or to None where it
    is to be removed. Raises ``Problem`` where Salt does not serve it.
    """
    url, path = host.settings.apps[name]["maintenance"]["page"], page_path(name)
    source = host.served.file(url) if url else None
    if url and not source:
        key = f"wsgi:apps:{name}:maintenance:page"
        raise Problem(f"{key}: {url} is not served; is it below a folder in file_roots, or in gitfs?")
    return {} if _bytes(path) == (source and _bytes(source)) else {path: source}


def _bytes(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None
