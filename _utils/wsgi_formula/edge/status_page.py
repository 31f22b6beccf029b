"""
The status page: one file of HTML that tells of the apps, their health and what became of them.

It is written at the end of each run, however that went, and after each deploy; nginx serves it to
this machine alone, or to those who have a password.
"""

import base64
import contextlib
import hashlib
import pwd
import re
import time

from .. import files
from ..app import history
from ..app.secrets import htpasswd
from ..paths import LIB
from ..redact import without_credentials
from . import tls
from .tls import OWN_LEFT

FOLDER = f"{LIB}/status"

PAGE = f"{FOLDER}/index.html"

CHANGES = 20  # that are shown, of all apps

ERROR = 300  # characters of why a change failed; `wsgi.history` has the rest

# On the page, for the next run to compare with.
CONTENT = re.compile(r'data-content="([0-9a-f]+)"')


def values(host):
    """What nginx's templates know of the page: where it is and what it may load; None where there is to be none."""
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


def passwords(host):
    """Who may see the page: what is in nginx's file of that, or None."""
    page = host.settings.status_page
    users = page["basic_auth"].get("users") if page else None
    return htpasswd(host, "wsgi:status_page:basic_auth:users", users) if users else None


def passwords_path(host):
    """The path of that file; no app's can be called so."""
    return f"{host.family['nginx']['own_dir']}/private/_status.htpasswd"


def facts(host, apps, failures=()):
    """
    What the page tells.

    apps : dict
        What ``status_for_page`` says of them.
    failures : iterable of (str, str)
        What failed in this run: a state's id and its comment.

    Returns a dict.
    """
    return {
        "host": host.grains.get("id", "localhost"),
        "apps": {name: _app(host, name, status) for name, status in apps.items()},
        "problems": host.settings.messages,
        "failures": [(id, _first_line(comment)) for id, comment in failures],
        "changes": _changes(apps),
    }


def content(facts):
    """A hash of what a page tells that is not different each time; equal ones need no mention."""
    apps = {
        name: {fact: value for fact, value in app.items() if fact != "health"} for name, app in facts["apps"].items()
    }
    changes = [
        {fact: value for fact, value in each.items() if fact not in ("at", "times")} for each in facts["changes"]
    ]
    return files.digest({**facts, "apps": apps, "changes": changes})


def written():
    """The ``content`` of the page that is there, or None."""
    found = CONTENT.search(files.read(PAGE) or "")
    return found and found[1]


def write(host, facts):
    """Put the page in place, for nginx alone to read."""
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
    """Until when the certificate is good that an app's site has, and whether that is soon; None where there is none."""
    site = next((site for site in host.settings.sites.values() if name in site.apps and site.tls), None)
    with contextlib.suppress(OSError, ValueError):
        found = site and tls.parse(files.read(tls.paths(host, site)[0]) or "")
        until = found and time.strftime("%Y-%m-%d", time.gmtime(found.until))
        return found and {"until": until, "soon": found.left() < OWN_LEFT}
    return None


def _links(app):
    """Where an app is to be seen: its hosts, and their address where there is one."""
    scheme, port = ("https", app["tls"]["listen"]) if app["tls"] else ("http", app["listen"])
    end = ("" if (scheme, port) in (("http", 80), ("https", 443)) else f":{port}") + app["mount"]
    return [
        {"text": f"{domain}{end}".rstrip("/"), "url": None if domain.startswith("*") else f"{scheme}://{domain}{end}"}
        for domain in app["domains"]
    ]


def _changes(apps):
    """The last entries of all apps' histories, the newest first."""
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
