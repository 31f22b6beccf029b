"""The status page: where it is served, to whom, and its content."""

import pytest
from pillars import HELLO
from wsgi_formula import files
from wsgi_formula.app import history
from wsgi_formula.edge import status_page

USERS = {"users": {"ann": "$6$salt$hash"}}


def problems(load, apps=None, **top):
    return load({**top, "apps": {name: {**HELLO, **own} for name, own in (apps or {}).items()}}).messages


def test_status_page_is_off_by_default(make_nginx_files):
    files = make_nginx_files({"shop": {}})
    assert "/var/lib/wsgi/status" not in files["wsgi.conf"]
    assert files.get("private/_status.htpasswd") is None


def test_status_page_listens_on_loopback(make_nginx_files):
    conf = make_nginx_files({"shop": {}}, status_page={})["wsgi.conf"]
    assert "listen 127.0.0.1:8079;" in conf
    assert "auth_basic" not in conf


def test_status_page_on_a_domain_needs_a_password(make_nginx_files):
    files = make_nginx_files(
        {"shop": {"domains": ["shop.example.com"]}}, status_page={"domain": "status.example.com", "basic_auth": USERS}
    )
    assert "server_name status.example.com;" in files["wsgi.conf"]
    assert 'auth_basic "Status";' in files["wsgi.conf"]
    assert "127.0.0.1:8079" not in files["wsgi.conf"]
    passwords = files["private/_status.htpasswd"]
    assert (passwords.text, passwords.mode) == ("ann:$6$salt$hash\n", 0o640)


def test_unknown_hosts_do_not_reach_the_status_page(make_nginx_files):
    page = {"domain": "status.example.com", "listen": 8443, "basic_auth": USERS}
    conf = make_nginx_files({"shop": {"domains": ["shop.example.com"]}}, status_page=page)["wsgi.conf"]
    assert "listen 8443 default_server;" in conf
    assert conf.index("return 444;") < conf.index("server_name status.example.com;")


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        (
            {"domain": "status.example.com"},
            "wsgi:status_page:basic_auth:users: missing; a status page without users is on loopback only, and has no domain",
        ),
        (
            {"domain": "Shop.example.com", "basic_auth": USERS},
            "wsgi:status_page:domain: 'Shop.example.com' on port 80 belongs to app shop already",
        ),
        (
            {"domain": "status.example.com", "basic_auth": USERS, "listen": 443},
            "wsgi:status_page:listen: port 443 is used by app shop for TLS (tls:listen)",
        ),
        ({"listen": 8078}, "wsgi:status_page:listen: port 8078 is used by the metrics (wsgi:nginx:metrics)"),
    ],
)
def test_invalid_status_page_is_a_problem_of_the_host(load, page, problem):
    shop = {**HELLO, "domains": ["shop.example.com"], "tls": "self_signed", "metrics": True}
    settings = load({"apps": {"shop": shop}, "status_page": page})
    assert settings.messages == [problem]
    assert settings.host_wide


def test_port_of_the_status_page_is_refused_for_apps(load):
    found = problems(load, {"shop": {"listen": 8079}}, status_page={})
    assert found == ["wsgi:apps:shop:listen: port 8079 is used by the status page (wsgi:status_page:listen)"]


def test_plain_password_is_refused_and_not_shown(load):
    found = problems(load, status_page={"domain": "a.example.com", "basic_auth": {"users": {"ann": "hunter2"}}})
    assert any("openssl passwd -6" in sentence for sentence in found)
    assert "hunter2" not in "".join(found)


@pytest.fixture
def facts(make_host, monkeypatch):
    """facts(history, health=…, **status) returns a host and the facts of a page about one app."""

    def facts_of(entries=(), **status):
        host = make_host({"apps": {"shop": {**HELLO, "domains": ["shop.example.com"]}}, "status_page": {}})
        whole = {
            "live": True,
            "health": {"ok": True, "latency_ms": 1.0},
            "workers": 2,
        }
        whole.update(
            {"server": "uwsgi", "version": "2", "process_manager": "emperor", "generation": "a", "release": "b"}
        )
        apps = {"shop": {**whole, "since": "2026-11-23 10:00:00", **status}}
        monkeypatch.setattr(history, "entries", lambda name: list(entries))
        return host, status_page.facts(host, apps)

    return facts_of


def test_time_and_health_alone_do_not_change_the_page(facts):
    content = [
        status_page.content(facts(**status)[1])
        for status in (
            {},
            {"health": {"ok": False, "error": "refused"}},
            {"generation": "c"},
        )
    ]
    assert content[0] == content[1] != content[2]


def test_repeated_failure_does_not_change_the_page(facts):
    failed = {"event": "failed", "error": "no\nTraceback", "at": 1}
    once, again = (facts([{**failed, "times": times, "at": times}])[1] for times in (1, 2))
    assert status_page.content(once) == status_page.content(again)


def test_page_shows_the_first_line_of_an_error_without_credentials(facts):
    error = "git: https://ann:hunter2@git.example.com failed\nTraceback of hunter3"
    shown = str(facts([{"event": "failed", "error": error, "at": 1}])[1])
    assert "git.example.com failed" in shown
    assert "hunter" not in shown


def test_page_escapes_html(facts, monkeypatch, tmp_path):
    host, told = facts([{"event": "failed", "error": "<script>alert(1)</script>", "at": 1}], generation='"><b>')
    page = {}
    monkeypatch.setattr(files, "ensure_dir", lambda *args: None)
    monkeypatch.setattr(files, "write", lambda path, text, *args: page.update(text=text))
    status_page.write(host, told)
    assert "<script" not in page["text"]
    assert "<b>" not in page["text"]
    assert "&lt;script&gt;" in page["text"]
    assert '<a href="http://shop.example.com/"' in page["text"]
