"""
The schema of nginx's keys: those of an app, and those that all apps of a machine share.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from .rules import (
    BOOLEAN,
    DOMAIN_LENGTH,
    NAME_LENGTH,
    NGINX_WORD,
    SIZE,
    Rule,
    absolute_path,
    byte_length,
    collection,
    integer,
    is_domain,
    list_of,
    mapping,
    matching,
    one_line,
    path_below,
)

BYTES = re.compile(r"([0-9]{1,19})([kmg]?)", re.IGNORECASE | re.ASCII)

UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}

# The largest size that nginx can count.
MOST_BYTES = 2**63 - 1

# From years down to seconds, in this order.
SECONDS = {"y": 365 * 86400, "M": 30 * 86400, "w": 7 * 86400, "d": 86400, "h": 3600, "m": 60, "s": 1}

DURATION = re.compile(
    "(?!$)" + "".join(f"(?:([0-9]{{1,10}}){unit})?" for unit in "yMwdhm") + "(?:([0-9]{1,10})s?)?", re.ASCII
)

MOST_SECONDS = 100 * SECONDS["y"]

RATE = matching(
    re.compile(r"[1-9][0-9]{0,6}r/[sm]", re.ASCII), "a rate as nginx takes it, e.g. 10r/s, of at most 7 digits"
)

# nginx compares at most 255 characters of a location, which is a mount and a prefix.
MOUNT_LENGTH, PREFIX_LENGTH = 100, 150

PATH_LENGTH = 1000

# The longest name that fits nginx's hash of hidden headers, whose size cannot be set for uwsgi: ngx_hash.h.
HEADER_LENGTH = 46

# The longest hash of crypt(3): CRYPT_OUTPUT_SIZE.
HASH_LENGTH = 384

MOUNT = re.compile(r"/|(/(?!\.{1,2}(/|$))[\w.~-]+)+", re.ASCII)

# Python's ipaddress takes more forms than nginx does.
NETWORK = re.compile(r"[0-9a-fA-F.:]+(/[0-9]+)?")

HEADER = re.compile(r"[A-Za-z0-9-]+")

# The names of limits, which become part of the names of nginx's zones of shared memory.
ZONE_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")

METHOD = re.compile(r"[A-Z]+")

COOKIE = re.compile(r"[\w.-]+", re.ASCII)

# The headers that nginx sets itself, of which a response has one only.
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

# The hashes that crypt(3) and nginx can check. A plain password does not match.
HASH = re.compile(r"\$(1|2[aby]?|5|6|y|apr1)\$[^\s:]+|\{SSHA\}[^\s:]+")


# On loopback: nginx and gunicorn send their counts to the UDP port, and Prometheus scrapes the TCP port.
METRICS_PORT = 8078

# The socket of the program that answers Prometheus, behind nginx.
METRICS_SOCKET = "/run/wsgi-metrics.sock"


def _network(value: Any) -> bool:
    try:
        return _matches(NETWORK, value) and bool(ipaddress.ip_network(value, strict=False))
    except ValueError:
        return False


def _proxies(value: Any) -> bool:
    """Return whether a value is a network and not the whole Internet, which could then forge its address."""
    return _network(value) and ipaddress.ip_network(value, strict=False).prefixlen > 0


def _plain_path(value: Any) -> bool:
    return absolute_path(value) and len(value) <= PATH_LENGTH and not set(" ;{}\"'$\\#") & set(value)


def _size(value: Any) -> bool:
    found = BYTES.fullmatch(str(value)) if type(value) in (str, int) else None
    return found is not None and int(found[1]) * UNITS[found[2].lower()] <= MOST_BYTES


def _time(value: Any) -> bool:
    found = DURATION.fullmatch(str(value)) if type(value) in (str, int) else None
    return found is not None and _seconds(found) <= MOST_SECONDS


def _seconds(found: re.Match[str]) -> int:
    return sum(int(number or 0) * seconds for number, seconds in zip(found.groups(), SECONDS.values()))


def _file(value: Any) -> bool:
    """Return whether a value is the path of a file, the content of one, or a reference to Salt's sdb."""
    return isinstance(value, str) and (_plain_path(value) or value.startswith("sdb://") or "-----BEGIN " in value)


def _decoded_path(value: Any) -> bool:
    return path_below(value) and "%" not in value


def _hash_or_reference(value: Any) -> bool:
    return _matches(HASH, value) or (one_line(value) and value.startswith("sdb://"))


def _header(value: Any) -> bool:
    return _matches(HEADER, value) and value.lower() not in OWN_HEADERS


def _realm(value: Any) -> bool:
    # With `off`, nginx would ask for no password.
    return one_line(value) and value != "off" and not set('"\\$') & set(value)


def _header_value(value: Any) -> bool:
    # nginx needs a \\ before each quote.
    escaped = value.count('"') + value.count("\\") if isinstance(value, str) else 0
    return one_line(value) and "$" not in value and byte_length(value) + escaped <= NGINX_WORD


def _names(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    """Return the test of a list of names that together become one parameter of nginx."""
    return lambda value: list_of(value, lambda item: _matches(pattern, item)) and len(", ".join(value)) <= NAMES_LENGTH


NETWORKS = Rule("a list of addresses and networks, e.g. 10.0.0.0/8", lambda value: list_of(value, _network))

PROXIES = Rule(
    "a list of the addresses and networks of the proxies, e.g. 10.0.0.0/8", lambda value: list_of(value, _proxies)
)

SIZES = Rule("a size as nginx takes it, e.g. 10m, below 2^63 bytes", _size)

TIMES = Rule("a time as nginx takes it, e.g. 10m, of at most 100y", _time)

PATH = Rule("a path that begins with /, without %", lambda value: _decoded_path(value), most=PATH_LENGTH)

PATHS = Rule(
    "a list of paths that begin with /, without %", lambda value: list_of(value, _decoded_path), most=PATH_LENGTH
)

PREFIX = matching(
    re.compile(r"(/(?!\.\.?(/|$))[\w.~+@-]+)+/?", re.ASCII),
    "a path that begins with /, and ends with / for a folder",
    most=PREFIX_LENGTH,
)

# Paths without a character that nginx would need quoted, and not the whole release or machine.
SERVED = re.compile(r"/?((?!\.\.?(/|$))[\w.~+@,=%-]+/)*(?!\.\.?$)[\w.~+@,=%-]+/?")

FOLDER = matching(
    SERVED,
    "a folder or a file in the release, or an absolute path, without spaces and quotes",
    # It becomes the name of one folder, with colons for its slashes.
    most=250,
)

CONFIGURATION = Rule("raw nginx directives", lambda value: isinstance(value, str), most=SIZE)


# The certificates that are not in pillar.
CERTIFICATES = ("self_signed", "acme", "none")

FILE = "the absolute path of a file, without spaces and quotes"


TLS = {
    "certificate": Rule(
        f"self_signed, acme, none, {FILE}, a certificate, or sdb://…",
        lambda value: value in CERTIFICATES or _file(value),
        most=SIZE,
    ),
    "key": Rule(f"{FILE}, a private key, or sdb://…", _file, secret=True, most=SIZE),
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
    "connections": integer(1, 65535),
}

BASIC_AUTH = {
    "realm": Rule('a text of one line, without ", \\ and $, and not off', _realm, most=PATH_LENGTH),
    "users": collection(
        "a user name without a colon",
        # A user written as ann:password must not appear in a log.
        Rule("a user name without a colon", lambda value: _matches(USER, value), secret=True, most=NAME_LENGTH),
        Rule("a hash that `openssl passwd -6` printed, or sdb://…", _hash_or_reference, secret=True, most=HASH_LENGTH),
    ),
    "except": PATHS,
}

# nginx has no error page for its own 499, because the client has gone.
STATUS = Rule(
    "a status of 400 to 599, but not 499", lambda value: type(value) is int and 400 <= value <= 599 and value != 499
)

# The most characters of a list that becomes one parameter of nginx: the value of a header, or a regular expression.
NAMES_LENGTH = 1500

CACHE = {
    "valid": TIMES,
    "size": SIZES,
    "paths": PATHS,
    "stale": BOOLEAN,
    "bypass_cookies": Rule(f"a list of names of cookies, of at most {NAMES_LENGTH} characters in all", _names(COOKIE)),
}

CORS = {
    "origins": Rule(
        "a list of origins, e.g. https://example.com, or ['*']",
        lambda value: value == ["*"] or (list_of(value, lambda item: _matches(ORIGIN, item)) and value != []),
        most=DOMAIN_LENGTH + len("https://:65535"),
    ),
    "methods": Rule(f"a list of methods, of at most {NAMES_LENGTH} characters in all", _names(METHOD)),
    "headers": Rule(f"a list of names of headers, of at most {NAMES_LENGTH} characters in all", _names(HEADER)),
    "expose": Rule(f"a list of names of headers, of at most {NAMES_LENGTH} characters in all", _names(HEADER)),
    "credentials": BOOLEAN,
    "max_age": integer(0, 86400),
}

RAW = {"http": CONFIGURATION, "server": CONFIGURATION, "location": CONFIGURATION}


def _matches(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _word_or(words: Collection[str], keys: Mapping[str, Rule]) -> Rule:
    """Return the rule for one of some words, or a mapping with more settings."""
    return Rule(
        f"{', '.join(words)}, or a mapping", lambda value: value in words or isinstance(value, Mapping), keys=keys
    )


DOMAINS = "a list of host names, whose first label may be * and whose labels have at most 63 characters"


# The keys of an app.
EDGE = {
    "domains": Rule(
        DOMAINS,
        lambda value: list_of(value, is_domain),
        most=DOMAIN_LENGTH,
    ),
    "redirect_domains": Rule(
        DOMAINS,
        lambda value: list_of(value, is_domain),
        most=DOMAIN_LENGTH,
    ),
    "listen": integer(1, 65535),
    "mount": matching(MOUNT, "a path such as /shop, or /", most=MOUNT_LENGTH),
    "tls": _word_or(CERTIFICATES, TLS),
    "static": collection(PREFIX.allowed, PREFIX, FOLDER),
    "internal": collection(PREFIX.allowed, PREFIX, FOLDER),
    "error_pages": collection(
        STATUS.allowed,
        STATUS,
        FOLDER,
    ),
    "client_max_body_size": SIZES,
    "buffering": BOOLEAN,
    "request_buffering": BOOLEAN,
    # An empty list is refused, because it could mean everybody or nobody.
    "allow": Rule(f"{NETWORKS.allowed}, at least one", lambda value: value != [] and NETWORKS.test(value)),
    "limits": collection("a lower-case letter, then at most 31 of a-z, 0-9, - and _", ZONE_NAME, mapping(LIMIT)),
    "basic_auth": mapping(BASIC_AUTH),
    "cache": mapping(CACHE),
    "compression": BOOLEAN,
    "security_headers": BOOLEAN,
    "response_headers": collection(
        "the name of a header that nginx does not set itself",
        Rule("the name of a header that nginx does not set itself", _header, most=HEADER_LENGTH),
        Rule(
            f"a text of one line, without $, of at most {NGINX_WORD} bytes, where quotes and \\ count twice",
            _header_value,
            most=NGINX_WORD,
        ),
    ),
    "cors": mapping(CORS),
    "access_log": Rule("json, combined or none", lambda value: value in ("json", "combined", "none")),
    "metrics": BOOLEAN,
    "nginx": mapping(RAW),
}


ACME = {
    "email": Rule(
        "an e-mail address", lambda value: one_line(value) and re.fullmatch(r"[^@\s]+@[^@\s]+", value) is not None
    ),
    "server": Rule(
        "the URL of an ACME directory, https://…", lambda value: one_line(value) and value.startswith("https://")
    ),
    "ca_bundle": Rule(FILE, _plain_path),
    "key_type": Rule("ecdsa or rsa", lambda value: value in ("ecdsa", "rsa")),
}


# The keys of the machine.
NGINX = {
    "manage": BOOLEAN,
    "client_max_body_size": SIZES,
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
    "domain": Rule("a host name", lambda value: is_domain(value) and not value.startswith("*"), most=DOMAIN_LENGTH),
    "basic_auth": mapping({key: BASIC_AUTH[key] for key in ("realm", "users")}),
}
