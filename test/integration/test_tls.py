"""TLS: configured, self-signed and ACME certificates, profiles, HSTS and HTTP/3."""

import json
import re

import pytest
from pillars import app, inspected

OWN, SELF, AUTHORITY = "own.example.com", "self.example.com", "acme.example.com"
ALIAS = f"www.{AUTHORITY}"
DIRECTORY = "https://localhost:14000/dir"
PEBBLE = {
    "pebble": {
        "listenAddress": "127.0.0.1:14000",
        "managementListenAddress": "127.0.0.1:15000",
        "certificate": "/root/tls/localhost.crt",
        "privateKey": "/root/tls/localhost.key",
        "httpPort": 80,
        "tlsPort": 443,
        "ocspResponderURL": "",
    }
}
MAKE = r"""
mkdir -p /root/tls && cd /root/tls
for name in localhost own.example.com other.example.com; do
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 90 -subj "/CN=$name" \
        -addext "subjectAltName=DNS:$name" -addext 'authorityInfoAccess=OCSP;URI:http://127.0.0.1/' -keyout $name.key -out $name.crt
done
"""


@pytest.fixture(scope="module")
def tls(machine):
    """The machine with keys, and a certificate authority that is not running yet."""
    machine.exec("apt-get install -y pebble sslscan")
    machine.exec(MAKE)
    machine.exec(f"echo 127.0.0.1 {AUTHORITY} {ALIAS} >> /etc/hosts")
    machine.put("/root/tls/pebble.json", json.dumps(PEBBLE))
    machine.put("/etc/salt/minion.d/vault.conf", "vault: {driver: yaml, files: [/srv/vault.yaml]}\n", 0o600)
    machine.put("/srv/vault.yaml", json.dumps({"own": {"key": pem(machine, f"{OWN}.key")}}), 0o600)
    return machine


def pem(machine, name):
    return machine.exec(["cat", f"/root/tls/{name}"]).stdout


def pillar(machine, own=None, self_signed=None, nginx=None, server="waitress", aliases=(ALIAS,)):
    return {
        "apps": {
            "own": app(
                server,
                domains=[OWN],
                workers=1,
                tls={
                    "certificate": pem(machine, f"{OWN}.crt"),
                    "key": pem(machine, f"{OWN}.key"),
                    "hsts": 300,
                    "hsts_subdomains": True,
                    **(own or {}),
                },
            ),
            "self": app(
                "gunicorn",
                domains=[SELF],
                workers=1,
                tls={"certificate": "self_signed", "redirect": False, "hsts": 300, **(self_signed or {})},
            ),
            "authority": app("gunicorn", domains=[AUTHORITY], redirect_domains=[*aliases], workers=1, tls="acme"),
        },
        "nginx": {"acme": {"server": DIRECTORY, "ca_bundle": "/root/tls/localhost.crt"}, **(nginx or {})},
    }


def curl(machine, url, *options):
    """Return the status line and headers of a response; ConnectionError when there is none."""
    name = url.split("/")[2]
    resolved = [word for port in (80, 443) for word in ("--resolve", f"{name}:{port}:127.0.0.1")]
    done = machine.exec(["curl", "-skI", "-X", "GET", *resolved, *options, url], check=False)
    if done.rc:
        raise ConnectionError(f"{url}: code {done.rc}")
    return done.stdout.replace("\r", "")


def shown(machine, name, *options):
    """Return what openssl prints of the certificate that nginx shows for a host."""
    client = f"openssl s_client -connect 127.0.0.1:443 -servername {name} </dev/null 2>/dev/null"
    return machine.exec(f"{client} | openssl x509 -noout {' '.join(options)}").stdout.strip()


def changes_of(run):
    return json.dumps(run.raw)


@pytest.fixture(scope="module")
def first_run(tls):
    """The run that brings up all three sites while no authority answers."""
    tls.pillar(pillar(tls, server="gunicorn"))
    return tls.apply(ok=False)


def test_sites_serve_after_the_first_run_though_no_authority_answers(tls, first_run):
    assert first_run.failed == {"wsgi-certificates"}, first_run
    for name in (OWN, SELF, AUTHORITY):
        assert curl(tls, f"https://{name}/").startswith("HTTP/2 200")


def test_comment_says_why_certbot_got_no_certificate(first_run):
    comment = first_run.states["wsgi-certificates"]["comment"]
    assert f"wsgi:apps:authority:tls:certificate: certbot obtained none for {AUTHORITY}, {ALIAS}" in comment
    assert "Connection refused" in comment


def test_configured_certificate_is_shown_and_a_self_signed_one_names_its_host(tls, first_run):
    assert (
        shown(tls, OWN, "-fingerprint")
        == tls.exec(f"openssl x509 -noout -fingerprint -in /root/tls/{OWN}.crt").stdout.strip()
    )
    assert f"DNS:{SELF}" in shown(tls, SELF, "-ext", "subjectAltName")
    assert f"DNS:{AUTHORITY}, DNS:{ALIAS}" in shown(tls, AUTHORITY, "-ext", "subjectAltName")


def test_keys_are_readable_by_root_only_and_in_no_report(tls, first_run):
    listed = tls.exec("stat -c '%a %U %n' /etc/nginx/wsgi/live/private/*_80.*").stdout.splitlines()
    assert len(listed) == 6
    assert all(line.startswith("600 root ") for line in listed)
    secret = pem(tls, f"{OWN}.key").splitlines()[1]
    assert secret not in changes_of(first_run)
    assert secret not in tls.call("wsgi.settings")
    assert "PRIVATE KEY" not in changes_of(first_run)


def test_plain_http_is_redirected_unless_pillar_disables_it(tls, first_run):
    redirected = curl(tls, f"http://{OWN}/a%20b?c=d")
    assert redirected.startswith("HTTP/1.1 308")
    assert f"\nLocation: https://{OWN}/a%20b?c=d\n" in redirected
    assert f"\nLocation: https://{AUTHORITY}/\n" in curl(tls, f"http://{ALIAS}/")
    assert f"\nlocation: https://{AUTHORITY}/\n" in curl(tls, f"https://{ALIAS}/")
    assert curl(tls, f"http://{SELF}/").startswith("HTTP/1.1 200")


def test_hsts_header_is_sent_over_tls_with_every_status(tls, first_run):
    assert "\nstrict-transport-security: max-age=300; includeSubDomains\n" in curl(tls, f"https://{OWN}/")
    assert "\nstrict-transport-security: max-age=300\n" in curl(tls, f"https://{SELF}/")
    assert "trict-" not in curl(tls, f"http://{SELF}/")
    assert "trict-" not in curl(tls, f"https://{AUTHORITY}/")
    tls.call("wsgi.maintenance", "self", "on")
    maintained = curl(tls, f"https://{SELF}/")
    tls.call("wsgi.maintenance", "self", "off")
    assert maintained.startswith("HTTP/2 503")
    assert "\nstrict-transport-security: max-age=300\n" in maintained


def test_request_for_an_unknown_host_gets_no_response(tls, first_run):
    # The handshake fails; before nginx 1.19.4 the connection is closed after it.
    for url in ("https://unknown.example.com/", "https://127.0.0.1/"):
        with pytest.raises(ConnectionError, match="code (35|52|92)"):
            curl(tls, url)


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_tls_sessions_are_resumed(tls, first_run, version):
    client = f"openssl s_client -connect 127.0.0.1:443 -servername {OWN} {version} -ign_eof"
    request = f"printf 'GET / HTTP/1.1\\r\\nHost: {OWN}\\r\\nConnection: close\\r\\n\\r\\n'"
    assert "New, TLS" in tls.exec(f"{request} | {client} -sess_out /tmp/session 2>&1").stdout
    assert "Reused, TLS" in tls.exec(f"{request} | {client} -sess_in /tmp/session 2>&1").stdout


def scanned(machine, name):
    """Return the protocols and ciphers that sslscan finds at a site, and its output."""
    found = machine.exec(
        ["sslscan", "--no-colour", "--no-cipher-details", f"--sni-name={name}", "127.0.0.1:443"]
    ).stdout
    lines = [line.split() for line in found.splitlines()]
    protocols = {words[0] for words in lines if words[1:] == ["enabled"] and words[0].startswith(("SSL", "TLS"))}
    ciphers = {words[4] for words in lines if words[:1] in (["Preferred"], ["Accepted"])}
    return protocols, ciphers, found


TLS13 = {"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"}


def test_intermediate_profile_is_that_of_mozilla(tls, first_run):
    protocols, ciphers, found = scanned(tls, OWN)
    assert protocols == {"TLSv1.2", "TLSv1.3"}, found
    assert ciphers == TLS13 | {
        f"ECDHE-ECDSA-{cipher}" for cipher in ("AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305")
    }
    assert "not vulnerable to heartbleed" in found


@pytest.fixture(scope="module")
def certified(tls, first_run):
    """The run after the authority has started; the configured key comes from sdb now."""
    tls.pillar(pillar(tls, {"key": "sdb://vault/own:key"}, server="gunicorn"))
    environment = "-E PEBBLE_VA_NOSLEEP=1 -E PEBBLE_WFE_NONCEREJECT=0"
    tls.exec(f"systemd-run --unit=pebble {environment} pebble -config /root/tls/pebble.json")
    tls.wait_until("curl -sk https://localhost:14000/dir")
    return tls.apply()


def test_certificate_of_the_authority_is_used_as_soon_as_it_exists(tls, certified):
    assert certified.changed == {"wsgi-certificates"}
    assert "Pebble" in shown(tls, AUTHORITY, "-issuer")
    assert f"DNS:{AUTHORITY}, DNS:{ALIAS}" in shown(tls, AUTHORITY, "-ext", "subjectAltName")
    assert tls.exec("ls /etc/nginx/wsgi/live/private | grep acme", check=False).stdout == ""


def test_idle_run_starts_neither_openssl_nor_certbot_nor_nginx(tls, certified):
    started = re.findall(r"Popen \['(?:/\S*/)?([^/']+)'", "\n".join(tls.observe_idle_run()["started"]))
    assert "systemctl" in started
    assert {*started} & {"openssl", "certbot", "nginx"} == set()


def test_renewal_by_certbot_is_used_and_loses_no_request(tls, certified):
    before = shown(tls, AUTHORITY, "-serial")
    tls.exec(f"sed -i '1i renew_before_expiry = 9 years' /etc/letsencrypt/renewal/wsgi-{AUTHORITY}_80.conf")
    assert tls.exec("systemctl is-active certbot.timer").stdout.strip() == "active"
    with tls.load(port=443, tls=AUTHORITY, host=AUTHORITY, clients=4, pause=0.02) as load:
        tls.exec("systemctl start certbot.service")
    assert load.report["lost"] == 0, load.report
    assert shown(tls, AUTHORITY, "-serial") != before
    assert tls.apply().changed == set()


def test_site_keeps_its_certificate_when_the_authority_gives_no_new_one(tls, certified):
    before = shown(tls, AUTHORITY, "-serial")
    tls.exec("systemctl stop pebble")
    tls.pillar(pillar(tls, server="gunicorn", aliases=[ALIAS, f"shop.{AUTHORITY}"]))
    run = tls.apply(ok=False)
    assert (run.changed, run.failed) == ({"authority-site", "wsgi-nginx"}, {"wsgi-certificates"})
    assert shown(tls, AUTHORITY, "-serial") == before
    assert curl(tls, f"https://{AUTHORITY}/").startswith("HTTP/2 200")


def test_switching_certificates_and_the_server_under_load_loses_no_request(tls, certified):
    own = {"certificate": "self_signed", "key": None}
    key = {"certificate": "/root/tls/other.example.com.crt", "key": "/root/tls/other.example.com.key"}
    tls.pillar(pillar(tls, own, key, {"tls_profile": "modern"}))
    with (
        tls.load(port=443, tls=OWN, host=OWN, clients=4, pause=0.02) as one,
        tls.load(port=443, tls=SELF, host=SELF, clients=4, pause=0.02) as other,
    ):
        run = tls.apply()
    assert (one.report["lost"], other.report["lost"]) == (0, 0), (one.report, other.report)
    assert {"own-live", "own-site", "self-site", "wsgi-nginx"} <= run.changed
    assert "wsgi-certificates" not in run.changed  # its hosts are the old ones again
    assert f"DNS:{OWN}" in shown(tls, OWN, "-ext", "subjectAltName")
    assert "other.example.com" in shown(tls, SELF, "-subject")
    assert run.warnings == [f"wsgi:apps:self:tls:certificate: the certificate does not cover {SELF}"]
    left = tls.exec("cd /etc/nginx/wsgi/live/private && ls *_80.*").stdout.split()
    assert left == [f"{OWN}_80.self-signed.crt", f"{OWN}_80.self-signed.key"]


def test_modern_profile_is_that_of_mozilla(tls, certified):
    protocols, ciphers, found = scanned(tls, OWN)
    assert (protocols, ciphers) == ({"TLSv1.3"}, TLS13), found


def test_certificate_replaced_by_hand_is_used(tls, certified):
    tls.exec(
        "cd /root/tls && cp own.example.com.crt other.example.com.crt && cp own.example.com.key other.example.com.key"
    )
    assert tls.apply().changed == {"wsgi-nginx"}
    assert OWN in shown(tls, SELF, "-subject")


SITES = "find /etc/nginx -type f -name '*_80*' -exec sha256sum {} + | sort"


@pytest.fixture(scope="module")
def refused(tls, certified):
    """The sums of nginx's files before each site got an error of its own; a dry run with the errors, and a real run."""
    before = tls.exec(SITES).stdout
    missing = {"certificate": "/root/tls/none.crt", "key": "/root/tls/own.example.com.key"}
    wrong = pillar(tls, {"key": pem(tls, "localhost.key"), "hsts": 0}, missing, {"tls_profile": "modern"})
    wrong["apps"]["authority"]["workers"] = "many"
    tls.pillar(wrong)
    return before, tls.apply(test=True, ok=False), tls.apply(ok=False)


def test_key_of_another_certificate_is_refused_before_anything_is_touched(tls, refused):
    before, *runs = refused
    for run in runs:
        assert run.failed == {"wsgi-pillar", "own-site", "self-site"}
        assert "wsgi:apps:own:tls:key: the key does not belong to the certificate" in run.states["own-site"]["comment"]
        assert (
            "wsgi:apps:self:tls:certificate: '/root/tls/none.crt' does not exist" in run.states["self-site"]["comment"]
        )
        assert "PRIVATE KEY" not in changes_of(run)
    assert runs[-1].changed == set()
    assert tls.exec(SITES).stdout == before
    assert curl(tls, f"https://{OWN}/").startswith("HTTP/2 200")


def test_app_with_a_problem_keeps_its_certificate_and_its_renewals(tls, refused):
    assert "Pebble" in shown(tls, AUTHORITY, "-issuer")
    assert tls.exec("ls /etc/letsencrypt/renewal").stdout == f"wsgi-{AUTHORITY}_80.conf\n"
    assert tls.exec("test -x /usr/local/lib/wsgi/reload-nginx", check=False).rc == 0


def test_http3_is_served_if_nginx_has_it_and_else_refused(tls, certified):
    http3 = {"http3": True, "redirect": True}
    tls.pillar(pillar(tls, http3, http3))
    if "http_v3_module" not in tls.exec("nginx -V 2>&1").stdout:
        run = tls.apply(test=True, ok=False)
        assert run.failed == {"own-site", "self-site"}
        assert "wsgi:apps:own:tls:http3: true is not available: nginx 1." in run.states["own-site"]["comment"]
        return
    asked = pillar(tls, http3, http3)
    asked["apps"]["own"].update(inspected(domains=[OWN], workers=1))
    tls.pillar(asked)
    tls.apply()
    for name in (OWN, SELF):
        assert '\nalt-svc: h3=":443"; ma=86400\n' in curl(tls, f"https://{name}/")
        assert curl(tls, f"https://{name}/", "--http3-only").startswith("HTTP/3 200")
    assert (
        f'"HTTP_HOST": "{OWN}"'
        in tls.exec(f"curl -sk --http3-only --resolve {OWN}:443:127.0.0.1 https://{OWN}/").stdout
    )
    with pytest.raises(ConnectionError):
        curl(tls, "https://unknown.example.com/", "--http3-only")


def test_removing_a_site_removes_its_certificates(tls, certified):
    everything = pillar(tls)
    everything["apps"] = {"own": {**everything["apps"]["own"], "tls": "none"}}
    tls.pillar(everything)
    tls.apply()
    assert tls.exec("ls /etc/nginx/wsgi/live/private").stdout == ""
    assert tls.exec("find /etc/letsencrypt -name 'wsgi-*'").stdout == ""
    files = "/usr/local/lib/wsgi/reload-nginx /etc/systemd/system/certbot.service.d/wsgi.conf"
    assert tls.exec(f"ls {files}", check=False).stdout == ""
    assert curl(tls, f"http://{OWN}/").startswith("HTTP/1.1 200")
    assert tls.apply().changed == set()
