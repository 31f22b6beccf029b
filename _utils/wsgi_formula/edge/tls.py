"""
A site's certificate: where it lies, what it says, and how it is come by.

One from pillar is written beside nginx's files, one of a path is read where it is, a self-signed
one is made once by OpenSSL, and one of an authority is got by certbot, whose own timer renews it.
Until that one is there the site serves a self-signed one, so that nginx never waits for it.
"""

import base64
import calendar
import contextlib
import os
import re
import ssl
import subprocess
import tempfile
import time
from dataclasses import dataclass

from .. import files, step
from ..app.secrets import resolve_sdb
from ..errors import Problem
from ..paths import LIB
from ..redact import tail

# Mozilla's guidelines 6.0: https://ssl-config.mozilla.org/guidelines/6.0.json. TLS 1.3 has its ciphers
# from OpenSSL, the same three.
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


# What the authority asks for, below /.well-known/acme-challenge/.
WEBROOT = f"{LIB}/acme"

CERTBOT = "/etc/letsencrypt"

AUTHORITY = "https://acme-v02.api.letsencrypt.org/directory"  # certbot's own

CLIENT_PATIENCE = 300  # seconds

RELOAD = "/usr/local/lib/wsgi/reload-nginx"


DAY = 86400

SELF_SIGNED_DAYS = 397

SELF_SIGNED_LEFT = 30 * DAY  # then it is made anew

# Of an authority's one: by then its timer should have renewed it.
RENEWAL_LEFT = 2 * DAY

# Of an own one: when its owner is told.
OWN_LEFT = 14 * DAY


CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)

# What OpenSSL says of a key that is another certificate's: of one like it, and of one of another kind.
MISMATCHES = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")

NAMED = re.compile(r"^\s*ssl_certificate(?:_key)? ([^;]+);", re.MULTILINE)

# Object identifiers of https://www.rfc-editor.org/rfc/rfc5280 as they stand in DER.
ALTERNATIVE_NAMES = bytes.fromhex("551d11")

AUTHORITY_ACCESS = bytes.fromhex("2b06010505070101")

OCSP = bytes.fromhex("2b06010505073001")


@dataclass(frozen=True)
class Certificate:
    """
    What a certificate says.

    names : tuple of str
        The host names it is for.
    until : int
        When it expires, in seconds since 1970.
    ocsp : bool
        Whether it names a responder to ask whether it was revoked.
    """

    names: tuple
    until: int
    ocsp: bool

    def missing(self, domains):
        """Those of some host names that it is not for."""
        known = {name.lower() for name in self.names}
        wild = (domain.lower().partition(".")[2] for domain in domains)
        pairs = zip(domains, [f"*.{parent}" for parent in wild])
        return [domain for domain, parent in pairs if not known & {domain.lower(), parent}]

    def left(self):
        """How many seconds it has left."""
        return self.until - time.time()


def parse(text):
    """
    Read the first certificate of a PEM text.

    Returns a ``Certificate``. Raises ValueError where there is none.
    """
    found = CERTIFICATE.search(text)
    if not found:
        raise ValueError("no certificate in it")
    try:
        signed = _inner(base64.b64decode(found[1]))[0][1]
        fields = [item for item in _inner(_inner(signed)[0][1]) if item[0] != 0xA0]  # not its version
        until = _inner(fields[3][1])[1]
        extensions = next((_inner(_inner(content)[0][1]) for tag, content in fields if tag == 0xA3), [])
        values = {}
        for _, extension in extensions:
            parts = _inner(extension)
            values[parts[0][1]] = parts[-1][1]
        names = _inner(_inner(values[ALTERNATIVE_NAMES])[0][1]) if ALTERNATIVE_NAMES in values else []
        access = _inner(_inner(values[AUTHORITY_ACCESS])[0][1]) if AUTHORITY_ACCESS in values else []
        return Certificate(
            tuple(name.decode("ascii") for tag, name in names if tag == 0x82),
            _time(*until),
            any(_inner(description)[0][1] == OCSP for _, description in access),
        )
    except (IndexError, ValueError) as error:
        raise ValueError("not a certificate that can be read") from error


def _inner(der):
    """The items of a DER sequence: a list of tags and contents."""
    items, at = [], 0
    while at < len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length & 0x80:
            digits = length & 0x7F
            length, at = int.from_bytes(der[at : at + digits], "big"), at + digits
        items.append((tag, der[at : at + length]))
        at += length
    return items


def _time(tag, text):
    form = "%y%m%d%H%M%SZ" if tag == 0x17 else "%Y%m%d%H%M%SZ"  # UTCTime, or GeneralizedTime
    return calendar.timegm(time.strptime(text.decode("ascii"), form))


def paths(host, site):
    """What nginx reads for a site that has TLS: the paths of its certificate and of its key."""
    wanted = site.tls["certificate"]
    certified = f"{lineage(site.id)}/fullchain.pem", f"{lineage(site.id)}/privkey.pem"
    if wanted == "acme" and all(map(os.path.exists, certified)):
        return certified
    if wanted in ("acme", "self_signed"):
        return self_signed_paths(host, site.id)
    own = zip((wanted, site.tls["key"]), _private(host, site.id))
    return tuple(said if said.startswith("/") else written for said, written in own)


def texts(host, site):
    """What pillar or sdb holds of a site's certificate and key: paths to text."""
    if site.tls is None or site.tls["certificate"] in ("acme", "self_signed"):
        return {}
    found = {}
    for key, path in zip(("certificate", "key"), paths(host, site)):
        said = site.tls[key]
        if not said.startswith("/"):
            where = f"{key_of(host, site)}:{key}"
            if (site.id, key) not in host.certificates:
                # Lines end as they do when they are read again.
                lines = str(resolve_sdb(host, where, said)).strip().splitlines()
                host.certificates[site.id, key] = "\n".join(lines) + "\n"
            found[path] = host.certificates[site.id, key]
    return found


def key_of(host, site):
    """The pillar key that says what TLS a site has."""
    name = next(name for name in site.apps if host.settings.apps[name]["tls"])
    return f"wsgi:apps:{name}:tls"


def values(host, site):
    """
    What the templates know of a site's certificate.

    Returns a dict, or None where it has no TLS: ``certificate`` and ``key`` (paths), ``stapled`` (whether nginx
    can ask for itself whether it was revoked, and tell clients so), ``reuseport`` (whether it is this
    site that has the kernel share out HTTP/3's packets, which one of a port must, and no two may), ``hsts``
    (that header's value, empty for none) and ``webroot``.
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
    words = [f"max-age={tls['hsts']}", *(["includeSubDomains"] if tls["hsts_subdomains"] else [])]
    return "; ".join([*words, *(["preload"] if tls["hsts_preload"] else [])]) if tls["hsts"] else ""


def _reuseport(host, site):
    port = site.tls["listen"]
    there = [other for other in host.settings.sites.values() if port in other.ports]
    http3 = [other.id for other in there if other.tls["http3"]]
    default = [other.id for other in there if not other.domains]
    if not default and host.settings.nginx["default_site"]:
        return False  # that of unknown hosts does
    return site.id == next((id for id in default if id in http3), min(http3, default=None))


def profile(host, built):
    """What nginx is told of the host's ``tls_profile``: ``protocols``, ``ciphers`` and ``curves``."""
    post_quantum = (POST_QUANTUM,) if built.openssl >= POST_QUANTUM_SINCE else ()
    return {**PROFILES[host.settings.nginx["tls_profile"]], "curves": ":".join(post_quantum + CURVES)}


def check(host, site, built):
    """
    Look at what a site is to have of TLS, before anything depends on it.

    built : NginxBuild

    Returns a list of warnings. Raises ``Problem`` for what can't be.
    """
    if site.tls is None:
        return []
    key = key_of(host, site)
    _check_http(host, site, built, key)
    if site.tls["certificate"] in ("acme", "self_signed"):
        return []
    certificate = _checked_pair(host, site, key)
    if certificate.left() < 0:
        raise Problem(f"{key}:certificate: it expired on {_day(certificate.until)}")
    warnings = []
    missing = certificate.missing([*site.domains, *site.redirect_domains])
    if missing:
        warnings.append(f"{key}:certificate: it is not for {', '.join(missing)}")
    if certificate.left() < OWN_LEFT:
        warnings.append(f"{key}:certificate: it expires on {_day(certificate.until)}")
    return warnings


def _check_http(host, site, built, key):
    installed = f"nginx {'.'.join(map(str, built.version))}"
    if site.tls["http3"] and "http_v3_module" not in built.modules:
        raise Problem(f"{key}:http3: true can't be had: {installed} is built without HTTP/3; leave it out")
    if built.http2_directive:
        return
    for other in host.settings.sites.values():
        if other.tls and other.tls["listen"] == site.tls["listen"] and other.tls["http2"] != site.tls["http2"]:
            raise Problem(
                f"{key}:http2: {str(site.tls['http2']).lower()} is not what {key_of(host, other)}:http2 says, and"
                f" {installed} has it for all of port {site.tls['listen']} or for none; say the same of both"
            )


def _checked_pair(host, site, key):
    """The certificate of a site, which its key belongs to."""
    written = texts(host, site)
    with tempfile.TemporaryDirectory() as folder:  # for root alone
        pair = []
        for what, path in zip(("certificate", "key"), paths(host, site)):
            pair.append(written.get(path) or _own(f"{key}:{what}", path))
            # As OpenSSL wants it: in a file.
            files.write(f"{folder}/{what}", pair[-1], 0o600)
        try:
            certificate = parse(pair[0])
        except ValueError as error:
            raise Problem(f"{key}:certificate: {error}") from error
        try:
            # An empty password: OpenSSL would ask the terminal for one.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(f"{folder}/certificate", f"{folder}/key", password="")
        except (ssl.SSLError, ValueError) as error:
            raise Problem(f"{key}:{_unfit(pair[0], error)}") from error
    return certificate


def _unfit(text, error):
    """Which of a certificate and its key OpenSSL does not take, and why: the end of a problem."""
    reason = getattr(error, "reason", None) or ""
    if reason in MISMATCHES:
        return "key: it is another certificate's"
    if reason.endswith(("_TOO_SMALL", "_TOO_WEAK")):
        return f"certificate: it is too weak: OpenSSL says {reason}"
    try:
        chain = "\n".join(found[0] for found in CERTIFICATE.finditer(text))
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=chain)
    except (ssl.SSLError, TypeError):
        return "certificate: one of those that follow it can't be read"
    return "key: not a private key without a password"


def _own(key, path):
    try:
        text = files.read(path)
    except (OSError, UnicodeDecodeError) as error:
        raise Problem(f"{key}: {path!r} can't be read: {error}") from error
    if text is None:
        raise Problem(f"{key}: {path!r} is not there")
    return text


def _day(seconds):
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def _private(host, stem):
    own = host.family["nginx"]["own_dir"]
    return f"{own}/private/{stem}.crt", f"{own}/private/{stem}.key"


# Self-signed certificates


def self_signed_paths(host, id):
    """Where the self-signed certificate of a site lies, and its key."""
    return _private(host, f"{id}.self-signed")


def due(host, site):
    """Whether a site needs a self-signed certificate that isn't there, or not for its hosts, or not for long."""
    return site.tls is not None and paths(host, site) == self_signed_paths(host, site.id) and _due(host, site)


def _due(host, site):
    certificate, key = self_signed_paths(host, site.id)
    try:
        found = parse(files.read(certificate) or "")
    except ValueError:
        return True
    return not os.path.exists(key) or found.left() < SELF_SIGNED_LEFT or bool(found.missing(_names(site)))


def _names(site):
    return [*site.domains, *site.redirect_domains] or ["localhost"]


def unknown_paths(host, built):
    """The certificate and the key for unknown hosts; None where nginx needs none, and hangs up before."""
    return None if built.version >= REJECT_SINCE else self_signed_paths(host, "unknown")


def missing(host, sites, built):
    """The self-signed certificates that some sites need: a dict of the paths of each and its key to host names."""
    wanted = {self_signed_paths(host, site.id): _names(site) for site in sites if due(host, site)}
    unknown = unknown_paths(host, built)
    if unknown and any(site.tls for site in sites) and not all(map(os.path.exists, unknown)):
        wanted[unknown] = ["invalid"]
    return wanted


def prepare(host, sites, built):
    """Make the self-signed certificates that some sites need, once per run: returns paths to text."""
    found = {}
    for pair, names in missing(host, sites, built).items():
        if (pair, *names) not in host.certificates:
            host.certificates[(pair, *names)] = make_self_signed(names)
        found.update(zip(pair, host.certificates[(pair, *names)]))
    return found


def make_self_signed(names):
    """
    Make a self-signed certificate and its key.

    names : list of str
        The host names that it is for.

    Returns the text of both.
    """
    with tempfile.TemporaryDirectory() as folder:  # for root alone
        files.write(
            f"{folder}/request",
            "[req]\nprompt = no\ndistinguished_name = name\nx509_extensions = extensions\n"
            "[name]\nCN = self-signed\n"
            "[extensions]\nbasicConstraints = critical, CA:FALSE\nkeyUsage = critical, digitalSignature\n"
            f"extendedKeyUsage = serverAuth\nsubjectAltName = {', '.join(f'DNS:{name}' for name in names)}\n",
            0o600,
        )
        made = f"{folder}/certificate", f"{folder}/key"
        command = ["openssl", "req", "-x509", "-sha256", "-days", str(SELF_SIGNED_DAYS), "-config", f"{folder}/request"]
        command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        _run([*command, "-out", made[0], "-keyout", made[1]], "openssl made no certificate")
        return tuple(map(files.read, made))


# Those of an authority


def lineage(id):
    """Where certbot keeps the certificate of a site, in its newest form."""
    return f"{CERTBOT}/live/wsgi-{id}"


def wanting(host):
    """The sites that need certbot to run: a list of ``Site``."""
    sites = host.settings.sites.values()
    return [site for site in sites if site.tls and site.tls["certificate"] == "acme" and _wanting(host, site)]


def _wanting(host, site):
    try:
        found = parse(files.read(f"{lineage(site.id)}/cert.pem") or "")
    except ValueError:
        return True
    said = files.read(f"{CERTBOT}/renewal/wsgi-{site.id}.conf") or ""
    known = dict(re.findall(r"^(server|key_type) = (.*)$", said, re.MULTILINE))
    return (
        known != {"server": _authority(host), "key_type": _key_type(host)}
        or {*found.names} != {name.lower() for name in _names(site)}
        or found.left() < RENEWAL_LEFT
    )


def obtain(host, site):
    """
    Have certbot get a site's certificate. nginx must serve the site.

    Raises ``Problem`` with certbot's own words when it gets none.
    """
    acme = host.settings.nginx["acme"]
    files.ensure_dir(WEBROOT, 0o755)
    command = ["certbot", "certonly", "--non-interactive", "--agree-tos", "--webroot", "--webroot-path", WEBROOT]
    command += ["--cert-name", f"wsgi-{site.id}", "--force-renewal", "--renew-with-new-domains"]
    command += ["--server", _authority(host), "--key-type", _key_type(host), "--deploy-hook", RELOAD]
    email = acme.get("email")
    command += ["--email", email] if email else ["--register-unsafely-without-email"]
    for name in _names(site):
        command += ["--domain", name.lower()]
    bundle = acme.get("ca_bundle")
    _run(
        command,
        f"{key_of(host, site)}:certificate: certbot got none for {', '.join(_names(site))}",
        {"REQUESTS_CA_BUNDLE": bundle} if bundle else {},
    )


def _authority(host):
    return host.settings.nginx["acme"].get("server") or AUTHORITY


def _key_type(host):
    return host.settings.nginx["acme"].get("key_type") or "ecdsa"


def unused(files, own):
    """
    The certificates and keys of ours that no site names any more.

    files : dict
        All files of nginx's, paths to text, to ``Private``, or to None for one that is not to be there.
    own : str
        The folder that is ours.

    Returns a list of paths.
    """
    named = {path for text in files.values() if isinstance(text, str) for path in NAMED.findall(text)}
    return [
        path
        for path in files
        if path.startswith(f"{own}/private/") and path.endswith((".crt", ".key")) and path not in named
    ]


def leftovers(host, texts):
    """
    What certbot has of certificates that no site has any more.

    files : dict
        All files of nginx's, paths to text.

    Returns a list of paths.
    """
    found = []
    for name in files.list_dir(f"{CERTBOT}/renewal"):
        id = re.fullmatch(r"wsgi-(.+)\.conf", name)
        site = id and texts.get(f"{host.family['nginx']['own_dir']}/sites/{id[1]}.conf")
        if id and WEBROOT not in (site or ""):
            parts = [f"{CERTBOT}/{folder}/wsgi-{id[1]}" for folder in ("live", "archive")]
            found += filter(os.path.lexists, [f"{CERTBOT}/renewal/{name}", *parts])
    return found


def newest(files, own):
    """When the newest of the certificates and keys came to be there that nginx's files name and others write."""
    named = {path for text in files.values() for path in NAMED.findall(text or "")}
    times = [0.0]
    for path in named:
        if path.startswith(f"{own}/"):
            continue
        with contextlib.suppress(FileNotFoundError):
            # Of the link that leads to it, too.
            times += [os.lstat(path).st_ctime, os.stat(path).st_ctime]
    return max(times)


def _run(command, otherwise, env=None):
    """Run a program to its end. Raises ``Problem`` with what it said, behind a sentence, when it fails."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**step.index_environment(), **(env or {})},
            timeout=CLIENT_PATIENCE,
            check=False,
        )
    except FileNotFoundError as error:
        raise Problem(f"{otherwise}: {command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise Problem(f"{otherwise}: it took longer than {CLIENT_PATIENCE} s") from error
    if done.returncode:
        raise Problem(f"{otherwise}:\n{tail(done.stdout)}")
