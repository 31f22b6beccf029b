"""
The status page: one HTML file with the apps, their health and their last changes.

Each run writes it at its end, even when states have failed, and so does each deploy. nginx serves it on loopback, or
with a password.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import pwd
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

from .. import files
from ..app import history
from ..app.secrets import htpasswd
from ..host import Host
from ..paths import LIB
from ..redact import without_credentials
from . import tls
from .certificate import parse
from .tls import OWN_LEFT

FOLDER = f"{LIB}/status"

PAGE = f"{FOLDER}/index.html"

CHANGES = 20  # the most that are shown, of all apps together

ERROR = 300  # the most characters of an error that are shown; `wsgi.history` has all of them

# The hash of the page's content, in the page, for the next run to compare.
CONTENT = re.compile(r'data-content="([0-9a-f]+)"')


def values(host: Host) -> dict | None:
    """Return the variables of nginx's templates for the page, a dict, or None without a status page."""
    page = host.settings.status_page
    if page is None:
        return None
    style = hashlib.sha256(host.render("status_page/style.css").encode()).digest()
    return {
        **page,
        "folder": FOLDER,
        "passwords": passwords_path(host),
        "style": f"sha256-{base64.b64encode(style).decode()}",
    }


def passwords(host: Host) -> str | None:
    """Return the content of the page's password file, or None for none."""
    page = host.settings.status_page
    users = page["basic_auth"].get("users") if page else None
    return htpasswd(host, "wsgi:status_page:basic_auth:users", users) if users else None


def passwords_path(host: Host) -> str:
    """Return the path of the page's password file, a name that no app can have."""
    return f"{host.family['nginx']['own_dir']}/private/_status.htpasswd"


def facts(host: Host, apps: Mapping[str, dict], failures: Iterable[tuple[str, str]] = ()) -> dict:
    """
    Return the content of the page, a dict for its template.

    apps : dict
        As ``status_for_page`` returns it.
    failures : iterable of (str, str)
        The ids and comments of states that have failed in this run.
    """
    return {
        "host": host.grains.get("id", "localhost"),
        "apps": {name: _app(host, name, status) for name, status in apps.items()},
        "problems": host.settings.messages,
        "failures": [(id, _first_line(comment)) for id, comment in failures],
        "changes": _changes(apps),
    }


def content(facts: Mapping[str, Any]) -> str:
    """Return a hash of a page's content without what differs each time, such as response times."""
    apps = {
        name: {fact: value for fact, value in app.items() if fact != "health"} for name, app in facts["apps"].items()
    }
    changes = [
        {fact: value for fact, value in each.items() if fact not in ("at", "times")} for each in facts["changes"]
    ]
    return files.digest({**facts, "apps": apps, "changes": changes})


def written() -> str | None:
    """Return the ``content`` of the page on the disk, or None."""
    found = CONTENT.search(files.read(PAGE) or "")
    return found and found[1]


def write(host: Host, facts: Mapping[str, Any]) -> None:
    """Write the page, so that only nginx can read it."""
    now = time.localtime()
    text = host.render(
        "status_page/index.html.jinja",
        content=content(facts),
        now={"iso": time.strftime("%Y-%m-%dT%H:%M:%S%z", now), "text": time.strftime("%Y-%m-%d %H:%M:%S %Z", now)},
        healthy=[name for name, app in facts["apps"].items() if app["live"] and app["health"]["ok"]],
        **facts,
    )
    group = pwd.getpwnam(host.family["nginx"]["user"]).pw_gid
    files.ensure_dir(LIB, 0o755)
    files.ensure_dir(FOLDER, 0o750, 0, group)
    files.write(PAGE, text, 0o640, 0, group)


def _app(host, name, status):
    app = host.settings.apps.get(name)
    return {
        **status,
        "links": _links(app) if app else [],
        "certificate": _certificate(host, name),
        "broken": name in host.settings.broken,
    }


def _certificate(host, name):
    """Return the day when the certificate of an app's site expires, and whether that is soon; None without one."""
    site = next((site for site in host.settings.sites.values() if name in site.apps and site.tls), None)
    with contextlib.suppress(OSError, ValueError):
        found = site and parse(files.read(tls.paths(host, site)[0]) or "")
        until = found and time.strftime("%Y-%m-%d", time.gmtime(found.until))
        return found and {"until": until, "soon": found.left() < OWN_LEFT}
    return None


def _links(app):
    """Return an app's hosts with their URLs; a wildcard has none."""
    scheme, port = ("https", app["tls"]["listen"]) if app["tls"] else ("http", app["listen"])
    end = ("" if (scheme, port) in (("http", 80), ("https", 443)) else f":{port}") + app["mount"]
    return [
        {"text": f"{domain}{end}".rstrip("/"), "url": None if domain.startswith("*") else f"{scheme}://{domain}{end}"}
        for domain in app["domains"]
    ]


def _changes(apps):
    """Return the last entries of all apps' histories, the newest first."""
    entries = [{**entry, "app": name} for name in apps for entry in history.entries(name)]
    entries.sort(key=lambda entry: entry["at"], reverse=True)
    return [_change(entry) for entry in entries[:CHANGES]]


def _change(entry):
    known = {fact: without_credentials(str(entry[fact])) for fact in ("source", "revision") if entry.get(fact)}
    return {
        "app": entry["app"],
        "event": entry["event"],
        "at": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry["at"])),
        "by": " ".join(str(entry.get("by", {}).get(fact) or "") for fact in ("user", "function")).strip(),
        "generation": entry.get("generation"),
        "server": entry.get("server"),
        "made_of": known.get("revision") or known.get("source"),
        "error": _first_line(entry.get("error", "")),
        "times": entry.get("times", 1),
    }


def _first_line(text):
    line = without_credentials(str(text).partition("\n")[0])
    return line if len(line) <= ERROR else f"{line[:ERROR]}…"
