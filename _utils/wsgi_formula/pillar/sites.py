"""
Sites: which apps share nginx's server block, because they answer to the same hosts on one port.

This module is pure: it reads no file and starts nothing.
"""

import hashlib
from dataclasses import dataclass

from . import edge_defaults
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


# A file's name has 255 bytes at most, of which its ending and what is added while it is written need some.
MOST_STEM = 180


@dataclass(frozen=True)
class Site:
    """
    One server block of nginx.

    id : str
        Names its files: the first of its domains, or ``default``, and its port. A long domain is cut, and has a
        hash behind it.
    listen : int
        The port of plain HTTP.
    domains : tuple of str
        The hosts that it answers to; none: all that no other site does.
    apps : tuple of str
        The names of its apps.
    tls : dict or None
        How it is reached over TLS: a value for each key of ``TLS_DEFAULTS``.
    redirect_domains : tuple of str
        Hosts that are sent to the first of ``domains``.
    """

    id: str
    listen: int
    domains: tuple
    apps: tuple
    tls: dict
    redirect_domains: tuple

    @property
    def certificate_names(self) -> list:
        """The host names that its certificate has to cover."""
        return [*self.domains, *self.redirect_domains] or ["localhost"]

    @property
    def ports(self):
        """Its ports, a dict of them to whether they speak TLS."""
        return {self.listen: False, **({self.tls["listen"]: True} if self.tls else {})}


def tls_key(site: Site, apps: dict) -> str:
    """Return the pillar key of the TLS settings of a site, which one of its apps has."""
    name = next(name for name in site.apps if apps[name]["tls"])
    return f"wsgi:apps:{name}:tls"


def group(apps):
    """
    The sites that some apps make.

    apps : dict
        Names to settings, as ``Settings.apps`` holds them.

    Returns two: the sites, a dict of their ids to ``Site``, without the apps that clash; and the
    problems, a list of an app's name, one of its keys, and a sentence's end.

    .. code-block:: python

        >>> group({"shop": {**app, "domains": ["example.com"]}})[0]["example.com_80"].apps
        ('shop',)
    """
    problems = _clashes(apps)
    clashing = {name for name, _, _ in problems}
    members = {}
    for name in sorted(apps):
        if name not in clashing:
            app = apps[name]
            members.setdefault((app["listen"], tuple(app["domains"])), []).append(name)
    sites = [_site(listen, domains, names, apps) for (listen, domains), names in members.items()]
    return {site.id: site for site in sites}, problems


def whole_tls(said):
    """What an app says of TLS with its defaults, or None where it has none."""
    tls = {**TLS_DEFAULTS, **(said or {"certificate": "none"})}
    return None if tls["certificate"] == "none" else tls


def whole_page(said):
    """Where the status page is, with a port: on loopback one of its own, for others HTTP's."""
    return {**said, "listen": said["listen"] or (80 if said["domain"] else 8079)}


def port_clashes(apps, page, nginx):
    """
    The apps that want a port on which the formula itself answers on loopback.

    apps : dict
        Names to settings, as ``Settings.apps`` holds them.
    page : dict or None
        ``Settings.status_page``.
    nginx : dict
        ``Settings.nginx``.

    Returns problems as ``group`` does.
    """
    own = {METRICS_PORT: "the metrics' (wsgi:nginx:metrics)"} if nginx["metrics"] else {}
    if page and not page["domain"]:
        own[page["listen"]] = "the status page's (wsgi:status_page:listen)"
    ports = [(name, "listen", app["listen"]) for name, app in apps.items()]
    ports += [(name, "tls:listen", app["tls"]["listen"]) for name, app in apps.items() if app["tls"]]
    return [(name, key, f"port {port} is {own[port]}") for name, key, port in ports if port in own]


def page_clashes(page, apps, nginx):
    """
    What keeps the status page from where it is to be: a list of one of its keys and a sentence's end.

    Takes what ``port_clashes`` takes.
    """
    if not page:
        return []
    found = []
    if page["domain"] and not page["basic_auth"].get("users"):
        found.append(("basic_auth:users", "missing; without them it is for this machine alone, with no domain"))
    if page["listen"] == METRICS_PORT and nginx["metrics"]:
        found.append(("listen", f"port {METRICS_PORT} is the metrics' (wsgi:nginx:metrics)"))
    for name, app in apps.items() if page["domain"] else ():
        if app["listen"] == page["listen"] and page["domain"].lower() in _hosts(app):
            found.append(("domain", f"{page['domain']!r} on port {page['listen']} is {name}'s already"))
        if app["tls"] and app["tls"]["listen"] == page["listen"]:
            found.append(("listen", f"port {page['listen']} is {name}'s for TLS (tls:listen)"))
    return found


def mounted(app, path):
    """
    A path of an app as a client sees it.

    .. code-block:: python

        >>> mounted({"mount": "/shop"}, "/static/")
        '/shop/static/'
    """
    return path if app["mount"] == "/" else app["mount"] + path


def _site(listen, domains, names, apps):
    tls = next((apps[name]["tls"] for name in names if apps[name]["tls"]), None)
    redirected = dict.fromkeys(domain for name in names for domain in apps[name]["redirect_domains"])
    first = (domains or ("default",))[0].lower().replace("*", "_")
    if len(first) > MOST_STEM:
        first = f"{first[: MOST_STEM - 11]}-{hashlib.sha256(first.encode()).hexdigest()[:10]}"
    return Site(f"{first}_{listen}", listen, domains, tuple(names), tls, tuple(redirected))


def _clashes(apps):
    """What of the apps nginx could not tell apart, or could not do for both."""
    found, seen = [], {}
    for name, app in apps.items():
        for domain in _hosts(app):
            for other in seen.setdefault((app["listen"], domain), []):
                for one, two in ((name, other), (other, name)):
                    key, sentence = _clash(apps[one], apps[two], two, domain)
                    if key and (one, key, sentence) not in found:
                        found.append((one, key, sentence))
            seen[app["listen"], domain].append(name)
    checks = (_redirect_clashes, _port_clashes, _path_clashes, _tls_clashes, _tls_problems)
    return found + [problem for check in checks for problem in check(apps)]


def _hosts(app):
    return {domain.lower() for domain in app["domains"]} or {None}


def _clash(app, other, other_name, domain):
    where = f"{domain!r}" if domain else "the default site (no domains)"
    where += f" on port {app['listen']}"
    if app["mount"] == other["mount"]:
        at = "" if app["mount"] == "/" else f" at {app['mount']}"
        return "domains", f"{where}{at} is {other_name}'s already"
    if app["domains"] != other["domains"]:
        return "domains", f"{where} is {other_name}'s, too; apps of one host need the same list of domains"
    if app["tls"] and other["tls"] and app["tls"] != other["tls"]:
        return "tls", f"{where} is {other_name}'s, too, which says something else; let one of them say it"
    for key, header in TLS_HEADERS.items() if other["tls"] and not app["tls"] else ():
        written = edge_defaults.overridden(app, [header])
        if written and other["tls"][key]:
            return f"response_headers:{written[0]}", f"{where} is {other_name}'s, too, whose tls:{key} says it"
    return None, None


def _redirect_clashes(apps):
    """What can't be sent on to the first of an app's domains."""
    owners = {(app["listen"], domain): name for name, app in apps.items() for domain in _hosts(app)}
    found, senders = [], {}
    for name, app in apps.items():
        for domain in app["redirect_domains"]:
            where = (app["listen"], domain.lower())
            sender = senders.setdefault(where, name)
            if where in owners:
                sentence = f"{domain!r} on port {app['listen']} is one of {owners[where]}'s domains"
            elif not app["domains"]:
                sentence = f"{domain!r} can't be sent to an app without domains"
            elif app["domains"][0].startswith("*"):
                sentence = f"{domain!r} can't be sent to {app['domains'][0]!r}; put a host's whole name first"
            elif app["domains"] != apps[sender]["domains"]:
                sentence = f"{domain!r} on port {app['listen']} is sent to {sender}'s domain already"
            else:
                continue
            found.append((name, "redirect_domains", sentence))
    return found


def _port_clashes(apps):
    """A port speaks TLS or it doesn't."""
    plain = {app["listen"]: name for name, app in apps.items()}
    return [
        (name, "tls", f"port {app['tls']['listen']} is {plain[app['tls']['listen']]}'s for plain HTTP (listen)")
        for name, app in apps.items()
        if app["tls"] and app["tls"]["listen"] in plain
    ]


def _path_clashes(apps):
    """A path of a site has one who answers it."""
    seen, found = {}, []
    for name, app in apps.items():
        paths = [("mount", path) for path in dict.fromkeys((app["mount"], mounted(app, "/")))]
        paths += [(kind, mounted(app, prefix)) for kind in ("static", "internal") for prefix in app[kind]]
        for key, path in paths:
            other, other_key = seen.setdefault((app["listen"], tuple(app["domains"]), path), (name, key))
            # Of two mounts `domains` tells.
            if (other, other_key) != (name, key) and (key, other_key) != ("mount", "mount"):
                found.append((name, key, f"{path} is wsgi:apps:{other}:{other_key}'s already"))
                found.append((other, other_key, f"{path} is wsgi:apps:{name}:{key}'s, too"))
    return found


def _tls_clashes(apps):
    """Sites of one host whose plain ports differ may not meet at the port of TLS."""
    owners, found = {}, []
    for name, app in apps.items():
        for domain in _hosts(app) if app["tls"] else ():
            site, at = (app["listen"], tuple(app["domains"])), (app["tls"]["listen"], domain)
            other, other_site = owners.setdefault(at, (name, site))
            if site[0] != other_site[0]:
                where = repr(domain) if domain else "the default site (no domains)"
                found.append((name, "tls", f"{where} on port {at[0]} is {other}'s, whose listen is another"))
    return found


def _tls_problems(apps):
    """What an app says of its certificate that can't be."""
    found = []
    for name, app in apps.items():
        certificate = app["tls"] and app["tls"]["certificate"]
        if certificate == "acme":
            wild = [domain for domain in [*app["domains"], *app["redirect_domains"]] if domain.startswith("*")]
            if not app["domains"]:
                found.append((name, "tls:certificate", "acme needs domains, for which it asks for a certificate"))
            for domain in wild:
                sentence = f"acme can't prove a wildcard, {domain!r}, over HTTP; bring a certificate of your own"
                found.append((name, "tls:certificate", sentence))
        elif certificate and "PRIVATE KEY" in certificate:
            found.append((name, "tls:certificate", "holds a private key, which goes into key"))
        elif certificate and certificate != "self_signed" and not app["tls"]["key"]:
            found.append((name, "tls:key", "missing; it must be the certificate's: a path, a private key, or sdb://…"))
    return found
