"""
The schema of the edge: what pillar may say of the proxy in front of an app, and of the one that
all apps of a host share.
"""

import ipaddress
import re
from collections.abc import Mapping

from wsgi_schema_rules import (
    BOOLEAN,
    Rule,
    absolute_path,
    collection,
    integer,
    is_domain,
    list_of,
    mapping,
    matching,
    one_line,
    path_below,
)

SIZE = matching(re.compile(r"[0-9]+[kKmMgG]?"), "a size in nginx's words, e.g. 10m", numbers=True)
# From years down to seconds, in this order.
TIME = matching(
    re.compile("(?!$)" + "".join(f"([0-9]+{unit})?" for unit in "yMwdhm") + "([0-9]+s?)?"),
    "a time in nginx's words, e.g. 10m",
    numbers=True,
)
RATE = matching(re.compile(r"[1-9][0-9]*r/[sm]"), "a rate in nginx's words, e.g. 10r/s")
MOUNT = re.compile(r"/|(/(?!\.{1,2}(/|$))[\w.~-]+)+", re.ASCII)
NETWORK = re.compile(r"[0-9a-fA-F.:]+(/[0-9]+)?")  # of what Python takes, that which nginx does too
HEADER = re.compile(r"[A-Za-z0-9-]+")
# Of a zone of shared memory: what stands in a name of nginx.
ZONE_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
METHOD = re.compile(r"[A-Z]+")
COOKIE = re.compile(r"[\w.-]+", re.ASCII)
# nginx's own, of which an answer must have one.
OWN_HEADERS = (
    "connection",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "date",
    "keep-alive",
    "location",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "www-authenticate",
)
ORIGIN = re.compile(r"https?://(\*\.)?[a-z0-9.-]+(:[0-9]+)?", re.IGNORECASE)
USER = re.compile(r"[^:\s\x00-\x1f]+")
# What crypt(3) and nginx itself can check; never the password itself.
HASH = re.compile(r"\$(1|2[aby]?|5|6|y|apr1)\$[^\s:]+|\{SSHA\}[^\s:]+")

# Both on loopback: of what nginx and gunicorn count (UDP) and of Prometheus' endpoint (TCP).
METRICS_PORT = 8078
# nginx asks what answers Prometheus here.
METRICS_SOCKET = "/run/wsgi-metrics.sock"


def _network(value):
    try:
        return _matches(NETWORK, value) and bool(ipaddress.ip_network(value, strict=False))
    except ValueError:
        return False


def _proxies(value):
    """Such networks, and not the whole world, which could then say what it likes."""
    return _network(value) and ipaddress.ip_network(value, strict=False).prefixlen > 0


def _plain_path(value):
    return absolute_path(value) and not set(" ;{}\"'$\\#") & set(value)


def _file(value):
    """A file on the machine, what would be in it, or where Salt finds that."""
    return isinstance(value, str) and (_plain_path(value) or value.startswith("sdb://") or "-----BEGIN " in value)


def _decoded_path(value):
    return path_below(value) and "%" not in value


def _hash_or_where(value):
    return _matches(HASH, value) or (one_line(value) and value.startswith("sdb://"))


def _header(value):
    return _matches(HEADER, value) and value.lower() not in OWN_HEADERS


def _realm(value):
    # `off` is nginx's word for no password at all.
    return one_line(value) and value != "off" and not set('"\\$') & set(value)


def _header_value(value):
    return one_line(value) and "$" not in value


NETWORKS = Rule("a list of addresses and networks, e.g. 10.0.0.0/8", lambda value: list_of(value, _network))
PROXIES = Rule(
    "a list of the proxies' own addresses and networks, e.g. 10.0.0.0/8", lambda value: list_of(value, _proxies)
)
PATH = Rule("a path that begins with /, without %", lambda value: _decoded_path(value))
PATHS = Rule("a list of paths that begin with /, without %", lambda value: list_of(value, _decoded_path))
PREFIX = matching(
    re.compile(r"(/(?!\.\.?(/|$))[\w.~+@-]+)+/?", re.ASCII), "a path that begins with /, and of a folder ends with it"
)
# Where nothing needs to be quoted in nginx's words; never the whole release, nor the whole machine.
SERVED = re.compile(r"/?((?!\.\.?(/|$))[\w.~+@,=%-]+/)*(?!\.\.?$)[\w.~+@,=%-]+/?")
FOLDER = matching(SERVED, "a folder or a file in the release, or one's absolute path; spaces and quotes can't be in it")
CONFIGURATION = Rule("nginx's own words", lambda value: isinstance(value, str) and "\0" not in value)

# Where a certificate comes from that pillar does not hold.
CERTIFICATES = ("self_signed", "acme", "none")
FILE = "a file's absolute path without spaces and quotes"

TLS = {
    "certificate": Rule(
        f"self_signed, acme, none, {FILE}, a certificate, or sdb://…",
        lambda value: value in CERTIFICATES or _file(value),
    ),
    "key": Rule(f"{FILE}, a private key, or sdb://…", _file, secret=True),
    "listen": integer(1, 65535),
    "redirect": BOOLEAN,
    "http2": BOOLEAN,
    "http3": BOOLEAN,
    "hsts": Rule(
        "a number of seconds, 0 for none", lambda value: type(value) is int and 0 <= value <= 100 * 365 * 86400
    ),
    "hsts_subdomains": BOOLEAN,
    "hsts_preload": BOOLEAN,
}
LIMIT = {
    "path": PATH,
    "rate": RATE,
    "burst": integer(0, 1000000),
    "connections": integer(1, 1000000),
}
BASIC_AUTH = {
    "realm": Rule('a text of one line, without ", \\ and $, and not off', _realm),
    "users": collection(
        "a user's name, without a colon",
        # Who writes ann:password there is not to find it in a log.
        Rule("a user's name, without a colon", lambda value: _matches(USER, value), secret=True),
        Rule("a hash that `openssl passwd -6` printed, or sdb://…", _hash_or_where, secret=True),
    ),
    "except": PATHS,
}
CACHE = {
    "valid": TIME,
    "size": SIZE,
    "paths": PATHS,
    "stale": BOOLEAN,
    "bypass_cookies": Rule(
        "a list of cookies' names", lambda value: list_of(value, lambda item: _matches(COOKIE, item))
    ),
}
CORS = {
    "origins": Rule(
        "a list of origins, e.g. https://example.com, or ['*']",
        lambda value: value == ["*"] or (list_of(value, lambda item: _matches(ORIGIN, item)) and value != []),
    ),
    "methods": Rule("a list of methods", lambda value: list_of(value, lambda item: _matches(METHOD, item))),
    "headers": Rule("a list of headers' names", lambda value: list_of(value, lambda item: _matches(HEADER, item))),
    "expose": Rule("a list of headers' names", lambda value: list_of(value, lambda item: _matches(HEADER, item))),
    "credentials": BOOLEAN,
    "max_age": integer(0, 86400),
}
RAW = {"http": CONFIGURATION, "server": CONFIGURATION, "location": CONFIGURATION}


def _matches(pattern, value):
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _word_or(words, keys):
    """One of some words, or a mapping that says more."""
    return Rule(
        f"{', '.join(words)}, or a mapping", lambda value: value in words or isinstance(value, Mapping), keys=keys
    )


# Of an app.
EDGE = {
    "domains": Rule(
        "a list of host names, of which the first label may be *",
        lambda value: list_of(value, is_domain),
    ),
    "redirect_domains": Rule(
        "a list of host names, of which the first label may be *",
        lambda value: list_of(value, is_domain),
    ),
    "listen": integer(1, 65535),
    "mount": matching(MOUNT, "a path such as /shop, or /"),
    "tls": _word_or(CERTIFICATES, TLS),
    "static": collection(PREFIX.allowed, PREFIX, FOLDER),
    "internal": collection(PREFIX.allowed, PREFIX, FOLDER),
    "error_pages": collection(
        "a status of 400 to 599",
        Rule("a status of 400 to 599", lambda value: type(value) is int and 400 <= value <= 599),
        FOLDER,
    ),
    "client_max_body_size": SIZE,
    "buffering": BOOLEAN,
    "request_buffering": BOOLEAN,
    # An empty list would let in either everybody or nobody: who can say.
    "allow": Rule(f"{NETWORKS.allowed}, one at least", lambda value: value != [] and NETWORKS.test(value)),
    "limits": collection("a lower-case letter, then at most 31 of a-z, 0-9, - and _", ZONE_NAME, mapping(LIMIT)),
    "basic_auth": mapping(BASIC_AUTH),
    "cache": mapping(CACHE),
    "compression": BOOLEAN,
    "security_headers": BOOLEAN,
    "response_headers": collection(
        "a header's name, and none of nginx's own",
        Rule("a header's name, and none of nginx's own", _header),
        Rule("a text of one line, without $", _header_value),
    ),
    "cors": mapping(CORS),
    "access_log": Rule("json, combined or none", lambda value: value in ("json", "combined", "none")),
    "metrics": BOOLEAN,
    "nginx": mapping(RAW),
}

ACME = {
    "email": Rule("an e-mail address", lambda value: one_line(value) and re.fullmatch(r"[^@\s]+@[^@\s]+", value)),
    "server": Rule(
        "the URL of an ACME directory, https://…", lambda value: one_line(value) and value.startswith("https://")
    ),
    "ca_bundle": Rule(FILE, _plain_path),
    "key_type": Rule("ecdsa or rsa", lambda value: value in ("ecdsa", "rsa")),
}

# Of the host.
NGINX = {
    "manage": BOOLEAN,
    "client_max_body_size": SIZE,
    "default_site": BOOLEAN,
    "tls_profile": Rule("intermediate or modern", lambda value: value in ("intermediate", "modern")),
    "acme": mapping(ACME),
    "trusted_proxies": PROXIES,
    "proxy_protocol": BOOLEAN,
    "metrics": BOOLEAN,
    **RAW,
}

STATUS_PAGE = {
    "listen": integer(1, 65535),
    "domain": Rule("a host name", lambda value: is_domain(value) and not value.startswith("*")),
    "basic_auth": mapping({key: BASIC_AUTH[key] for key in ("realm", "users")}),
}
