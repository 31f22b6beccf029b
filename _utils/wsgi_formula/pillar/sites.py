"""
Sites: which apps share nginx's server block, because they answer to the same hosts on one port.

This module is pure: it reads no file and starts nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import Problem
from . import edge_defaults
from .app import App
from .edge import METRICS_PORT
from .edge_defaults import TLS_HEADERS

TLS_DEFAULTS = {
    "certificate": "self_signed",
    "key": None,
    "listen": 443,
    "redirect": True,
    "http2": True,
    "http3": False,
    "hsts": 0,
    "hsts_subdomains": False,
    "hsts_preload": False,
}


# A file's name has 255 bytes at most; its ending, and a temporary name while it is written, need some of them.
MOST_STEM = 180


@dataclass(frozen=True)
class Site:
    """
    One server block of nginx.

    id : str
        The name of its files: the first of its domains, or ``default``, and its port. A long domain is cut, and a
        hash follows.
    listen : int
        The port of plain HTTP.
    domains : tuple of str
        Its hosts; none for the default site, which has every host that no other site has.
    apps : tuple of str
        The names of its apps.
    tls : dict or None
        Its TLS settings, a value for each key of ``TLS_DEFAULTS``.
    redirect_domains : tuple of str
        Hosts that are redirected to the first of ``domains``.
    """

    id: str
    listen: int
    domains: tuple[str, ...]
    apps: tuple[str, ...]
    tls: dict[str, Any] | None
    redirect_domains: tuple[str, ...]

    @property
    def certificate_names(self) -> list[str]:
        """The host names that its certificate has to cover."""
        return [*self.domains, *self.redirect_domains] or ["localhost"]

    @property
    def ports(self) -> dict[int, bool]:
        """Its ports, and whether each has TLS."""
        return {self.listen: False, **({self.tls["listen"]: True} if self.tls else {})}


def tls_key(site: Site, apps: Mapping[str, App]) -> str:
    """Return the pillar key of the TLS settings of a site, which one of its apps has."""
    name = next(name for name in site.apps if apps[name]["tls"])
    return f"wsgi:apps:{name}:tls"


def group(apps: Mapping[str, App]) -> tuple[dict[str, Site], list[Problem]]:
    """
    Return the sites of some apps.

    apps : dict
        Names to settings, as ``Settings.apps`` holds them.

    Returns the sites, ids to ``Site``, without the apps that clash; and the problems of the apps that clash.

    .. code-block:: python

        >>> group({"shop": app.replace(domains=["example.com"])})[0]["example.com_80"].apps
        ('shop',)
    """
    problems = _clashes(apps)
    clashing = {problem.app for problem in problems}
    members: dict[tuple, list[str]] = {}
    for name in sorted(apps):
        if name not in clashing:
            app = apps[name]
            members.setdefault((app["listen"], tuple(app["domains"])), []).append(name)
    sites = [_site(listen, domains, names, apps) for (listen, domains), names in members.items()]
    return {site.id: site for site in sites}, problems


def whole_tls(tls: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the TLS settings of an app with their defaults, or None where it has no TLS."""
    whole = {**TLS_DEFAULTS, **(tls or {"certificate": "none"})}
    return None if whole["certificate"] == "none" else whole


def whole_page(page: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the status page with its port: 80 with a domain, and 8079 on loopback."""
    return {**page, "listen": page["listen"] or (80 if page["domain"] else 8079)}


def port_clashes(apps: Mapping[str, App], page: Mapping[str, Any] | None, nginx: Mapping[str, Any]) -> list[Problem]:
    """
    Return the problems of apps that have a port of the formula's own on loopback.

    apps : dict
        Names to settings, as ``Settings.apps`` holds them.
    page : dict or None
        ``Settings.status_page``.
    nginx : dict
        ``Settings.nginx``.
    """
    own = {METRICS_PORT: "the metrics (wsgi:nginx:metrics)"} if nginx["metrics"] else {}
    if page and not page["domain"]:
        own[page["listen"]] = "the status page (wsgi:status_page:listen)"
    ports = [(name, "listen", app["listen"]) for name, app in apps.items()]
    ports += [(name, "tls:listen", app["tls"]["listen"]) for name, app in apps.items() if app["tls"]]
    return [_problem(name, key, f"port {port} is used by {own[port]}") for name, key, port in ports if port in own]


def page_clashes(page: Mapping[str, Any] | None, apps: Mapping[str, App], nginx: Mapping[str, Any]) -> list[Problem]:
    """
    Return the problems of the status page.

    The arguments are those of ``port_clashes``.
    """
    if not page:
        return []
    found = []
    if page["domain"] and not page["basic_auth"].get("users"):
        found.append(
            ("basic_auth:users", "missing; a status page without users is on loopback only, and has no domain")
        )
    if page["listen"] == METRICS_PORT and nginx["metrics"]:
        found.append(("listen", f"port {METRICS_PORT} is used by the metrics (wsgi:nginx:metrics)"))
    for name, app in apps.items() if page["domain"] else ():
        if app["listen"] == page["listen"] and page["domain"].lower() in _hosts(app):
            found.append(("domain", f"{page['domain']!r} on port {page['listen']} belongs to app {name} already"))
        if app["tls"] and app["tls"]["listen"] == page["listen"]:
            found.append(("listen", f"port {page['listen']} is used by app {name} for TLS (tls:listen)"))
    return [Problem(f"wsgi:status_page:{key}", message) for key, message in found]


def mounted(app: Mapping[str, Any], path: str) -> str:
    """
    Return a path of an app as a client sees it.

    .. code-block:: python

        >>> mounted({"mount": "/shop"}, "/static/")
        '/shop/static/'
    """
    return path if app["mount"] == "/" else app["mount"] + path


def _problem(name: str, key: str, message: str) -> Problem:
    """Return the problem of a key of an app."""
    return Problem(f"wsgi:apps:{name}:{key}", message)


def _site(listen: int, domains: tuple[str, ...], names: list[str], apps: Mapping[str, App]) -> Site:
    tls = next((apps[name]["tls"] for name in names if apps[name]["tls"]), None)
    redirected = dict.fromkeys(domain for name in names for domain in apps[name]["redirect_domains"])
    first = (domains or ("default",))[0].lower().replace("*", "_")
    if len(first) > MOST_STEM:
        first = f"{first[: MOST_STEM - 11]}-{hashlib.sha256(first.encode()).hexdigest()[:10]}"
    return Site(f"{first}_{listen}", listen, domains, tuple(names), tls, tuple(redirected))


def _clashes(apps: Mapping[str, App]) -> list[Problem]:
    """Return the problems of apps that nginx could not tell apart, or whose settings it could not apply together."""
    found: list[Problem] = []
    seen: dict[tuple, list[str]] = {}
    for name, app in apps.items():
        for domain in _hosts(app):
            for other in seen.setdefault((app["listen"], domain), []):
                for one, two in ((name, other), (other, name)):
                    problem = _clash(apps[one], apps[two], domain)
                    if problem and problem not in found:
                        found.append(problem)
            seen[app["listen"], domain].append(name)
    checks = (_redirect_clashes, _port_clashes, _path_clashes, _tls_clashes, _tls_problems)
    return found + [problem for check in checks for problem in check(apps)]


def _hosts(app: App) -> set[str | None]:
    """Return the lower-case hosts of an app, or None for the default site."""
    return {domain.lower() for domain in app["domains"]} or {None}


def _clash(app: App, other: App, domain: str | None) -> Problem | None:
    """Return the problem of an app with another app of the same host and port, or None where they go together."""
    where = f"{domain!r}" if domain else "the default site (no domains)"
    where += f" on port {app['listen']}"
    if app["mount"] == other["mount"]:
        at = "" if app["mount"] == "/" else f" at {app['mount']}"
        return _problem(app.name, "domains", f"{where}{at} belongs to app {other.name} already")
    too = f"{where} belongs to app {other.name} too"
    if app["domains"] != other["domains"]:
        return _problem(app.name, "domains", f"{too}; apps of one host need the same list of domains")
    if app["tls"] and other["tls"] and app["tls"] != other["tls"]:
        return _problem(app.name, "tls", f"{too}, whose tls differs; set it in one of them only")
    for key, header in TLS_HEADERS.items() if other["tls"] and not app["tls"] else ():
        written = edge_defaults.overridden(app, [header])
        if written and other["tls"][key]:
            return _problem(app.name, f"response_headers:{written[0]}", f"{too}, whose tls:{key} sets this header")
    return None


def _redirect_clashes(apps: Mapping[str, App]) -> list[Problem]:
    """Return the problems of hosts that cannot be redirected to the first of an app's domains."""
    owners = {(app["listen"], domain): name for name, app in apps.items() for domain in _hosts(app)}
    found: list[Problem] = []
    senders: dict[tuple[int, str], str] = {}
    for name, app in apps.items():
        for domain in app["redirect_domains"]:
            where = (app["listen"], domain.lower())
            sender = senders.setdefault(where, name)
            if where in owners:
                message = f"{domain!r} on port {app['listen']} is one of the domains of app {owners[where]}"
            elif not app["domains"]:
                message = f"{domain!r} cannot be redirected to an app without domains"
            elif app["domains"][0].startswith("*"):
                message = f"{domain!r} cannot be redirected to {app['domains'][0]!r}; put a complete host name first"
            elif app["domains"] != apps[sender]["domains"]:
                message = f"{domain!r} on port {app['listen']} is redirected by app {sender} already"
            else:
                continue
            found.append(_problem(name, "redirect_domains", message))
    return found


def _port_clashes(apps: Mapping[str, App]) -> list[Problem]:
    """Return the problems of ports that would have both plain HTTP and TLS."""
    plain = {app["listen"]: name for name, app in apps.items()}
    return [
        _problem(name, "tls", f"port {port} is used by app {plain[port]} for plain HTTP (listen)")
        for name, port in ((name, app["tls"]["listen"]) for name, app in apps.items() if app["tls"])
        if port in plain
    ]


def _path_clashes(apps: Mapping[str, App]) -> list[Problem]:
    """Return the problems of paths that two settings of a site have."""
    seen: dict[tuple, tuple[str, str]] = {}
    found: list[Problem] = []
    for name, app in apps.items():
        paths = [("mount", path) for path in dict.fromkeys((app["mount"], mounted(app, "/")))]
        paths += [(kind, mounted(app, prefix)) for kind in ("static", "internal") for prefix in app[kind]]
        for key, path in paths:
            other, other_key = seen.setdefault((app["listen"], tuple(app["domains"]), path), (name, key))
            # Two equal mounts are a problem of `domains`.
            if (other, other_key) != (name, key) and (key, other_key) != ("mount", "mount"):
                found.append(_problem(name, key, f"{path} is used by wsgi:apps:{other}:{other_key} already"))
                found.append(_problem(other, other_key, f"{path} is used by wsgi:apps:{name}:{key} too"))
    return found


def _tls_clashes(apps: Mapping[str, App]) -> list[Problem]:
    """Return the problems of sites of one host with different plain ports and the same TLS port."""
    owners: dict[tuple, tuple[str, tuple]] = {}
    found: list[Problem] = []
    for name, app in apps.items():
        for domain in _hosts(app) if app["tls"] else ():
            site, at = (app["listen"], tuple(app["domains"])), (app["tls"]["listen"], domain)
            other, other_site = owners.setdefault(at, (name, site))
            if site[0] != other_site[0]:
                where = repr(domain) if domain else "the default site (no domains)"
                message = f"{where} on port {at[0]} belongs to app {other}, which has another listen"
                found.append(_problem(name, "tls", message))
    return found


def _tls_problems(apps: Mapping[str, App]) -> list[Problem]:
    """Return the problems of certificates that an app cannot have."""
    found = []
    for name, app in apps.items():
        certificate = app["tls"] and app["tls"]["certificate"]
        if certificate == "acme":
            wild = [domain for domain in [*app["domains"], *app["redirect_domains"]] if domain.startswith("*")]
            if not app["domains"]:
                found.append(_problem(name, "tls:certificate", "acme needs domains to request a certificate for"))
            for domain in wild:
                message = f"acme cannot verify the wildcard {domain!r} over HTTP; use a certificate of your own"
                found.append(_problem(name, "tls:certificate", message))
        elif certificate and "PRIVATE KEY" in certificate:
            found.append(_problem(name, "tls:certificate", "contains a private key, which belongs into key"))
        elif certificate and certificate != "self_signed" and not app["tls"]["key"]:
            message = "missing; set the private key of the certificate: a path, the key itself, or sdb://…"
            found.append(_problem(name, "tls:key", message))
    return found
