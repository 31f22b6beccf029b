"""TLS: parsed certificates, nginx's files for them, refused settings, and when certificates are made."""

import calendar
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from conftest import nginx_files_of
from pillars import HELLO
from wsgi_formula.edge import acme, nginx_tree, reload, tls, validation
from wsgi_formula.edge.acme import sites_to_obtain
from wsgi_formula.edge.certificate import Certificate, make_self_signed, parse
from wsgi_formula.edge.nginx import Nginx
from wsgi_formula.edge.nginx_build import NginxBuild
from wsgi_formula.edge.site_files import SecretFile
from wsgi_formula.edge.tls import NAMED
from wsgi_formula.errors import WsgiError

OLD = NginxBuild((1, 18, 0), ("http_v2_module",), (1, 1, 1))
USUAL = NginxBuild((1, 22, 1), ("http_v2_module",), (3, 0, 22))
NEW = NginxBuild((1, 26, 3), ("http_v2_module", "http_v3_module"), (3, 5, 7))
DOMAIN = {"domains": ["example.com"]}
SHOP = {**HELLO, **DOMAIN}
PAIR = {"certificate": "/etc/ssl/shop.pem", "key": "/etc/ssl/shop.key"}
ID = "example.com_80"
BAG = "Bag Attributes\n-----BEGIN PRIVATE KEY-----\n"
# openssl req -x509 … -days 9999 -addext subjectAltName=DNS:example.com,DNS:*.example.com,IP:127.0.0.1
# -addext 'authorityInfoAccess=caIssuers;URI:http://ca.example.com/ca.crt,OCSP;URI:http://ocsp.example.com'
RICH = """\
-----BEGIN CERTIFICATE-----
MIIB/TCCAaOgAwIBAgIUXfWnFojw0E9pdck2fFNFuy8vpwAwCgYIKoZIzj0EAwIw
DDEKMAgGA1UEAwwBeDAgFw0yNjExMjMxMTEyMjVaGA8yMDU0MDQwOTExMTIyNVow
DDEKMAgGA1UEAwwBeDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABPuRcDe+owRT
zXQ65b6Ic7Upl+bJCKjCD5YvFoUPd9lEhgF2hZO0pgMf3WU8omLLpcbtVmezJ9AR
LaD1F5LxczSjgeAwgd0wHQYDVR0OBBYEFLsGLoX90lG319bandC1wZKGvcF9MB8G
A1UdIwQYMBaAFLsGLoX90lG319bandC1wZKGvcF9MA8GA1UdEwEB/wQFMAMBAf8w
KwYDVR0RBCQwIoILZXhhbXBsZS5jb22CDSouZXhhbXBsZS5jb22HBH8AAAEwXQYI
KwYBBQUHAQEEUTBPMCgGCCsGAQUFBzAChhxodHRwOi8vY2EuZXhhbXBsZS5jb20v
Y2EuY3J0MCMGCCsGAQUFBzABhhdodHRwOi8vb2NzcC5leGFtcGxlLmNvbTAKBggq
hkjOPQQDAgNIADBFAiEAw9AKE0f8qJRG/L9uANuHeIoTW7RtBKY1FUZu4/6A+4gC
IBeI/nwoJeC4dQTClaD87xIKen04Apm0Y+HYBU2IGGAd
-----END CERTIFICATE-----
"""
# The same with -days 200 and no extension.
PLAIN = """\
-----BEGIN CERTIFICATE-----
MIIBbDCCAROgAwIBAgIUB4YYyHPCUzKYDex2gMGjh7yMDE4wCgYIKoZIzj0EAwIw
DDEKMAgGA1UEAwwBeDAeFw0yNjExMjMxMTEyMjVaFw0yNzA2MTExMTEyMjVaMAwx
CjAIBgNVBAMMAXgwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAQfgQaSXS0AMdnc
sXX2/zIz8Rjc39pdZfec4hsBEEeUOLZr1V49IFlpvu+kCzUU7F9ocxJCwehjK6kG
2H/uBX+Po1MwUTAdBgNVHQ4EFgQUmvJEwkjT13L+3p294jnBI6PPLacwHwYDVR0j
BBgwFoAUmvJEwkjT13L+3p294jnBI6PPLacwDwYDVR0TAQH/BAUwAwEB/zAKBggq
hkjOPQQDAgNHADBEAiAmVKzCTnBJ5bcSK3FuRet0I6vgICuC8v4yjRLJ//dgXQIg
dWivvIQ9KX5GfI/006XTvofadV6Kxq4aDYMwYOZl4FY=
-----END CERTIFICATE-----
"""


@pytest.fixture
def make_files(make_nginx_host, tmp_path, monkeypatch):
    """make_files({app: {key: value, …}, …}, built, nginx) returns a host with such apps, and its nginx_files_of."""
    monkeypatch.setattr(acme, "CERTBOT", f"{tmp_path}/letsencrypt")

    def files_of(apps, built=USUAL, nginx=None):
        host = make_nginx_host({name: {**DOMAIN, **own} for name, own in apps.items()}, built, nginx=nginx or {})
        return host, nginx_files_of(host)

    return files_of


def blocks(text):
    """Return the server blocks of a file."""
    return re.findall(r"^server \{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)


# Parsing


def test_certificate_is_parsed():
    found = parse(f"Bag Attributes: none\n{RICH}{PLAIN}")
    assert found.names == ("example.com", "*.example.com")
    assert found.until == calendar.timegm((2054, 4, 9, 11, 12, 25))
    assert found.ocsp


def test_certificate_without_extensions_is_parsed():
    assert parse(PLAIN) == Certificate((), calendar.timegm((2027, 6, 11, 11, 12, 25)), False)


@pytest.mark.parametrize(
    "text", ["", RICH[:300], RICH.replace("MIIB/TCC", "MIIB/TC"), RICH.replace("\nMIIB", "\nAAAA")]
)
def test_invalid_certificate_is_refused(text):
    with pytest.raises(ValueError, match="certificate"):
        parse(text)


@pytest.mark.parametrize(
    ("domains", "missing"),
    [
        (["example.com", "WWW.example.com", "*.example.com"], []),
        (["a.b.example.com"], ["a.b.example.com"]),
        (["example.org", "example.com"], ["example.org"]),
        (["com"], ["com"]),
    ],
    ids=str,
)
def test_wildcard_covers_one_label(domains, missing):
    assert parse(RICH).missing(domains) == missing


# nginx's files


@pytest.mark.parametrize("certificate", ["self_signed", "acme"])
def test_site_has_a_self_signed_certificate_until_it_has_its_own(make_files, tmp_path, certificate):
    host, files = make_files({"shop": {"tls": certificate}})
    assert f"ssl_certificate {tmp_path}/own/private/{ID}.self-signed.crt;" in files[f"sites/{ID}.conf"]
    live = tmp_path / f"letsencrypt/live/wsgi-{ID}"
    live.mkdir(parents=True)
    (live / "fullchain.pem").write_text(RICH)
    assert (
        "letsencrypt" not in host.once(Nginx).desired_files("shop")[f"{tmp_path}/own/sites/{ID}.conf"]
    )  # half of a pair
    (live / "privkey.pem").touch()
    text = host.once(Nginx).desired_files("shop")[f"{tmp_path}/own/sites/{ID}.conf"]
    assert (f"ssl_certificate {live}/fullchain.pem;" in text) == (certificate == "acme")
    assert ("ssl_stapling on" in text) == (certificate == "acme")  # as it names a responder


def test_certificate_from_a_path_is_not_copied_and_one_from_pillar_is_private(make_files, tmp_path):
    _, files = make_files({"shop": {"tls": {"certificate": RICH, "key": PAIR["key"]}}})
    assert files[f"private/{ID}.crt"] == SecretFile(RICH)
    assert f"private/{ID}.key" not in files
    assert f"ssl_certificate {tmp_path}/own/private/{ID}.crt;" in files[f"sites/{ID}.conf"]
    assert "ssl_certificate_key /etc/ssl/shop.key;" in files[f"sites/{ID}.conf"]


def test_key_may_come_from_sdb(make_host):
    host = make_host({"apps": {"shop": {**SHOP, "tls": {"certificate": RICH, "key": "sdb://vault/key"}}}})
    asked, key = [], "-----BEGIN PRIVATE KEY-----\r\nhunter2"
    host.salt = {**host.salt, "sdb.get": lambda uri, strict: asked.append(uri) or key}
    for _ in range(2):
        found = host.once(Nginx).desired_files("shop")[f"/etc/nginx/wsgi/live/private/{ID}.key"]
    # Read as from its file, or it would differ in each run.
    assert found == SecretFile("-----BEGIN PRIVATE KEY-----\nhunter2\n")
    assert asked == ["sdb://vault/key"]


@pytest.mark.parametrize(
    ("profile", "built", "words"),
    [
        (
            "intermediate",
            USUAL,
            ["ssl_protocols TLSv1.2 TLSv1.3;", "ECDHE-RSA-CHACHA20-POLY1305", "curve X25519:prime"],
        ),
        ("modern", USUAL, ["ssl_protocols TLSv1.3;"]),
        ("modern", NEW, ["ssl_ecdh_curve X25519MLKEM768:X25519:prime256v1:secp384r1;"]),
    ],
)
def test_tls_profile_is_that_of_mozilla(make_files, profile, built, words):
    text = make_files({"shop": {}}, built, {"tls_profile": profile})[1]["tls.conf"]
    assert [word for word in words if word not in text] == []
    assert ("ssl_ciphers" in text) == (profile == "intermediate")


def test_every_tls_server_block_includes_the_profile(make_files):
    _, files = make_files({"shop": {"tls": "self_signed", "redirect_domains": ["example.org"]}})
    every = blocks(files["wsgi.conf"]) + blocks(files[f"sites/{ID}.conf"])
    assert [" ssl" in block for block in every] == ["/tls.conf;" in block for block in every]
    assert len(every) == 5
    assert ["ssl_reject_handshake" in block for block in every].count(True) == 1


def test_older_nginx_gets_a_certificate_for_unknown_hosts(make_files):
    text = make_files({"shop": {"tls": "self_signed"}}, OLD)[1]["wsgi.conf"]
    assert "ssl_reject_handshake" not in text
    assert "/private/unknown.self-signed.crt;" in text


@pytest.mark.parametrize(
    ("http2", "built", "words"),
    [
        (True, USUAL, ["listen 443 ssl http2;"]),
        (False, USUAL, ["listen 443 ssl;"]),
        (True, NEW, ["listen 443 ssl;", "http2 on;"]),
        (False, NEW, ["listen 443 ssl;"]),
    ],
)
def test_http2_directive_fits_the_version_of_nginx(make_files, http2, built, words):
    text = make_files({"shop": {"tls": {"http2": http2}}}, built)[1][f"sites/{ID}.conf"]
    assert [word for word in words if word not in text] == []
    assert bool(re.search(r"http2( on)?;", text)) == http2


def test_http3_is_announced_and_listened_on(make_files):
    _, files = make_files({"shop": {"tls": {"http3": True, "listen": 8443}}}, NEW)
    assert "listen 8443 quic;" in files[f"sites/{ID}.conf"]
    assert "listen 8443 quic reuseport default_server;" in files["wsgi.conf"]
    assert "add_header Alt-Svc 'h3=\":8443\"; ma=86400' always;" in files["locations/shop.conf"]


@pytest.mark.parametrize("default_site", [True, False])
@pytest.mark.parametrize("domains", [[], ["a.example.com"]], ids=["default", "named"])
def test_one_server_block_per_port_has_reuseport(make_files, domains, default_site):
    http3 = {"tls": {"http3": True}, "redirect_domains": []}
    one = {**http3, "domains": domains}
    two = {**http3, "redirect_domains": ["example.org"]}
    _, files = make_files({"one": one, "two": two}, NEW, {"default_site": default_site})
    said = "".join(text for text in files.values() if isinstance(text, str))
    assert len(re.findall(r"listen 443 quic reuseport", said)) == 1


def test_hsts_header_is_in_every_location_and_never_sent_over_plain_http(make_files):
    tls = {"hsts": 300, "hsts_subdomains": True, "hsts_preload": True, "redirect": False}
    _, files = make_files({"shop": {"tls": tls, "redirect_domains": ["example.org"]}})
    main, redirected = blocks(files[f"sites/{ID}.conf"])
    for block in (main, redirected):
        assert 'if ($https) {\n        set $wsgi_hsts "max-age=300; includeSubDomains; preload";' in block
    for location in re.findall(r"^location [^{]+\{.*?^\}", files["locations/shop.conf"], re.MULTILINE | re.DOTALL):
        assert "Strict-Transport-Security $wsgi_hsts always;" in location or "add_header" not in location


def test_acme_challenge_is_answered_over_plain_http_for_every_host(make_files):
    text = make_files({"shop": {"tls": "acme", "redirect_domains": ["www.example.com"]}})[1][f"sites/{ID}.conf"]
    assert ["/.well-known/acme-challenge/" in block for block in blocks(text)] == [
        "listen 80;" in block for block in blocks(text)
    ]
    assert "acme-challenge" not in make_files({"shop": {"tls": "self_signed"}})[1][f"sites/{ID}.conf"]


# Validation


@pytest.mark.parametrize(
    ("own", "problem"),
    [
        ({"tls": "acme", "domains": []}, "tls:certificate: acme needs domains"),
        (
            {"tls": "acme", "domains": ["*.example.com"]},
            "tls:certificate: acme cannot verify the wildcard '*.example.com'",
        ),
        ({"tls": "acme", "redirect_domains": ["*.example.org"]}, "tls:certificate: acme cannot verify the wildcard"),
        ({"tls": {"certificate": "/etc/ssl/shop.pem"}}, "tls:key: missing; set the private key of the certificate"),
        ({"tls": {"certificate": "self-signed"}}, "tls:certificate: 'self-signed' must be self_signed, acme, none"),
        ({"tls": {**PAIR, "key": "hunter2"}}, "tls:key: is a string; it must be the absolute path of a file"),
        (
            {"tls": {**PAIR, "key": "/etc/ssl/my key.pem"}},
            "tls:key: is a string; it must be the absolute path of a file",
        ),
        ({"tls": {**PAIR, "certificate": "/etc/ssl/$x.pem"}}, "tls:certificate: '/etc/ssl/$x.pem' must be self_signed"),
    ],
    ids=str,
)
def test_invalid_tls_settings_are_refused(load, own, problem):
    problems = load({"apps": {"shop": {**SHOP, **own}}}).messages
    assert problems
    assert problems[0].startswith(f"wsgi:apps:shop:{problem}"), problems


def test_key_in_a_certificate_value_is_not_shown(load):
    bag = f"{BAG}hunter2\n"
    settings = load({"apps": {"shop": {**SHOP, "tls": {"certificate": bag, "key": bag}}}})
    assert settings.messages == ["wsgi:apps:shop:tls:certificate: contains a private key, which belongs into key"]


@pytest.mark.parametrize(
    "tls", [f"{BAG}hunter2", [{"key": f"{BAG}hunter2"}], {"certificate": "PRIVATE KEY hunter2"}], ids=type
)
def test_key_in_another_setting_is_not_shown(load, tls):
    problems = load({"apps": {"shop": {**SHOP, "tls": tls}}}).messages
    assert problems
    assert "hunter2" not in str(problems)


def test_two_sites_of_one_domain_cannot_share_the_tls_port(load):
    apps = {"shop": {**SHOP, "tls": "self_signed"}, "blog": {**SHOP, "listen": 81, "tls": "self_signed"}}
    assert load({"apps": apps}).messages == [
        "wsgi:apps:blog:tls: 'example.com' on port 443 belongs to app shop, which has another listen"
    ]


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"http3": True}, "wsgi:apps:shop:tls:http3: true is not available: nginx 1.22.1 is built without HTTP/3"),
        (
            {"http2": False},
            "wsgi:apps:shop:tls:http2: false differs from wsgi:apps:blog:tls:http2, and nginx 1.22.1",
        ),
        ({**PAIR, "certificate": "/nowhere"}, "wsgi:apps:shop:tls:certificate: '/nowhere' does not exist"),
        ({"certificate": PLAIN, "key": "/nowhere"}, "wsgi:apps:shop:tls:key: '/nowhere' does not exist"),
        ({"certificate": PLAIN, "key": RICH}, "wsgi:apps:shop:tls:key: this is not a private key without a password"),
        ({"certificate": PLAIN[:200], "key": RICH}, "wsgi:apps:shop:tls:certificate: there is no certificate in it"),
    ],
    ids=["http3", "http2", "no certificate", "no key", "no private key", "half a certificate"],
)
def test_unsupported_tls_feature_is_refused(make_files, said, problem):
    host, _ = make_files({"shop": {"tls": said}, "blog": {"domains": ["example.org"], "tls": "self_signed"}})
    with pytest.raises(WsgiError) as raised:
        tls.check(host, host.once(Nginx).files.site_of("shop"))
    assert str(raised.value).startswith(problem)


def openssl(folder, *arguments):
    """Return the text that an OpenSSL command writes."""
    made = folder / f"made-{len(list(folder.iterdir()))}"
    subprocess.run(["openssl", *arguments, "-out", made], check=True, capture_output=True, cwd=folder)
    return made.read_text()


def test_mismatched_certificate_and_key_are_refused_with_the_reason(make_files, tmp_path):
    certificate, key = make_self_signed(["example.com"])
    (tmp_path / "key").write_text(key)
    alike = openssl(tmp_path, "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
    of_another_kind = openssl(tmp_path, "genpkey", "-algorithm", "RSA")
    with_password = openssl(tmp_path, "pkcs8", "-topk8", "-in", "key", "-passout", "pass:hunter2")
    short = ["-newkey", "rsa:512", "-nodes", "-keyout", "short", "-subj", "/CN=x", "-config", "/dev/null"]
    weak = openssl(tmp_path, "req", "-x509", "-sha256", *short)

    def said(certificate, key):
        host, _ = make_files({"shop": {"tls": {"certificate": certificate, "key": key}}})
        try:
            return tls.check(host, host.once(Nginx).files.site_of("shop"))
        except WsgiError as problem:
            return str(problem)

    assert said(certificate, key) == []
    assert said(certificate + PLAIN, key) == []
    assert said(certificate, alike) == "wsgi:apps:shop:tls:key: the key does not belong to the certificate"
    assert said(certificate, of_another_kind) == "wsgi:apps:shop:tls:key: the key does not belong to the certificate"
    assert said(certificate, with_password) == "wsgi:apps:shop:tls:key: this is not a private key without a password"
    chain = certificate + PLAIN.replace("\nMIIB", "\nAAAA")
    assert said(chain, key) == "wsgi:apps:shop:tls:certificate: a certificate of the chain cannot be read"
    found = said(weak, (tmp_path / "short").read_text())
    assert found == "wsgi:apps:shop:tls:certificate: the certificate is too weak: OpenSSL reports EE_KEY_TOO_SMALL"


def test_newer_nginx_allows_sites_to_differ_in_http2(make_files):
    apps = {"shop": {"tls": {"http2": False}}, "blog": {"domains": ["example.org"], "tls": "self_signed"}}
    host, _ = make_files(apps, NEW)
    assert tls.check(host, host.once(Nginx).files.site_of("shop")) == []


# Making and removing certificates


@pytest.mark.parametrize(
    ("names", "left", "due"),
    [(("example.com",), 31, False), (("example.com",), 29, True), (("example.org",), 31, True), (None, 0, True)],
)
def test_self_signed_certificate_is_made_if_missing_wrong_or_expiring(make_files, monkeypatch, names, left, due):
    host, _ = make_files({"shop": {"tls": "self_signed"}})

    def parsed(text):
        if names is None:
            raise ValueError
        return Certificate(names, time.time() + left * 86400, False)

    monkeypatch.setattr(tls, "parse", parsed)
    monkeypatch.setattr(os.path, "exists", lambda path: True)
    assert tls.due(host, host.once(Nginx).files.site_of("shop")) == due


@pytest.mark.parametrize(
    ("acme", "renewal", "wanted"),
    [
        ({}, "server = https://acme-v02.api.letsencrypt.org/directory\nkey_type = ecdsa\n", False),
        ({}, "server = https://staging.example.com/dir\nkey_type = ecdsa\n", True),
        ({"key_type": "rsa"}, "server = https://acme-v02.api.letsencrypt.org/directory\nkey_type = ecdsa\n", True),
        ({"server": "https://ca.example.com/dir"}, "key_type = ecdsa\nserver = https://ca.example.com/dir\n", False),
        ({}, None, True),
    ],
    ids=["the same", "another authority", "another key", "ones own authority", "none"],
)
def test_certbot_runs_if_its_certificate_differs_from_the_requested_one(make_files, tmp_path, acme, renewal, wanted):
    host, _ = make_files({"shop": {"tls": "acme"}}, nginx={"acme": acme})
    site = host.once(Nginx).files.site_of("shop")
    if renewal:
        (tmp_path / "letsencrypt/renewal").mkdir(parents=True)
        (tmp_path / f"letsencrypt/renewal/wsgi-{ID}.conf").write_text(renewal)
    (tmp_path / f"letsencrypt/live/wsgi-{ID}").mkdir(parents=True)
    certificate, _ = make_self_signed(["example.com"])
    (tmp_path / f"letsencrypt/live/wsgi-{ID}/cert.pem").write_text(certificate)
    assert sites_to_obtain(host) == ([site] if wanted else [])


def test_certbot_removes_only_unused_certificates_of_the_formula(make_files, tmp_path):
    host, files = make_files({"shop": {"tls": "acme"}})
    own = f"{tmp_path}/own"
    there = {f"{own}/{path}": text for path, text in files.items()}
    private = [f"{own}/private/{name}" for name in (f"{ID}.crt", f"{ID}.self-signed.crt", "shop.htpasswd")]
    renewal = tmp_path / "letsencrypt/renewal"
    renewal.mkdir(parents=True)
    for name in (f"wsgi-{ID}", "wsgi-gone.example.com_80", "mail.example.com"):
        (renewal / f"{name}.conf").touch()
        (tmp_path / "letsencrypt/archive" / name).mkdir(parents=True)
    assert tls.unused({**there, **dict.fromkeys(private, "")}, own) == [f"{own}/private/{ID}.crt"]
    assert acme.leftovers(there, host.once(Nginx).files.site) == [
        f"{renewal}/wsgi-gone.example.com_80.conf",
        f"{tmp_path}/letsencrypt/archive/wsgi-gone.example.com_80",
    ]


@pytest.fixture
def installed(make_files, tmp_path, monkeypatch):
    """installed(apps) installs nginx's files of such apps; its nginx refuses a site whose certificate is missing."""

    def tested(host, installed, staged=None, changes=()):
        own = host.family["nginx"]["own_dir"]
        for path in NAMED.findall("".join(file.read_text() for file in Path(staged).glob("**/*.conf"))):
            if not os.path.exists(path.replace(own, staged)):
                raise WsgiError(f"{path} is not there")

    def put(apps):
        host, _ = make_files(apps)
        host.once(Nginx).write(*apps)
        return host

    monkeypatch.setattr(validation, "test", tested)
    monkeypatch.setattr(Nginx, "_check_ports", lambda nginx, name: None)
    monkeypatch.setattr(Nginx, "_make_logs", lambda nginx, text: None)
    monkeypatch.setattr(reload, "RUN", str(tmp_path))
    monkeypatch.setattr(reload, "LOCK", f"{tmp_path}/nginx.busy")
    monkeypatch.setattr(reload, "DRAIN_MARKER", f"{tmp_path}/nginx.closing")
    monkeypatch.setattr(reload, "FAST_PATHS", f"{tmp_path}/shortcuts")
    return put


def test_sites_come_back_after_all_certificates_are_lost(installed, tmp_path):
    apps = {name: {"tls": "acme", "domains": [f"{name}.example.com"]} for name in ("blog", "shop")}
    for name in apps:
        live = tmp_path / f"letsencrypt/live/wsgi-{name}.example.com_80"
        live.mkdir(parents=True)
        (live / "fullchain.pem").write_text(RICH)
        (live / "privkey.pem").touch()
    host = installed(apps)
    assert "letsencrypt" in host.once(Nginx).installed_files[f"{tmp_path}/own/sites/shop.example.com_80.conf"]
    shutil.rmtree(tmp_path / "letsencrypt")
    changes = host.once(Nginx).write("blog")
    assert {path for path in changes if "/sites/" in path} == {
        f"{tmp_path}/own/sites/{name}.example.com_80.conf" for name in apps
    }


def test_self_signed_certificate_is_installed_together_with_its_key_and_site(installed, tmp_path, monkeypatch):
    def killed(live, staged, contents):
        assert {*contents} > {f"private/{ID}.self-signed.crt", f"private/{ID}.self-signed.key", f"sites/{ID}.conf"}
        raise KeyboardInterrupt

    monkeypatch.setattr(nginx_tree, "swap", killed)
    with pytest.raises(KeyboardInterrupt):
        installed({"shop": {"tls": "self_signed"}})
    assert os.listdir(tmp_path / "trees") == []
    monkeypatch.undo()


def test_self_signed_certificate_names_its_hosts():
    certificate, key = make_self_signed(["example.com", "*.example.com"])
    found = parse(certificate)
    assert found.names == ("example.com", "*.example.com")
    assert found.left() > 390 * 86400
    assert "PRIVATE KEY" in key


def test_self_signed_key_is_readable_by_root_only(installed, tmp_path):
    installed({"shop": {"tls": "self_signed"}})
    for end in ("crt", "key"):
        assert (tmp_path / f"own/private/{ID}.self-signed.{end}").stat().st_mode & 0o777 == 0o600
