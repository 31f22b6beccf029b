"""
TLS of sites: which certificate nginx reads, and whether it is valid.

A certificate from pillar or sdb is written beside nginx's files, and a certificate at a path is read where it is. A
site with an ACME certificate has a self-signed one until certbot has obtained it, so that nginx can start.
"""

from __future__ import annotations

import contextlib
import os
import re
import ssl
import tempfile
import time

from .. import files
from ..app.secrets import resolve_sdb
from ..errors import WsgiError
from ..host import Host
from ..pillar.sites import Site, tls_key
from .acme import WEBROOT, lineage
from .certificate import CERTIFICATE, DAY, make_self_signed, parse
from .nginx_build import installed_nginx

# Mozilla's guidelines 6.0: https://ssl-config.mozilla.org/guidelines/6.0.json. OpenSSL's default ciphers for
# TLS 1.3 are the three of the guidelines.
PROFILES = {
    "intermediate": {
        "protocols": "TLSv1.2 TLSv1.3",
        "ciphers": ":".join(
            f"ECDHE-{key}-{cipher}"
            for cipher in ("AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305")
            for key in ("ECDSA", "RSA")
        ),
    },
    "modern": {"protocols": "TLSv1.3", "ciphers": ""},
}

CURVES = ("X25519", "prime256v1", "secp384r1")

POST_QUANTUM = "X25519MLKEM768"

POST_QUANTUM_SINCE = (3, 5)  # OpenSSL

REJECT_SINCE = (1, 19, 4)  # ssl_reject_handshake: https://nginx.org/en/CHANGES

SELF_SIGNED_LEFT = 30 * DAY  # with less time left, a new one is made

OWN_LEFT = 14 * DAY  # with less time left, states warn about a certificate of your own

# OpenSSL's errors for a key of another certificate, of the same type and of another one.
MISMATCHES = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")

NAMED = re.compile(r"^\s*ssl_certificate(?:_key)? ([^;]+);", re.MULTILINE)


def _texts_of_run(host):
    """Return the texts of certificates and keys that were resolved or made in this run."""
    return {}


def paths(host: Host, site: Site) -> tuple[str, str]:
    """Return the paths of the certificate and the key that nginx reads for a site with TLS."""
    settings = site.tls or {}
    certificate = settings["certificate"]
    obtained = f"{lineage(site.id)}/fullchain.pem", f"{lineage(site.id)}/privkey.pem"
    if certificate == "acme" and all(map(os.path.exists, obtained)):
        return obtained
    if certificate in ("acme", "self_signed"):
        return self_signed_paths(host, site.id)
    pairs = zip((certificate, settings["key"]), _private(host, site.id))
    return tuple(value if value.startswith("/") else written for value, written in pairs)


def texts(host: Host, site: Site) -> dict[str, str]:
    """Return the texts of a site's certificate and key that are in pillar or sdb, by their paths."""
    if site.tls is None or site.tls["certificate"] in ("acme", "self_signed"):
        return {}
    known, found = host.once(_texts_of_run), {}
    for key, path in zip(("certificate", "key"), paths(host, site)):
        value = site.tls[key]
        if not value.startswith("/"):
            if (site.id, key) not in known:
                text = resolve_sdb(host, f"{tls_key(site, host.settings.apps)}:{key}", value)
                # The line ends that the text has when it is read again.
                known[site.id, key] = "\n".join(str(text).strip().splitlines()) + "\n"
            found[path] = known[site.id, key]
    return found


def values(host: Host, site: Site) -> dict | None:
    """
    Return the variables of the templates for a site's certificate, or None for a site without TLS.

    Returns a dict: ``certificate`` and ``key`` (paths), ``stapled`` (whether nginx can tell clients that the
    certificate was not revoked), ``reuseport`` (whether this site has the kernel distribute the packets of HTTP/3,
    which exactly one site of a port must), ``hsts`` (the value of that header, or "") and ``webroot``.
    """
    if site.tls is None:
        return None
    certificate, key = paths(host, site)
    stapled = False
    with contextlib.suppress(ValueError, OSError):
        stapled = parse(texts(host, site).get(certificate) or files.read(certificate) or "").ocsp
    return {
        "certificate": certificate,
        "key": key,
        "stapled": stapled,
        "reuseport": _reuseport(host, site),
        "hsts": _hsts(site.tls),
        "webroot": WEBROOT,
    }


def _hsts(tls):
    directives = [f"max-age={tls['hsts']}", *(["includeSubDomains"] if tls["hsts_subdomains"] else [])]
    return "; ".join([*directives, *(["preload"] if tls["hsts_preload"] else [])]) if tls["hsts"] else ""


def _reuseport(host, site):
    port = site.tls["listen"]
    there = [other for other in host.settings.sites.values() if port in other.ports]
    http3 = [other.id for other in there if other.tls["http3"]]
    default = [other.id for other in there if not other.domains]
    if not default and host.settings.nginx["default_site"]:
        return False  # the server for unknown hosts does
    return site.id == next((id for id in default if id in http3), min(http3, default=None))


def profile(host: Host) -> dict[str, str]:
    """Return the directives of ``wsgi:nginx:tls_profile``: ``protocols``, ``ciphers`` and ``curves``."""
    post_quantum = (POST_QUANTUM,) if host.once(installed_nginx).openssl >= POST_QUANTUM_SINCE else ()
    return {**PROFILES[host.settings.nginx["tls_profile"]], "curves": ":".join(post_quantum + CURVES)}


def check(host: Host, site: Site) -> list:
    """
    Check the TLS settings of a site, before anything depends on them.

    Returns a list of warnings. Raises ``WsgiError`` for settings that do not work.
    """
    if site.tls is None:
        return []
    key = tls_key(site, host.settings.apps)
    _check_http(host, site, key)
    if site.tls["certificate"] in ("acme", "self_signed"):
        return []
    certificate = _checked_pair(host, site, key)
    if certificate.left() < 0:
        raise WsgiError(f"{key}:certificate: the certificate expired on {_day(certificate.until)}")
    warnings = []
    missing = certificate.missing([*site.domains, *site.redirect_domains])
    if missing:
        warnings.append(f"{key}:certificate: the certificate does not cover {', '.join(missing)}")
    if certificate.left() < OWN_LEFT:
        warnings.append(f"{key}:certificate: the certificate expires on {_day(certificate.until)}")
    return warnings


def _check_http(host, site, key):
    nginx = host.once(installed_nginx)
    installed = f"nginx {'.'.join(map(str, nginx.version))}"
    if site.tls["http3"] and "http_v3_module" not in nginx.modules:
        raise WsgiError(f"{key}:http3: true is not available: {installed} is built without HTTP/3; remove http3")
    if nginx.http2_directive:
        return
    for other in host.settings.sites.values():
        if other.tls and other.tls["listen"] == site.tls["listen"] and other.tls["http2"] != site.tls["http2"]:
            raise WsgiError(
                f"{key}:http2: {str(site.tls['http2']).lower()} differs from"
                f" {tls_key(other, host.settings.apps)}:http2, and {installed} has one setting for all sites of port"
                f" {site.tls['listen']}; set both to the same value"
            )


def _checked_pair(host, site, key):
    """Return the certificate of a site, if the key belongs to it."""
    written = texts(host, site)
    with tempfile.TemporaryDirectory() as folder:  # only root may read it
        pair = []
        for part, path in zip(("certificate", "key"), paths(host, site)):
            pair.append(written.get(path) or _read(f"{key}:{part}", path))
            # OpenSSL reads files only.
            files.write(f"{folder}/{part}", pair[-1], 0o600)
        try:
            certificate = parse(pair[0])
        except ValueError as error:
            raise WsgiError(f"{key}:certificate: {error}") from error
        try:
            # With an empty password, OpenSSL does not ask the terminal for one.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(f"{folder}/certificate", f"{folder}/key", password="")
        except (ssl.SSLError, ValueError) as error:
            raise WsgiError(f"{key}:{_refusal(pair[0], error)}") from error
    return certificate


def _refusal(text, error):
    """Return which of a certificate and its key OpenSSL refuses, and why: the end of a problem."""
    reason = getattr(error, "reason", None) or ""
    if reason in MISMATCHES:
        return "key: the key does not belong to the certificate"
    if reason.endswith(("_TOO_SMALL", "_TOO_WEAK")):
        return f"certificate: the certificate is too weak: OpenSSL reports {reason}"
    try:
        chain = "\n".join(found[0] for found in CERTIFICATE.finditer(text))
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=chain)
    except (ssl.SSLError, TypeError):
        return "certificate: a certificate of the chain cannot be read"
    return "key: this is not a private key without a password"


def _read(key, path):
    try:
        text = files.read(path)
    except (OSError, UnicodeDecodeError) as error:
        raise WsgiError(f"{key}: {path!r} cannot be read: {error}") from error
    if text is None:
        raise WsgiError(f"{key}: {path!r} does not exist")
    return text


def _day(seconds):
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def _private(host, stem):
    own = host.family["nginx"]["own_dir"]
    return f"{own}/private/{stem}.crt", f"{own}/private/{stem}.key"


# Self-signed certificates


def self_signed_paths(host: Host, id: str) -> tuple[str, str]:
    """Return the paths of the self-signed certificate of a site and of its key."""
    return _private(host, f"{id}.self-signed")


def due(host: Host, site: Site) -> bool:
    """Return whether a site needs a new self-signed certificate."""
    return site.tls is not None and paths(host, site) == self_signed_paths(host, site.id) and _is_outdated(host, site)


def _is_outdated(host, site):
    certificate, key = self_signed_paths(host, site.id)
    try:
        found = parse(files.read(certificate) or "")
    except ValueError:
        return True
    missing = found.missing(site.certificate_names)
    return not os.path.exists(key) or found.left() < SELF_SIGNED_LEFT or bool(missing)


def unknown_paths(host: Host) -> tuple[str, str] | None:
    """Return the paths of the certificate for unknown hosts; None where nginx can reject the handshake instead."""
    return None if host.once(installed_nginx).version >= REJECT_SINCE else self_signed_paths(host, "unknown")


def missing(host: Host, sites: list) -> dict:
    """Return the self-signed certificates that some sites need: the paths of each and its key to host names."""
    needed = {self_signed_paths(host, site.id): site.certificate_names for site in sites if due(host, site)}
    unknown = unknown_paths(host)
    if unknown and any(site.tls for site in sites) and not all(map(os.path.exists, unknown)):
        needed[unknown] = ["invalid"]
    return needed


def prepare(host: Host, sites: list) -> dict[str, str]:
    """Return the texts of the self-signed certificates that some sites need, by path; each is made once per run."""
    known = host.once(_texts_of_run)
    found: dict[str, str] = {}
    for pair, names in missing(host, sites).items():
        key = (pair, *names)
        if key not in known:
            known[key] = make_self_signed(names)
        found.update(zip(pair, known[key]))
    return found


# Certificates in nginx's files


def unused(contents: dict, own_dir: str) -> list:
    """
    Return the paths of our certificates and keys that no site names any more.

    contents : dict
        All of our files of nginx, paths to content.
    own_dir : str
        Our tree.
    """
    named = {path for text in contents.values() if isinstance(text, str) for path in NAMED.findall(text)}
    return [
        path
        for path in contents
        if path.startswith(f"{own_dir}/private/") and path.endswith((".crt", ".key")) and path not in named
    ]


def newest(texts: dict, own_dir: str) -> float:
    """Return the time of the newest certificate or key that nginx's files name outside of our tree, or 0."""
    named = {path for text in texts.values() for path in NAMED.findall(text or "")}
    times = [0.0]
    for path in named:
        if path.startswith(f"{own_dir}/"):
            continue
        with contextlib.suppress(FileNotFoundError):
            # The time of a link to it counts too.
            times += [os.lstat(path).st_ctime, os.stat(path).st_ctime]
    return max(times)
