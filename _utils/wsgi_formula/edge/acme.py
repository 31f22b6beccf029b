"""Certificates of an ACME authority, which certbot obtains and its own timer renews."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from .. import files
from ..host import Host
from ..paths import LIB
from ..pillar.sites import Site, tls_key
from .certificate import DAY, parse, run_tool

# The authority requests files below /.well-known/acme-challenge/, which nginx serves from here.
WEBROOT = f"{LIB}/acme"

CERTBOT = "/etc/letsencrypt"

AUTHORITY = "https://acme-v02.api.letsencrypt.org/directory"  # certbot's default

# certbot runs this program after a renewal; see edge/reload.py.
RELOAD = "/usr/local/lib/wsgi/reload-nginx"

# certbot's timer renews a certificate long before; with less time left, a run does so.
RENEWAL_LEFT = 2 * DAY


def lineage(id: str) -> str:
    """Return the path of the folder that has the newest certificate of a site."""
    return f"{CERTBOT}/live/wsgi-{id}"


def sites_to_obtain(host: Host) -> list[Site]:
    """Return the sites for which certbot has to obtain a certificate."""
    sites = host.settings.sites.values()
    return [site for site in sites if site.tls and site.tls["certificate"] == "acme" and _is_needed(host, site)]


def _is_needed(host, site):
    try:
        found = parse(files.read(f"{lineage(site.id)}/cert.pem") or "")
    except ValueError:
        return True
    renewal = files.read(f"{CERTBOT}/renewal/wsgi-{site.id}.conf") or ""
    known = dict(re.findall(r"^(server|key_type) = (.*)$", renewal, re.MULTILINE))
    return (
        known != {"server": _authority(host), "key_type": _key_type(host)}
        or {*found.names} != {name.lower() for name in site.certificate_names}
        or found.left() < RENEWAL_LEFT
    )


def obtain(host: Host, site: Site) -> None:
    """
    Have certbot obtain the certificate of a site, which nginx has to serve already.

    Raises ``WsgiError`` with the end of certbot's output when it fails.
    """
    settings, names = host.settings.nginx["acme"], site.certificate_names
    files.ensure_dir(WEBROOT, 0o755)
    command = ["certbot", "certonly", "--non-interactive", "--agree-tos", "--webroot", "--webroot-path", WEBROOT]
    command += ["--cert-name", f"wsgi-{site.id}", "--force-renewal", "--renew-with-new-domains"]
    command += ["--server", _authority(host), "--key-type", _key_type(host), "--deploy-hook", RELOAD]
    email = settings.get("email")
    command += ["--email", email] if email else ["--register-unsafely-without-email"]
    for name in names:
        command += ["--domain", name.lower()]
    bundle = settings.get("ca_bundle")
    failure = f"{tls_key(site, host.settings.apps)}:certificate: certbot obtained none for {', '.join(names)}"
    run_tool(command, failure, {"REQUESTS_CA_BUNDLE": bundle} if bundle else {})


def _authority(host):
    return host.settings.nginx["acme"].get("server") or AUTHORITY


def _key_type(host):
    return host.settings.nginx["acme"].get("key_type") or "ecdsa"


def leftovers(installed: dict, site_path: Callable[[str], str]) -> list:
    """
    Return the paths of certbot's files for sites that have an ACME certificate no more.

    installed : dict
        Our files of nginx, paths to text.
    site_path : callable
        Takes the id of a site and returns the path of its file.
    """
    found: list[str] = []
    for name in files.list_dir(f"{CERTBOT}/renewal"):
        id = re.fullmatch(r"wsgi-(.+)\.conf", name)
        if id and WEBROOT not in installed.get(site_path(id[1]), ""):
            parts = [f"{CERTBOT}/{folder}/wsgi-{id[1]}" for folder in ("live", "archive")]
            found += filter(os.path.lexists, [f"{CERTBOT}/renewal/{name}", *parts])
    return found
