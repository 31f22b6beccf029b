"""The metrics program: what it counts of requests, gunicorn and uWSGI, and what it exports."""

import contextlib
import importlib.machinery
import importlib.util
import socket
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def program():
    """The program wsgi/metrics/metrics as a module."""
    loader = importlib.machinery.SourceFileLoader("metrics", str(ROOT / "wsgi/metrics/metrics"))
    spec = importlib.util.spec_from_loader("metrics", loader)
    loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


@pytest.fixture
def counted(program, tmp_path, monkeypatch):
    """The counters on a machine where the app `shop` is live."""
    (tmp_path / "live").mkdir()
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(program, "LIVE", str(tmp_path / "live"))
    monkeypatch.setattr(program, "NGINX_EXPORTER", ("127.0.0.1", 9))
    (tmp_path / "live/shop").symlink_to(tmp_path / "run")
    return program.Counted()


def test_request_is_counted_and_timed(program, counted):
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
def test_statsd_metrics_of_gunicorn_are_exported(program, counted, datagrams, sample):
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
def test_datagram_of_no_app_is_ignored(program, counted, datagram):
    counted.take(datagram)
    assert counted.apps == {}
    assert [line for line in program.metrics(counted).splitlines() if "wsgi_live" not in line] == []


def test_metrics_of_a_removed_app_are_dropped(program, counted):
    counted.take(b"shop.gunicorn.requests:1|c")
    Path(program.LIVE, "shop").unlink()
    assert program.metrics(counted) == ""
    assert counted.apps == {}


def test_statistics_of_uwsgi_are_served_to_prometheus(program, counted, tmp_path):
    """Both are sockets, as systemd passes them."""
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
    """answering(socket, parts) answers one connection to a socket, part by part."""
    threads = []

    def answer(listening, said):
        def tell():
            connection = listening.accept()[0]
            with connection, contextlib.suppress(OSError):
                for each in said:
                    connection.sendall(each)
                # Closing a connection with unread data discards the data that was sent.
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
    """Yield a slow answer."""
    for _ in range(40):
        yield b" "
        time.sleep(0.05)
    yield STATS


def flood():
    """Yield an answer that would fill the memory."""
    for _ in range(64):
        yield b" " * 2**16
    yield STATS


@pytest.mark.parametrize(("said", "patience", "told"), [(drops, 0.3, 0), (flood, 30, 0), (lambda: [STATS], 30, 1)])
def test_oversized_answer_on_the_stats_socket_is_dropped(
    program, counted, tmp_path, monkeypatch, answering, said, patience, told
):
    monkeypatch.setattr(program, "TIMEOUT", patience)
    with socket.socket(socket.AF_UNIX) as stats:
        stats.bind(str(tmp_path / "run/stats.sock"))
        answering(stats, said())
        text = program.metrics(counted)
    assert "wsgi_live" in text
    assert text.count("uwsgi_worker_requests_total{") == told


def test_silent_stats_socket_does_not_block_the_metrics(program, counted, tmp_path, monkeypatch):
    monkeypatch.setattr(program, "TIMEOUT", 0.1)
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
def test_invalid_statistics_are_ignored(program, said):
    assert program.uwsgi("shop", said.encode()) == {}


@pytest.mark.parametrize(
    ("head", "told"), [(b"HTTP/1.0 200 OK", True), (b"HTTP/1.0 503 Service Unavailable", False), (b"", False)]
)
def test_metrics_of_nginx_are_appended(program, counted, monkeypatch, answering, head, told):
    with socket.socket() as exporter:
        exporter.bind(("127.0.0.1", 0))
        monkeypatch.setattr(program, "NGINX_EXPORTER", exporter.getsockname())
        answering(exporter, [head + b"\r\nContent-Type: text/plain\r\n\r\nnginx_up 1\n"])
        assert program.metrics(counted).endswith("} 1\nnginx_up 1\n") == told
