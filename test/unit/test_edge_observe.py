"""What is logged and counted of each request, and where the status page is: as text, and as problems."""

import contextlib
import importlib.machinery
import importlib.util
import socket
import threading
import time
from pathlib import Path

import pytest
from wsgi_formula import files
from wsgi_formula.app import history
from wsgi_formula.edge import status_page
from wsgi_formula.edge.nginx import Nginx

ROOT = Path(__file__).resolve().parents[2]
SHOP = {"source": "salt://wsgi/examples/hello", "application": "hello:application"}
USERS = {"users": {"ann": "$6$salt$hash"}}


@pytest.fixture
def make_nginx(make_host, tmp_path):
    """make_nginx({app: {key: value}}, key=value…) are nginx's files, by their paths below nginx's folder."""

    def files_of(apps, **top):
        host = make_host({**top, "apps": {name: {**SHOP, **own} for name, own in apps.items()}})
        assert host.settings.problems == []
        for folder in ("conf_dir", "own_dir"):
            host.family["nginx"][folder] = str(tmp_path)
        files = host.once(Nginx).needed_changes(*host.settings.apps)
        return {path[len(str(tmp_path)) + 1 :]: text for path, text in files.items()}

    return files_of


@pytest.fixture
def program():
    """wsgi/metrics/metrics as a module."""
    loader = importlib.machinery.SourceFileLoader("metrics", str(ROOT / "wsgi/metrics/metrics"))
    spec = importlib.util.spec_from_loader("metrics", loader)
    loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


@pytest.fixture
def counted(program, tmp_path, monkeypatch):
    """What counts, on a machine where the app `shop` is live."""
    (tmp_path / "live").mkdir()
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(program, "LIVE", str(tmp_path / "live"))
    monkeypatch.setattr(program, "NGINX_EXPORTER", ("127.0.0.1", 9))
    (tmp_path / "live/shop").symlink_to(tmp_path / "run")
    return program.Counted()


def problems(load, apps=None, **top):
    return load({**top, "apps": {name: {**SHOP, **own} for name, own in (apps or {}).items()}}).problems


# The access log


def test_an_apps_requests_are_logged_as_json_with_its_name(make_nginx):
    files = make_nginx({"shop": {}})
    assert "access_log /var/log/nginx/wsgi-shop.access.log wsgi_json_shop;" in files["locations/shop.conf"]
    assert '"app":"shop"' in files["apps/shop.conf"]
    assert "access_log /var/log/nginx/wsgi-shop.access.log wsgi_json;" in files["sites/default_80.conf"]
    assert '"app":""' in files["wsgi.conf"]


def test_the_log_can_be_combined_or_none(make_nginx):
    files = make_nginx({"one": {"access_log": "combined"}, "two": {"access_log": "none", "listen": 81}})
    assert "access_log /var/log/nginx/wsgi-one.access.log combined;" in files["locations/one.conf"]
    assert "access_log off;" in files["locations/two.conf"]
    assert "log_format" not in files["apps/one.conf"] + files["apps/two.conf"]


def test_an_app_without_a_log_is_counted_all_the_same(make_nginx):
    """`access_log off` would switch off both."""
    location = make_nginx({"shop": {"access_log": "none", "metrics": True}})["locations/shop.conf"]
    assert "access_log off" not in location
    assert "access_log syslog:server=127.0.0.1:8078" in location
    assert "access_log /" not in location


# Metrics: the word


def test_without_the_word_nothing_counts(make_nginx):
    files = make_nginx({"shop": {}})
    assert "8078" not in "".join(files.values())


def test_an_apps_word_brings_the_endpoint(make_nginx, load):
    assert "listen 127.0.0.1:8078;" in make_nginx({"shop": {"metrics": True}})["wsgi.conf"]
    assert load({"apps": {"shop": {**SHOP, "metrics": True}}}).nginx["metrics"] is True


def test_the_hosts_word_counts_nothing_of_an_app(make_nginx):
    files = make_nginx({"shop": {}}, nginx={"metrics": True})
    assert "stub_status;" in files["wsgi.conf"]
    assert "8078" not in files["locations/shop.conf"]


def test_an_app_that_is_left_as_it_is_keeps_the_endpoint(load):
    settings = load({"apps": {"shop": {**SHOP, "metrics": True, "workers": -1}}})
    assert settings.broken == {"shop"}
    assert settings.nginx["metrics"] is True


def test_the_endpoints_port_is_no_apps(load):
    found = problems(load, {"shop": {"listen": 8078, "metrics": True}})
    assert found == ["wsgi:apps:shop:listen: port 8078 is used by the metrics (wsgi:nginx:metrics)"]
    assert problems(load, {"shop": {"listen": 8078}}) == []


# Metrics: the program


def test_a_request_is_counted_and_timed(program, counted):
    for seconds in (b"0.004", b"0.300", b"12.000"):
        counted.take(b"<190>Nov 23 09:26:54 wsgi: shop 200 " + seconds)
    counted.take(b"<190>Nov 23 09:26:54 wsgi: shop 502 0.001")
    text = program.metrics(counted).splitlines()
    assert 'wsgi_requests_total{app="shop",status="200"} 3' in text
    assert 'wsgi_requests_total{app="shop",status="502"} 1' in text
    assert 'wsgi_request_seconds_sum{app="shop"} 12.305' in text
    assert 'wsgi_request_seconds_count{app="shop"} 4' in text
    buckets = [line.split('le="')[1].replace('"}', "") for line in text if "_bucket" in line]
    assert buckets == [
        *("0.005 2", "0.01 2", "0.025 2", "0.05 2", "0.1 2", "0.25 2", "0.5 3", "1 3", "2.5 3", "5 3", "10 3"),
        "+Inf 4",
    ]
    assert text.count("# TYPE wsgi_request_seconds histogram") == 1
    assert text.count("# TYPE wsgi_requests_total counter") == 1


@pytest.mark.parametrize(
    ("datagrams", "sample"),
    [
        (["shop.gunicorn.requests:1|c|@1.0"] * 2, 'gunicorn_requests_total{app="shop"} 2'),
        (["shop.gunicorn.request.status.404:1|c|@1.0"], 'gunicorn_request_status_total{app="shop",status="404"} 1'),
        (["shop.gunicorn.workers:4|g", "shop.gunicorn.workers:3|g"], 'gunicorn_workers{app="shop"} 3'),
        (
            ["shop.gunicorn.request.duration:1.5|ms", "shop.gunicorn.request.duration:2|ms"],
            'gunicorn_request_duration_seconds_sum{app="shop"} 0.0035',
        ),
        (["shop.gunicorn.log.error:1|c|@1.0|#env:live"], 'gunicorn_log_error_total{app="shop"} 1'),
    ],
)
def test_what_gunicorn_tells_is_told_on(program, counted, datagrams, sample):
    for datagram in datagrams:
        counted.take(datagram.encode())
    assert sample in program.metrics(counted).splitlines()


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        b"\xff\xfe",
        b"elsewhere.gunicorn.requests:1|c",
        b"shop.wsgi_requests_total:1|c",
        b"shop.gunicorn.requests:NaN|c",
        b"shop.gunicorn.of_no_such_name:1|c",
        b"shop.gunicorn.request.status:1|c",
        b"shop.gunicorn.workers:-1|g",
        b"../shop.gunicorn.requests:1|c",
        b"<190>Nov 23 09:26:54 wsgi: elsewhere 200 0.1",
        b'<190>Nov 23 09:26:54 wsgi: shop 200 0.1"} 1\nforged 1',
    ],
)
def test_what_is_nobodys_is_passed_over(program, counted, datagram):
    counted.take(datagram)
    assert counted.apps == {}
    assert [line for line in program.metrics(counted).splitlines() if "wsgi_live" not in line] == []


def test_an_app_that_is_gone_is_forgotten(program, counted):
    counted.take(b"shop.gunicorn.requests:1|c")
    Path(program.LIVE, "shop").unlink()
    assert program.metrics(counted) == ""
    assert counted.apps == {}


def test_uwsgi_is_asked_and_prometheus_answered(program, counted, tmp_path):
    """Over sockets, as systemd hands them over."""
    listening, stats = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    stats.bind(str(tmp_path / "run/stats.sock"))
    listening.bind(str(tmp_path / "http.sock"))
    for each in (listening, stats):
        each.listen(1)
    told = b'{"load": 1, "workers": [{"id": 1, "requests": 7, "status": "busy", "running_time": 1500000}]}'

    def tell():
        connection = stats.accept()[0]
        connection.sendall(told)
        connection.close()

    server = program.Server(listening, counted)
    threads = [threading.Thread(target=target, daemon=True) for target in (tell, server.handle_request)]
    for thread in threads:
        thread.start()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "http.sock"))
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(65536), b"")).decode()
    for thread in threads:
        thread.join(10)
    for each in (listening, stats):
        each.close()
    head, _, body = answer.partition("\r\n\r\n")
    assert "200" in head.splitlines()[0]
    assert "text/plain; version=0.0.4" in head
    lines = body.splitlines()
    assert 'uwsgi_worker_requests_total{app="shop",worker="1"} 7' in lines
    assert 'uwsgi_worker_running_seconds_total{app="shop",worker="1"} 1.5' in lines
    assert 'uwsgi_workers{app="shop",status="busy"} 1' in lines


@pytest.fixture
def answering():
    """answering(socket, said) has one connection to a socket answered, piece by piece."""
    threads = []

    def answer(listening, said):
        def tell():
            connection = listening.accept()[0]
            with connection, contextlib.suppress(OSError):
                for each in said:
                    connection.sendall(each)
                # Whoever hangs up with something unread takes back what it said.
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass

        listening.listen(1)
        threads.append(threading.Thread(target=tell, daemon=True))
        threads[-1].start()

    yield answer
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


STATS = b'{"workers": [{"id": 1, "requests": 7, "status": "idle"}]}'


def drops():
    """An answer that takes its time."""
    for _ in range(40):
        yield b" "
        time.sleep(0.05)
    yield STATS


def flood():
    """One that would fill the memory."""
    for _ in range(64):
        yield b" " * 2**16
    yield STATS


@pytest.mark.parametrize(("said", "patience", "told"), [(drops, 0.3, 0), (flood, 30, 0), (lambda: [STATS], 30, 1)])
def test_an_app_that_says_much_in_place_of_uwsgi_harms_nobody(
    program, counted, tmp_path, monkeypatch, answering, said, patience, told
):
    monkeypatch.setattr(program, "PATIENCE", patience)
    with socket.socket(socket.AF_UNIX) as stats:
        stats.bind(str(tmp_path / "run/stats.sock"))
        answering(stats, said())
        text = program.metrics(counted)
    assert "wsgi_live" in text
    assert text.count("uwsgi_worker_requests_total{") == told


def test_a_uwsgi_that_says_nothing_keeps_nobody_waiting(program, counted, tmp_path, monkeypatch):
    monkeypatch.setattr(program, "PATIENCE", 0.1)
    with socket.socket(socket.AF_UNIX) as stats:
        stats.bind(str(tmp_path / "run/stats.sock"))
        stats.listen(1)
        text = program.metrics(counted)
    assert "wsgi_live" in text
    assert "uwsgi_" not in text


@pytest.mark.parametrize(
    "said",
    [
        "",
        "no JSON",
        "[" * 100000,
        "[]",
        "null",
        "{}",
        '{"workers": 7}',
        '{"workers": [7]}',
        '{"workers": [{"id": 1, "status": 7}]}',
        '{"workers": [{"id": "forged\\n", "status": "idle", "tx": 1}]}',
        '{"workers": [], "load": "much"}',
        '{"workers": [], "load": 1%s}' % ("0" * 400),
    ],
)
def test_only_what_is_uwsgis_is_told_on(program, said):
    assert program.uwsgi("shop", said.encode()) == {}


@pytest.mark.parametrize(
    ("head", "told"), [(b"HTTP/1.0 200 OK", True), (b"HTTP/1.0 503 Service Unavailable", False), (b"", False)]
)
def test_nginxs_own_come_behind(program, counted, monkeypatch, answering, head, told):
    with socket.socket() as exporter:
        exporter.bind(("127.0.0.1", 0))
        monkeypatch.setattr(program, "NGINX_EXPORTER", exporter.getsockname())
        answering(exporter, [head + b"\r\nContent-Type: text/plain\r\n\r\nnginx_up 1\n"])
        assert program.metrics(counted).endswith("} 1\nnginx_up 1\n") == told


# The status page


def test_without_the_word_there_is_no_page(make_nginx):
    files = make_nginx({"shop": {}})
    assert "/var/lib/wsgi/status" not in files["wsgi.conf"]
    assert files.get("private/_status.htpasswd") is None


def test_the_page_is_on_loopback(make_nginx):
    conf = make_nginx({"shop": {}}, status_page={})["wsgi.conf"]
    assert "listen 127.0.0.1:8079;" in conf
    assert "auth_basic" not in conf


def test_a_domain_has_the_page_for_those_with_a_password(make_nginx):
    files = make_nginx(
        {"shop": {"domains": ["shop.example.com"]}}, status_page={"domain": "status.example.com", "basic_auth": USERS}
    )
    assert "server_name status.example.com;" in files["wsgi.conf"]
    assert 'auth_basic "Status";' in files["wsgi.conf"]
    assert "127.0.0.1:8079" not in files["wsgi.conf"]
    passwords = files["private/_status.htpasswd"]
    assert (passwords.text, passwords.mode) == ("ann:$6$salt$hash\n", 0o640)


def test_unknown_hosts_do_not_get_to_the_page(make_nginx):
    page = {"domain": "status.example.com", "listen": 8443, "basic_auth": USERS}
    conf = make_nginx({"shop": {"domains": ["shop.example.com"]}}, status_page=page)["wsgi.conf"]
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
def test_a_page_that_cannot_be_is_a_problem_of_the_host(load, page, problem):
    shop = {**SHOP, "domains": ["shop.example.com"], "tls": "self_signed", "metrics": True}
    settings = load({"apps": {"shop": shop}, "status_page": page})
    assert settings.problems == [problem]
    assert settings.host_wide


def test_the_pages_port_is_no_apps(load):
    found = problems(load, {"shop": {"listen": 8079}}, status_page={})
    assert found == ["wsgi:apps:shop:listen: port 8079 is used by the status page (wsgi:status_page:listen)"]


def test_a_password_itself_is_refused_and_not_shown(load):
    found = problems(load, status_page={"domain": "a.example.com", "basic_auth": {"users": {"ann": "hunter2"}}})
    assert any("openssl passwd -6" in sentence for sentence in found)
    assert "hunter2" not in "".join(found)


@pytest.fixture
def facts(make_host, monkeypatch):
    """facts(health=…, **status) are those of a page about one app."""

    def facts_of(entries=(), **status):
        host = make_host({"apps": {"shop": {**SHOP, "domains": ["shop.example.com"]}}, "status_page": {}})
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


def test_time_and_health_alone_are_no_change(facts):
    content = [
        status_page.content(facts(**status)[1])
        for status in (
            {},
            {"health": {"ok": False, "error": "refused"}},
            {"generation": "c"},
        )
    ]
    assert content[0] == content[1] != content[2]


def test_a_failure_that_comes_again_is_no_change(facts):
    failed = {"event": "failed", "error": "no\nTraceback", "at": 1}
    once, again = (facts([{**failed, "times": times, "at": times}])[1] for times in (1, 2))
    assert status_page.content(once) == status_page.content(again)


def test_of_an_error_the_page_has_the_first_line_and_no_credentials(facts):
    error = "git: https://ann:hunter2@git.example.com failed\nTraceback of hunter3"
    shown = str(facts([{"event": "failed", "error": error, "at": 1}])[1])
    assert "git.example.com failed" in shown
    assert "hunter" not in shown


def test_whatever_a_page_tells_is_text(facts, monkeypatch, tmp_path):
    host, told = facts([{"event": "failed", "error": "<script>alert(1)</script>", "at": 1}], generation='"><b>')
    page = {}
    monkeypatch.setattr(files, "ensure_dir", lambda *args: None)
    monkeypatch.setattr(files, "write", lambda path, text, *args: page.update(text=text))
    status_page.write(host, told)
    assert "<script" not in page["text"]
    assert "<b>" not in page["text"]
    assert "&lt;script&gt;" in page["text"]
    assert '<a href="http://shop.example.com/"' in page["text"]
