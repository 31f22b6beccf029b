"""
Maintenance: an app's site answers 503 with a page as long as a file lies on the disk. Nothing is
reloaded for it, requests in flight are finished, and it outlasts highstates, changes and reboots.

nginx looks for the file with each request that finds no shortcut: a file that says what the live
generation speaks. A shortcut that is missing, in maintenance or for any other reason, costs some
microseconds and nothing else.
"""

import os

import wsgi_host
from wsgi_host import LIB, Problem

FOLDER = f"{LIB}/maintenance"
# A look at few folders: each costs.
SHORTCUTS = f"{LIB}/shortcuts"
# What tells nginx how to ask a live generation: wsgi/nginx/macros/pass.jinja.
MARKERS = ("uwsgi", "keepalive", "http", "workers")
PLAIN_PAGE = "/usr/local/lib/wsgi/maintenance.html"


def marker(name):
    """The path of the file that puts an app into maintenance."""
    return f"{FOLDER}/{name}"


def page(name):
    """The path of an app's own page, which goes before the plain one."""
    return f"{FOLDER}/{name}.html"


def shortcuts(name):
    """The paths of the files that may be there while an app is not in maintenance, each by its marker's name."""
    return {marker: f"{SHORTCUTS}/{name}.{marker}" for marker in MARKERS}


def on(name):
    """Whether an app is in maintenance."""
    return os.path.exists(marker(name))


def switch(name, wanted):
    """
    Put an app into maintenance, or out of it, if it isn't yet.

    name : str
        The app.
    wanted : bool
    """
    if not wanted:
        wsgi_host.remove(marker(name))
    elif not on(name):
        wsgi_host.folder(FOLDER, 0o755)
        wsgi_host.write(marker(name), "", 0o644)
    clear(name)


def clear(name):
    """Have the shortcuts to an app be its live generation's, unless the app is in maintenance."""
    for marker, path in shortcuts(name).items():
        if _fits(name, marker) and not os.path.exists(path):
            wsgi_host.folder(SHORTCUTS, 0o755)
            wsgi_host.write(path, "", 0o644)
        if not _fits(name, marker):  # perhaps no more: another run may have changed what is live
            wsgi_host.remove(path)


def _fits(name, marker):
    return not on(name) and os.path.exists(f"{LIB}/live/{name}/{marker}")


def block(name):
    """Have nginx look into all that may be unusual with an app."""
    for path in shortcuts(name).values():
        wsgi_host.remove(path)


def pending(host, name):
    """
    What would have to change for an app's own page to be as pillar has it.

    host : wsgi_host.Host
    name : str
        The app, one of ``host.settings.apps``.

    Returns a dict: empty, or of the page's path to the local path of its source, or to None where it
    is to be removed. Raises ``Problem`` where Salt does not serve it.
    """
    url, path = host.settings.apps[name]["maintenance"]["page"], page(name)
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
