"""nginx's sites: which hosts are answered, which headers reach the app, and which of them a client cannot forge."""

import json
import re

import pytest
from pillars import PAIRS, app, inspected


@pytest.fixture(scope="module", params=["uwsgi", "gunicorn"])
def proxied(machine, request):
    machine.pillar(
        {
            "apps": {
                "one": inspected(request.param, domains=["one.example.com", "*.one.example.com"]),
                "two": app("gunicorn", domains=["two.example.com"], listen=8080),
            }
        }
    )
    machine.apply()
    return machine


@pytest.mark.parametrize("host", ["one.example.com", "ONE.example.com", "any.one.example.com"])
def test_host_of_an_app_is_answered(proxied, host):
    assert proxied.get("/", host=host).status == 200


@pytest.mark.parametrize(
    ("host", "port"),
    [("unknown.example.com", 80), ("127.0.0.1", 80), ("two.example.com", 80), ("one.example.com", 8080)],
)
def test_request_for_an_unknown_host_gets_no_response(proxied, host, port):
    with pytest.raises(ConnectionError, match="Empty reply"):
        proxied.get("/", host=host, port=port)


def test_request_without_a_host_gets_no_response(proxied):
    assert proxied.send(b"GET / HTTP/1.0\r\n\r\n") == ""


def test_forwarded_headers_cannot_be_forged(proxied):
    forged = (
        "X-Forwarded-For: 6.6.6.6\nX-Real-IP: 6.6.6.6\nX-Forwarded-Proto: https\nX-Forwarded-Host: evil.example\n"
        "X-Forwarded-Port: 666\nX-Forwarded-Protocol: ssl\nX-Forwarded-Ssl: on\nX-Forwarded-Scheme: https\n"
        "X-Forwarded-Server: evil\nX-Request-ID: evil\nX-Forwarded-Prefix: /evil\nForwarded: for=6.6.6.6\nProxy: http://evil.example\n"
        "X_Forwarded_For: 6.6.6.6\nHTTP_X_REAL_IP: 6.6.6.6\n"
    )
    request = f"GET / HTTP/1.1\nHost: one.example.com\n{forged}Connection: close\n\n"
    response = proxied.send(request.replace("\n", "\r\n").encode())
    environ = json.loads(response.partition("\n\n")[2])["environ"]
    headers = {name: value for name, value in environ.items() if name.startswith("HTTP_") and value}
    assert re.fullmatch("[0-9a-f]{32}", headers.pop("HTTP_X_REQUEST_ID"))
    assert headers == {
        "HTTP_HOST": "one.example.com",
        "HTTP_X_REAL_IP": "127.0.0.1",
        "HTTP_X_FORWARDED_FOR": "127.0.0.1",
        "HTTP_X_FORWARDED_PROTO": "http",
        **({"HTTP_CONNECTION": "close"} if "HTTP_CONNECTION" in headers else {}),
    }


def test_version_of_nginx_is_not_shown(proxied):
    response = proxied.get("/nothing-here", host="one.example.com")
    assert response.headers["Server"] == "nginx"


def test_each_app_has_an_access_log_of_its_own(proxied):
    proxied.get("/this-request", host="one.example.com")
    logs = proxied.exec("grep -l this-request /var/log/nginx/*.log").stdout.split()
    assert logs == ["/var/log/nginx/wsgi-one.access.log"]


def test_large_headers_and_bodies_reach_the_app(proxied):
    cookie = "x" * 7000
    assert (
        proxied.exec(
            f"curl -so /dev/null -w '%{{http_code}}' -H 'Host: one.example.com' -H 'Cookie: a={cookie}' 127.0.0.1"
        ).stdout
        == "200"
    )
    sent = proxied.exec(
        "head -c 9000000 /dev/urandom > /tmp/sent; curl -s -H 'Host: one.example.com' --data-binary @/tmp/sent 127.0.0.1 | cmp - /tmp/sent"
    )
    assert sent.rc == 0


def test_nginx_is_reloaded_only_when_its_own_files_change(machine):
    def workers():
        return machine.exec("pgrep -P $(cat /run/nginx.pid) | sort").stdout

    machine.pillar({"apps": {"one": app("uwsgi")}})
    machine.apply()
    before = workers()
    for server, manager in [*PAIRS, PAIRS[0]]:
        machine.pillar({"apps": {"one": app(server, process_manager=manager, env={"A": manager})}})
        machine.apply()
        assert workers() == before
    machine.pillar({"apps": {"one": app("uwsgi", domains=["one.example.com"])}})
    machine.apply()
    assert workers() != before


def test_default_site_moves_from_one_app_to_another_in_one_run(machine):
    first = {"one": app("uwsgi", env={"GREETING": "one"}), "two": app("gunicorn", env={"GREETING": "two"})}
    for default, other in (("one", "two"), ("two", "one"), ("one", "two")):
        apps = {default: first[default], other: {**first[other], "domains": ["other.example.com"]}}
        machine.pillar({"apps": apps})
        machine.apply()
        assert machine.get("/").body.startswith(default)
        assert machine.get("/", host="other.example.com").body.startswith(other)


def test_sites_of_other_programs_are_left_alone(machine):
    theirs = "server { listen 8099; return 204; }\n"
    machine.put("/etc/nginx/conf.d/theirs.conf", theirs)
    machine.pillar({"apps": {"one": app("gunicorn", domains=["new.example.com"])}})
    machine.apply()
    assert machine.get("/", port=8099).status == 204
    assert machine.exec("cat /etc/nginx/conf.d/theirs.conf").stdout == theirs
