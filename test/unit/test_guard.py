"""The guard around the app of each worker, under the Python of the tests."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from wsgiref.util import setup_testing_defaults

import pytest

COMMON = Path(__file__).resolve().parents[2] / "wsgi/common"


@pytest.fixture
def guard_module(monkeypatch, load_program):
    """A fresh module of the guard; its `killed` records what it would kill."""
    monkeypatch.syspath_prepend(COMMON)
    return load_program("wsgi_guard")


def call(application, **environ):
    """Return status, headers and body of a response, as a server gets them."""
    setup_testing_defaults(environ)
    answer = []

    def start_response(status, headers, exc_info=None):
        if answer and not exc_info:
            raise AssertionError("start_response was called twice")
        answer[:] = [status, headers]

    body = application(environ, start_response)
    try:
        content = b"".join(body)
        return *answer, content
    finally:
        getattr(body, "close", lambda: None)()


def hello(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


def test_response_passes_unchanged(guard_module):
    application = guard_module.WSGI(hello, guard_module.Guard())
    assert call(application) == ("200 OK", [("Content-Type", "text/plain")], b"hello")


def test_list_stays_a_list_so_that_servers_know_its_length(guard_module):
    body = guard_module.WSGI(hello, guard_module.Guard())({"REQUEST_METHOD": "GET"}, lambda *_: None)
    assert body == [b"hello"]


def test_file_wrapper_is_passed_through(guard_module):
    class Wrapper(list):
        pass

    wrapped = Wrapper([b"file"])
    guard = guard_module.Guard()
    environ = {"REQUEST_METHOD": "GET", "wsgi.file_wrapper": Wrapper}
    assert guard_module.WSGI(lambda *_: wrapped, guard)(environ, None) is wrapped
    assert not guard.running


def test_file_stays_a_file_if_the_wrapper_is_a_function(guard_module, tmp_path):
    """uWSGI has such a wrapper, and sends the file that it has wrapped last."""
    with open(tmp_path / "file", "wb+") as file:
        environ = {"REQUEST_METHOD": "GET", "wsgi.file_wrapper": lambda wrapped: wrapped}
        assert guard_module.WSGI(lambda *_: file, guard_module.Guard())(environ, None) is file


def test_streaming_request_runs_until_its_body_is_closed(guard_module):
    closed = []

    class Body:
        def __iter__(self):
            return iter([b"a", b"b"])

        def close(self):
            closed.append(True)

    guard = guard_module.Guard()
    body = guard_module.WSGI(lambda *_: Body(), guard)({"REQUEST_METHOD": "GET"}, None)
    assert list(body) == [b"a", b"b"]
    assert len(guard.running) == 1
    body.close()
    assert (guard.running, closed) == ({}, [True])


def raising(environ, start_response):
    raise RuntimeError("nothing was sent")


def raising_later(environ, start_response):
    start_response("200 OK", [])
    yield b""
    raise RuntimeError("nothing was sent")


@pytest.mark.parametrize("application", [raising, raising_later])
def test_exception_is_logged_and_answered_with_500(guard_module, capsys, application):
    guard = guard_module.Guard()
    status, _, body = call(guard_module.WSGI(application, guard))
    assert (status, body) == ("500 Internal Server Error", b"Internal Server Error\n")
    assert "RuntimeError: nothing was sent" in capsys.readouterr().err
    assert not guard.running


def test_exception_is_answered_under_uwsgi_too(guard_module):
    def as_uwsgi_does(status, headers, exc_info):
        raise SystemError("returned a result with an exception set")

    body = guard_module.WSGI(raising, guard_module.Guard())({"REQUEST_METHOD": "GET"}, as_uwsgi_does)
    assert body == [b"Internal Server Error\n"]


def test_exception_after_the_first_part_is_left_to_the_server(guard_module):
    def half(environ, start_response):
        start_response("200 OK", [])
        yield b"half"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        call(guard_module.WSGI(half, guard_module.Guard()))


def test_client_address_comes_from_nginx(guard_module):
    seen = {}

    def application(environ, start_response):
        seen.update(environ)
        return hello(environ, start_response)

    guarded = guard_module.WSGI(application, guard_module.Guard())
    call(guarded, HTTP_X_REAL_IP="192.0.2.7", HTTP_X_FORWARDED_PROTO="https")
    assert (seen["REMOTE_ADDR"], seen["wsgi.url_scheme"], seen["SERVER_PORT"]) == ("192.0.2.7", "https", "443")
    call(guarded, HTTP_X_REAL_IP="192.0.2.7", HTTP_X_FORWARDED_PORT="8443")
    assert (seen["wsgi.url_scheme"], seen["SERVER_PORT"]) == ("http", "8443")


def test_worker_requests_its_replacement_after_max_requests(guard_module):
    guard = guard_module.Guard(max_requests=5)
    application = guard_module.WSGI(hello, guard)
    for _ in range(5):
        assert guard_module.killed == []
        call(application)
    assert guard_module.killed == [(os.getpid(), signal.SIGTERM)]


def test_spawned_worker_requests_its_replacement_from_spawn(guard_module, monkeypatch):
    monkeypatch.setenv("WSGI_SPAWN_LINK", "/run/http-1.sock")
    monkeypatch.setenv("WSGI_SPAWN_PID", "4711")
    monkeypatch.setenv("WSGI_SPAWN_SOCKET", "/run/http-1.1.sock")
    guard = guard_module.Guard(max_requests=1)
    call(guard_module.WSGI(hello, guard))
    assert (4711, signal.SIGUSR1) in guard_module.killed


def test_workers_reach_max_requests_at_different_times(guard_module):
    limits = {guard_module.Guard(max_requests=1000)._left for _ in range(50)}
    assert len(limits) > 5
    assert 1000 <= min(limits) <= max(limits) <= 1100


def run(code, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **environment):
    """Run a worker in a process of its own, and return its exit code and output."""
    return subprocess.run(
        [sys.executable, "-c", "import sys, time, threading; import wsgi_guard\n" + textwrap.dedent(code)],
        env={"PYTHONPATH": str(COMMON), **environment},
        stdout=stdout,
        stderr=stderr,
        text=True,
        timeout=60,
        check=False,
    )


def test_output_of_a_worker_is_written_in_whole_lines():
    """The workers of a generation share one pipe, where parts of lines would mix."""
    ours, its = os.pipe2(os.O_DIRECT)  # keeps apart what was written apart
    code = """
        wsgi_guard.guarded("wsgiref.simple_server:demo_app", "wsgi")
        print("worker", 1, "ends", flush=True)
        raise RuntimeError("and why")
        """
    run(code, stdout=its, stderr=its, PYTHONUNBUFFERED="1")
    os.close(its)
    with open(ours, "rb", buffering=0) as pipe:
        written = list(iter(lambda: pipe.read(65536).decode(), ""))
    assert written[0] == "worker 1 ends\n"
    assert written[-1] == "RuntimeError: and why\n"
    assert all(each.endswith("\n") for each in written), written


@pytest.mark.parametrize("hang", ["time.sleep(600)", "while True: pass"])
def test_hung_request_ends_its_worker_and_logs_where_it_hung(hang):
    done = run(
        f"""
        def where_it_hangs(environ, start_response):
            {hang}
        guard = wsgi_guard.Guard(request_timeout=1)
        wsgi_guard.WSGI(where_it_hangs, guard)({{"REQUEST_METHOD": "GET", "PATH_INFO": "/slow"}}, None)
        """
    )
    assert done.returncode == 1
    assert "GET /slow took more than 1 s; it is replaced" in done.stderr
    assert "where_it_hangs" in done.stderr


def test_requests_beside_a_hung_one_may_finish():
    done = run(
        """
        import signal
        wsgi_guard.INTERVAL = 0.2
        retires = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: (print("retires", flush=True), retires.set()))
        def slow(environ, start_response):
            environ["until"]()
            print("answered", flush=True)
            return []
        guard = wsgi_guard.Guard(request_timeout=60, graceful_timeout=20)
        application = wsgi_guard.WSGI(slow, guard)
        def ask(until):
            application({"REQUEST_METHOD": "GET", "until": until}, None)
        def until_it_retires():
            hung = min(guard.running, key=guard.running.get)
            began, request = guard.running[hung]
            guard.running[hung] = began - 60, request
            retires.wait()
        threading.Thread(target=ask, args=[lambda: time.sleep(600)], daemon=True).start()
        while not guard.running:
            time.sleep(0.01)
        ask(until_it_retires)
        time.sleep(600)
        """
    )
    assert done.returncode == 1
    assert done.stdout.splitlines() == ["retires", "answered"]


def test_worker_with_a_hung_request_serves_until_its_successor_is_ready():
    done = run(
        """
        import wsgi_successor
        alone = threading.Event()
        class Late(wsgi_successor.Alone):
            def ask(self):
                pass
            def relieved(self):
                return alone.is_set()
            def leave(self):
                print("leaves", flush=True)
        wsgi_successor.of_this_process = Late
        application = wsgi_guard.WSGI(lambda environ, _: time.sleep(environ["seconds"]) or [],
                                      wsgi_guard.Guard(request_timeout=1, graceful_timeout=1))
        def ask(seconds):
            application({"REQUEST_METHOD": "GET", "seconds": seconds}, None)
        threading.Thread(target=ask, args=[600], daemon=True).start()
        for _ in range(15):  # which takes longer than both time-outs
            ask(0.2)
        print("has served alone", flush=True)
        alone.set()
        while True:
            ask(0.2)
        """
    )
    assert done.returncode == 1
    assert done.stdout.splitlines()[:2] == ["has served alone", "leaves"]


def test_worker_that_hangs_with_the_gil_held_ends():
    """A C extension may hang so."""
    done = run(
        """
        import ctypes
        wsgi_guard.INTERVAL = 0.2
        hang = ctypes.PyDLL(None).sleep
        def application(environ, start_response):
            time.sleep(0.5)
            hang(600)
        wsgi_guard.WSGI(application, wsgi_guard.Guard(request_timeout=1))({"REQUEST_METHOD": "GET"}, None)
        """
    )
    assert done.returncode == 1
    assert "Timeout" in done.stderr


def test_worker_over_its_memory_limit_is_replaced_and_killed_over_twice_that():
    code = """
        import signal
        retires = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: (print("retires", flush=True), retires.set()))
        kept = []
        def application(environ, start_response):
            kept.append(b"x" * {size} * 2**20)
            return []
        wsgi_guard.WSGI(application, wsgi_guard.Guard(memory_limit=60))({{"REQUEST_METHOD": "GET"}}, None)
        retires.wait(30)
        """
    done = run(code.format(size=60))
    assert (done.returncode, done.stdout) == (0, "retires\n")
    done = run(code.format(size=200))
    assert (done.returncode, done.stdout) == (1, "")
    assert "twice the limit" in done.stderr


def test_asgi_scope_may_leave_out_its_scheme():
    done = run(
        """
        print(wsgi_guard._with_client({"type": "http", "headers": [(b"x-real-ip", b"192.0.2.7")]})["scheme"])
        print(wsgi_guard._with_client({"type": "websocket", "headers": [(b"x-real-ip", b"192.0.2.7")]})["scheme"])
        """
    )
    assert done.stdout.split() == ["http", "ws"], done.stderr


def ask(application):
    """Return what an ASGI app sends for one request with a time-out of 1 s, a line each, and its log."""
    done = run(
        f"""
        import asyncio
        {textwrap.indent(textwrap.dedent(application), " " * 8).strip()}
        async def send(message):
            print(message.get("status") or message["body"].decode().strip(), flush=True)
        guarded = wsgi_guard.ASGI(application, wsgi_guard.Guard(request_timeout=1))
        scope = {{"type": "http", "method": "GET", "path": "/", "scheme": "http", "headers": [(b"x-real-ip", b"192.0.2.7")]}}
        asyncio.run(guarded(scope, None, send))
        """
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


def test_hung_asgi_request_gets_504():
    sent, log = ask(
        """
        async def application(scope, receive, send):
            await asyncio.sleep(600)
        """
    )
    assert sent == ["504", "Gateway Timeout"]
    assert "await asyncio.sleep(600)" in log or "in application" in log


def test_asgi_response_that_has_begun_has_no_timeout():
    sent, _ = ask(
        """
        async def application(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await asyncio.sleep(1.5)
            await send({"type": "http.response.body", "body": scope["client"][0].encode()})
        """
    )
    assert sent == ["200", "192.0.2.7"]


def test_blocked_event_loop_ends_its_worker():
    done = run(
        """
        import asyncio
        async def stands_still(scope, receive, send):
            time.sleep(600)
        application = wsgi_guard.ASGI(stands_still, wsgi_guard.Guard(request_timeout=1))
        asyncio.run(application({"type": "http", "method": "GET", "path": "/", "headers": []}, None, None))
        """
    )
    assert done.returncode == 1
    assert "the event loop has stood still for more than 1 s" in done.stderr
    assert "stands_still" in done.stderr


def test_response_names_its_generation(guard_module):
    application = guard_module.WSGI(hello, guard_module.Guard(run="/run/wsgi/shop/0123456789"))
    headers = [("Content-Type", "text/plain"), ("X-WSGI-Generation", "0123456789")]
    assert call(application) == ("200 OK", headers, b"hello")


MOUNTED = {"HTTP_X_REAL_IP": "192.0.2.1", "HTTP_X_FORWARDED_PREFIX": "/shop"}


@pytest.mark.parametrize(
    ("path", "inner"),
    [("/shop/", "/"), ("/shop/cart/7", "/cart/7"), ("//shop//cart", "/cart"), ("/shop/shop/", "/shop/")],
)
def test_mount_is_passed_as_script_name(guard_module, path, inner):
    seen = {}

    def application(environ, start_response):
        seen.update(environ)
        return hello(environ, start_response)

    call(guard_module.WSGI(application, guard_module.Guard()), PATH_INFO=path, **MOUNTED)
    assert (seen["SCRIPT_NAME"], seen["PATH_INFO"]) == ("/shop", inner)


@pytest.mark.parametrize("path", ["/shopping", "/", "/x/../shop/", "/SHOP/"])
def test_path_outside_of_the_mount_does_not_reach_the_app(guard_module, path):
    status, _, _ = call(guard_module.WSGI(None, guard_module.Guard()), PATH_INFO=path, **MOUNTED)
    assert status == "404 Not Found"


def test_mount_is_trusted_only_from_nginx(guard_module):
    status, _, _ = call(guard_module.WSGI(hello, guard_module.Guard()), HTTP_X_FORWARDED_PREFIX="/shop")
    assert status == "200 OK"
