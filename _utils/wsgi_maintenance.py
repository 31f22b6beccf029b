"""
Maintenance: an app's site answers 503 with a page as long as a file lies on the disk. Nothing is
reloaded for it, requests in flight are finished, and it outlasts highstates, changes and reboots.

nginx looks for the file with each request that finds no shortcut to the app's live sockets. A shortcut
that is missing, in maintenance or for any other reason, costs some microseconds and nothing else.
"""

import os

import wsgi_host
from wsgi_host import LIB, Problem

FOLDER = f"{LIB}/maintenance"
SHORTCUTS = f"{LIB}/shortcuts"
PLAIN_PAGE = "/usr/local/lib/wsgi/maintenance.html"


def marker(name):
    """The path of the file that puts an app into maintenance."""
    return f"{FOLDER}/{name}"


def page(name):
    """The path of an app's own page, which goes before the plain one."""
    return f"{FOLDER}/{name}.html"


def shortcut(name):
    """The path of the link to an app's live sockets that is there while it is not in maintenance."""
    return f"{SHORTCUTS}/{name}"


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
    """Have an app's shortcut be there, unless the app is in maintenance."""
    path, target = shortcut(name), f"../live/{name}"
    if not on(name) and not (os.path.islink(path) and os.readlink(path) == target):
        wsgi_host.folder(SHORTCUTS, 0o755)
        wsgi_host.link(target, path)
    if on(name):  # by another hand's word, too, that came meanwhile
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
    source = host.served(url) if url else None
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
