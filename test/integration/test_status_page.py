"""The status page: its content, who may read it, and how it looks in a browser."""

import base64
import hashlib
import re
import time
from subprocess import run

import pytest
from pillars import app

PASSWORD = "correct horse"
SECRET = "hunter2-of-the-app"
# The least contrast of any text to its background: https://www.w3.org/TR/WCAG21/#dfn-contrast-ratio
CONTRAST = """
(() => {
  const light = colour => {
    const [r, g, b] = colour.match(/[0-9.]+/g).map(each => each / 255)
      .map(each => each <= 0.03928 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = light(getComputedStyle(document.body).backgroundColor);
  const texts = [...document.querySelectorAll("main *")].filter(each => each.textContent.trim());
  return Math.min(...texts.map(each => {
    const text = light(getComputedStyle(each).color);
    return (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
  }));
})()
"""
SEEN = {
    "title": "document.title",
    "language": "document.documentElement.lang",
    "width": "document.documentElement.scrollWidth",
    "widest": "Math.max(...[...document.querySelectorAll('main *')].map(each => each.getBoundingClientRect().right))",
    "heading": "document.querySelectorAll('h1').length",
    "apps": "[...document.querySelectorAll('[aria-labelledby=apps] tbody th')].map(each => each.firstChild.data.trim())",
    "display": "getComputedStyle(document.querySelector('tbody td')).display",
    "ground": "getComputedStyle(document.body).backgroundColor",
    "letters": "Math.min(...[...document.querySelectorAll('main *')].map(e => parseFloat(getComputedStyle(e).fontSize)))",
    "contrast": CONTRAST,
    "text": "document.body.innerText",
    "scripts": "document.scripts.length + document.querySelectorAll('b, [onclick], img, link').length",
}
IN_THE_WAY = "/usr/local/lib/wsgi/maintenance.html"
APPS = {
    "hello": app("uwsgi", domains=["hello.example.com", "*.hello.example.com"], env={"PASSWORD": SECRET}),
    # Only systemd knows the processes of its units.
    "closed": app(
        "uwsgi",
        process_manager="systemd",
        listen=8081,
        tls={"certificate": "self_signed", "redirect": False},
        schedule={"tidy": {"command": "true", "calendar": "daily"}},
    ),
    "unbuilt": app("uwsgi", source="salt://apps/nothing-of-that-name", domains=["unbuilt.example.com"]),
    "wrong": {"source": "salt://wsgi/examples/hello", "<b>bold</b>": 1},
}


def hashed():
    """Return the hash of the password, for pillar."""
    return run(["openssl", "passwd", "-6", PASSWORD], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def served(machine):
    """
    The machine with an app that serves, one in maintenance, one that cannot be built, and one with a problem in pillar;
    and with a folder in the place of a file.
    """
    machine.exec(["mkdir", "--parents", IN_THE_WAY])
    machine.pillar({"apps": APPS, "status_page": {}})
    first = machine.apply(ok=False)
    assert first.failed == {"wsgi-pillar", "unbuilt-release", "unbuilt-live", "unbuilt-site", IN_THE_WAY}, first
    machine.call("wsgi.maintenance", "closed", "on")
    machine.apply(ok=False)
    return machine


@pytest.fixture(scope="module")
def page(served):
    """The page as it is served on loopback."""
    return served.get("/", port=8079)


def test_page_shows_the_state_of_each_app(served, page):
    status = served.call("wsgi.status")
    assert page.status == 200
    assert "2 of 3 apps healthy" in page.body
    assert f"generation <code>{status['hello']['generation']}</code>" in page.body
    assert f"uwsgi {status['hello']['version']} <small>under emperor</small>" in page.body
    assert '<a href="http://hello.example.com/" rel="noreferrer">hello.example.com</a>' in page.body
    assert "in maintenance" in page.body
    assert page.body.count("certificate until ") == 1
    until = served.exec(
        "openssl x509 -enddate -noout < /etc/nginx/wsgi/live/private/default_8081.self-signed.crt"
    ).stdout
    day = time.strftime("%Y-%m-%d", time.strptime(until.strip(), "notAfter=%b %d %H:%M:%S %Y GMT"))
    assert f"<small>certificate until {day}</small>" in page.body


def test_page_shows_what_failed_and_why(page):
    """It is written last, even if states before it failed."""
    assert "&lt;b&gt;bold&lt;/b&gt;: unknown key" in page.body
    assert "<b>" not in page.body
    assert re.search(r"<code>unbuilt-release</code> failed: .*salt://apps/nothing-of-that-name", page.body)
    assert re.search(r'<span class="bad">failed</span>\s*<small>.*nothing-of-that-name', page.body)
    assert f"<code>{IN_THE_WAY}</code> failed: " in page.body
    assert '<span class="good">went live</span>' in page.body
    assert "unbuilt-site" not in page.body


def test_page_has_no_secret(page):
    assert SECRET not in page.body


def test_page_on_disk_is_readable_by_nginx_only(served):
    assert (
        served.exec(["stat", "--format=%a %U %G", "/var/lib/wsgi/status/index.html"]).stdout.strip()
        == "640 root www-data"
    )
    assert served.exec("runuser -u nobody -- cat /var/lib/wsgi/status/index.html", check=False).rc


def test_page_is_served_on_loopback_only(served):
    addresses = {line.split()[3] for line in served.exec("ss -Hltn 'sport = :8079'").stdout.splitlines()}
    assert addresses == {"127.0.0.1:8079"}
    assert served.get("/../../etc/passwd", port=8079).status in (400, 404)
    assert served.get("/index.html", port=8079).status == 404
    assert served.get("/", host="rebound.example.com", port=8079).status == 421
    assert served.get("/", host="localhost:8079", port=8079).status == 200


def test_page_may_load_and_run_nothing_in_a_browser(page):
    style = re.search(r"<style>(.*)</style>", page.body, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = page.headers["Content-Security-Policy"]
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'; ")
    assert page.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(("width", "dark"), [(320, True), (390, False), (1280, False), (1280, True)])
def test_page_is_readable_in_a_browser(served, width, dark):
    seen = served.browse("http://127.0.0.1:8079/", SEEN, f"--width={width}", "--height=844", *["--dark"] * dark)
    assert seen["console"] == []
    assert (seen["language"], seen["heading"], seen["scripts"]) == ("en", 1, 0)
    assert seen["title"].endswith(": 2 of 3 apps healthy")
    assert seen["apps"] == ["closed", "hello", "unbuilt"]
    assert seen["width"] == width
    assert seen["widest"] <= width
    assert seen["display"] == ("table-cell" if width == 1280 else "grid")
    assert seen["letters"] >= 14
    assert seen["contrast"] >= 4.5
    # The style is applied, so its hash in the policy is right.
    assert seen["ground"] == ("rgb(21, 23, 26)" if dark else "rgb(255, 255, 255)")


def test_idle_run_refreshes_the_page_and_reports_no_change(served):
    served.exec(["rmdir", IN_THE_WAY])
    before = served.get("/", port=8079).body
    served.pillar({"apps": {name: APPS[name] for name in ("hello", "closed")}, "status_page": {}})
    gone = served.apply()
    assert "wsgi-status-page" in gone.changed
    first = served.get("/", port=8079).body
    assert "unbuilt" not in first
    assert served.apply(test=True).changed == set()
    assert served.get("/", port=8079).body == first
    assert served.apply().changed == set()
    written = re.compile(r'<time datetime="([^"]+)">')
    assert written.search(served.get("/", port=8079).body)[1] > written.search(first)[1] > written.search(before)[1]


def test_idle_run_starts_no_process_for_the_page(served):
    started = served.observe_idle_run()["started"]
    assert started
    assert [command for command in started if "'show', '--property" in command or "openssl" in command] == []


def test_functions_called_by_hand_update_the_page_at_once(served):
    served.call("wsgi.maintenance", "closed", "off")
    assert "in maintenance" not in served.get("/", port=8079).body
    generation = served.call("wsgi.restart", "hello")
    assert f"generation <code>{generation}</code>" in served.get("/", port=8079).body


def test_page_on_a_domain_needs_a_password(served):
    hash = hashed()
    page = {"domain": "status.example.com", "basic_auth": {"users": {"ann": hash}}}
    served.pillar({"apps": {"hello": APPS["hello"]}, "status_page": page})
    changed = served.apply()
    assert hash not in str(changed.raw)
    assert served.get("/", host="status.example.com").status == 401
    curl = ["curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}"]
    ask = [*curl, "--header", "Host: status.example.com", "http://127.0.0.1/", "--user"]
    assert served.exec([*ask, f"ann:{PASSWORD}"]).stdout == "200"
    assert served.exec([*ask, "ann:guessed"]).stdout == "401"
    with pytest.raises(ConnectionError):
        served.get("/", port=8079)
    with pytest.raises(ConnectionError, match="Empty reply"):
        served.get("/", host="unknown.example.com")
    found = served.exec(["stat", "--format=%a %U %G", "/etc/nginx/wsgi/live/private/_status.htpasswd"]).stdout.strip()
    assert found == "640 root www-data"
    assert served.apply().changed == set()


def test_page_can_be_a_path_of_a_site_over_tls(served):
    """docs/observability.md shows how."""
    words = "location = /status { proxy_pass http://127.0.0.1:8079/; }"
    hello = {**APPS["hello"], "tls": "self_signed", "nginx": {"server": words}}
    served.pillar({"apps": {"hello": hello}, "status_page": {"basic_auth": {"users": {"ann": hashed()}}}})
    served.apply()
    curl = "curl --silent --insecure --resolve hello.example.com:443:127.0.0.1 --write-out '%{http_code}'"
    url = "https://hello.example.com/status"
    assert served.exec(f"{curl} --output /dev/null {url}").stdout == "401"
    page = served.exec(f"{curl} --user 'ann:{PASSWORD}' {url}").stdout
    assert "1 of 1 apps healthy" in page
    assert page.endswith("200")


def test_disabling_the_page_removes_everything_of_it(served):
    served.pillar({"apps": {"hello": APPS["hello"]}})
    assert "wsgi-status-page" in served.apply().changed
    with pytest.raises(ConnectionError, match="Empty reply"):
        served.get("/", host="status.example.com")
    assert not served.host.file("/var/lib/wsgi/status").exists
    assert not served.host.file("/etc/nginx/wsgi/live/private/_status.htpasswd").exists
    assert served.apply().changed == set()
