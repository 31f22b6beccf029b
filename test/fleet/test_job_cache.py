"""Secrets of pillar are in no job cache, log or event of the master and its minions."""

import uuid

import pytest
from harness import wait_for
from pillars import app

TOKEN = f"token-{uuid.uuid4().hex}"
PASSWORD = f"hunter2-{uuid.uuid4().hex}"
# The source of the app: a web server on the minion itself, which requires a token.
SITE = f"""set -e
mkdir -p /srv/web /srv/app /root/tls && cd /root/tls
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1 \
    -keyout key -out cert 2>/dev/null
cat key cert > both && cat cert >> /etc/ssl/certs/ca-certificates.crt
tar -C /srv/formula/wsgi/examples/hello -czf /srv/web/hello.tar.gz .
setsid python3 /srv/formula/test/integration/source_server.py 8443 /srv/web {TOKEN}: /root/tls/both >/dev/null 2>&1 &
for try in $(seq 100); do curl -so /dev/null https://127.0.0.1:8443/ && break; sleep 0.1; done
"""
EVENTS = "/var/log/salt/events"
# The master's own copies of the pillars of its minions, which only root can read.
PILLARS = "/var/cache/salt/master/pillar/"


@pytest.fixture(scope="module")
def secrets(master):
    """The secrets of the app on web1, by their use, after successful and failed changes."""
    web1 = master.minions["web1"]
    web1.exec(SITE)
    key, certificate = (web1.exec(["cat", f"/root/tls/{name}"]).stdout for name in ("key", "cert"))
    digest = web1.exec(["openssl", "passwd", "-6", PASSWORD]).stdout.strip()
    archive = f"https://{TOKEN}@127.0.0.1:8443/hello.tar.gz"
    sha256 = web1.exec("sha256sum /srv/web/hello.tar.gz").stdout.split()[0]
    hello = app(
        source=f"{archive}#sha256={sha256}",
        domains=["hello.example.com"],
        tls={"certificate": certificate, "key": key},
        basic_auth={"users": {"ann": digest}},
        env={"PASSWORD": PASSWORD},
        hooks={"before_live": ["echo $PASSWORD"]},
    )
    master.exec(f"systemd-run --quiet --unit=events sh -c 'exec salt-run state.event > {EVENTS}'")
    # The log subscribes to the event bus once it has an event.
    assert wait_for(lambda: not master.exec(["salt", "*", "test.ping"]).rc and master.exec(f"cat {EVENTS}").stdout)
    master.pillar({"apps": {"hello": hello}}, "web1")
    for function in (
        ["state.apply", "wsgi", "test=True"],
        ["state.highstate"],
        ["wsgi.settings"],
        ["wsgi.history", "hello"],
    ):
        master.salt("web1", *function)
    changed = {**hello, "env": {"PASSWORD": f"{PASSWORD}-changed"}, "server": "uwsgi"}
    broken = {**hello, "env": {"PASSWORD": PASSWORD}, "hooks": {"before_live": ["echo $PASSWORD; exit 1"]}}
    missing = {**hello, "source": f"{archive}.missing#sha256={sha256}"}
    wrong = {**hello, "env": {"PASSWORD": [PASSWORD]}, "tls": {"certificate": key, "key": certificate}}
    for pillar in (changed, broken, missing, wrong):
        master.pillar({"apps": {"hello": pillar}}, "web1")
        for function in (["state.apply", "wsgi"], ["wsgi.validate"], ["wsgi.deploy", "hello"]):
            master.salt("web1", *function, ok=pillar is changed)
    master.exec("systemctl stop events")
    return {
        "the password in env": PASSWORD,
        "the token in source": TOKEN,
        "the hash in basic_auth": digest,
        "the key of tls": key.splitlines()[5],
    }


def test_app_has_received_the_secrets(secrets, master):
    assert master.minions["web1"].exec(["grep", "-rlF", PASSWORD, "/etc/wsgi/hello"]).stdout


@pytest.mark.parametrize("place", ["/var/cache/salt", "/var/log", "/run", "/tmp"])
def test_no_secret_is_in_a_cache_or_log(secrets, master, place):
    found = {}
    for machine in (master, *master.minions.values()):
        for name, secret in secrets.items():
            files = machine.exec(["grep", "-rlaF", "-e", secret, place], check=False).stdout.split()
            files = [file for file in files if not file.startswith(PILLARS)]
            if files:
                found[getattr(machine, "id", "master"), name] = files
    assert found == {}


def test_events_are_recorded_in_the_searched_log(secrets, master):
    """Otherwise the search of /var/log would prove nothing about events."""
    events = master.exec(["cat", EVENTS]).stdout
    assert "hello-live" in events
