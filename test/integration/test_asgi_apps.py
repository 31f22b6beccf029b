"""ASGI apps: lifespan, WebSockets, hung requests, and changes meanwhile."""

import json
import time

import harness
import pytest
from container import ROOT
from harness import wait_for
from pillars import asgi, inspected

# Granian closes a WebSocket without a code, and has one process more for each worker.
SERVERS = [name for name, row in harness.servers().items() if row.get("websockets") and name != "granian"]
QUICK = {"request_timeout": 4, "graceful_timeout": 8}
CLIENT = "/tmp/websocket.py"


@pytest.fixture(scope="module", params=SERVERS)
def served(machine, request):
    """The machine that serves the app under each server in turn; `served.server` is the server's name."""
    machine.put(CLIENT, (ROOT / "test/websocket.py").read_text())
    machine.server = request.param
    converge(machine, request.param)
    return machine


def converge(machine, server, make=asgi, **settings):
    machine.pillar({"apps": {"echo": make(server, **{**QUICK, **settings})}})
    machine.apply()


def seen(machine, path="/"):
    return json.loads(machine.get(path).body)


def websocket(machine, *options):
    """Return the lines that the client printed, without pings, as a list of dicts."""
    client = machine.exec(["python3", CLIENT, *options, "http://127.0.0.1/talk"], check=False)
    assert not client.stderr, client.stderr
    return [json.loads(line) for line in client.stdout.splitlines() if "ping" not in line]


def in_background(machine, command):
    """Start a shell command on the machine, and return the path of the file that has its output."""
    output = f"/tmp/{time.monotonic_ns()}"
    machine.exec(["systemd-run", "--collect", "--quiet", "sh", "-c", f"{command} > {output}"])
    return output


def logged(machine, words):
    return words in machine.call("wsgi.logs", "echo")


def test_scope_names_the_client_instead_of_nginx(served):
    scope = seen(served, "/a%20path?of=it")
    assert scope["client"][0] == "127.0.0.1"
    assert (scope["scheme"], scope["path"], scope["query_string"]) == ("http", "/a path", "of=it")
    assert scope["headers"]["host"] == "127.0.0.1"


def test_lifespan_startup_runs_before_the_first_request(served):
    assert seen(served)["started"] is True


def test_response_is_streamed_chunk_by_chunk(served):
    command = "curl -sN '127.0.0.1/?stream=3' | while read number; do echo $number $(date +%s%N); done"
    lines = [line.split() for line in served.exec(command).stdout.splitlines()]
    assert [number for number, _ in lines] == ["0", "1", "2"]
    assert int(lines[2][1]) - int(lines[0][1]) > 0.8e9


def test_large_and_chunked_bodies_are_echoed_whole(served):
    served.exec("head -c 9000000 /dev/urandom > /tmp/sent")
    for header in ("Expect:", "Transfer-Encoding: chunked"):
        served.exec(["curl", "-sf", "-H", header, "--data-binary", "@/tmp/sent", "-o", "/tmp/back", "127.0.0.1/"])
        assert served.exec("cmp /tmp/sent /tmp/back", check=False).rc == 0


def test_exception_is_answered_with_500_and_logged_with_its_traceback(served):
    before = served.status("echo")["pids"]
    assert served.get("/?raise=marked-so").status == 500
    assert wait_for(lambda: logged(served, "RuntimeError: marked-so"), 60)
    assert served.status("echo")["pids"] == before


def test_hung_request_is_cancelled_and_its_worker_keeps_serving(served):
    before = served.status("echo")["pids"]
    assert served.get("/hung?sleep=60").status == 504
    assert logged(served, "GET /hung took more than 4 s; it is cancelled")
    assert served.status("echo")["pids"] == before


@pytest.mark.parametrize("hang", ["block", "stubborn"])
def test_worker_with_a_blocked_event_loop_or_an_uncancellable_request_is_replaced(served, hang):
    before = set(served.status("echo")["pids"])
    in_background(served, f"curl -s '127.0.0.1/?{hang}=60'")
    for _ in range(10):
        assert served.get("/", timeout=20).status == 200
    assert wait_for(lambda: len(before - set(served.status("echo")["pids"])) == 1, 60)
    assert wait_for(lambda: len(served.status("echo")["pids"]) == len(before), 60)


def test_websocket_echoes_messages_and_its_scope_names_the_client(served):
    lines = websocket(served, "--text", "hello", "--text", "ü" * 50_000, "--text", "scope")
    assert lines[0]["status"] == 101
    assert [lines[1]["text"], lines[2]["text"]] == ["hello", "ü" * 50_000]
    scope = json.loads(lines[3]["text"])
    assert (scope["type"], scope["scheme"], scope["client"][0]) == ("websocket", "ws", "127.0.0.1")


def test_idle_websocket_stays_open(served):
    lines = websocket(served, "--text", "still here", "--stay", QUICK["request_timeout"] - 1)
    assert [line["text"] for line in lines if "text" in line] == ["still here"] * 2


def test_recycling_workers_under_load_loses_no_request(served):
    converge(served, served.server, max_requests=50)
    before = set(served.status("echo")["pids"])
    with served.load(clients=8) as load:
        assert wait_for(lambda: len(before & set(served.status("echo")["pids"])) == 1, 60)  # the master
    assert load.report["lost"] == 0, json.dumps(load.report, indent=1)
    converge(served, served.server)


def test_websocket_stays_open_during_a_change_and_is_closed_with_1012(served):
    # nginx closes a silent WebSocket after request_timeout where its server sends no pings: not within the change.
    patient = {"request_timeout": 60}
    converge(served, served.server, **patient)
    output = in_background(served, f"python3 {CLIENT} --text pid --stay 60 http://127.0.0.1/talk")
    assert wait_for(lambda: "text" in served.exec(["cat", output]).stdout, 60)
    converge(served, served.server, env={"CHANGED": str(time.time())}, **patient)
    lines = [json.loads(line) for line in served.exec(["cat", output]).stdout.splitlines()]
    assert lines[-1]["close"] == 1012, lines
    assert lines[-1]["after"] > QUICK["graceful_timeout"] - 4
    converge(served, served.server)


def test_lifespan_shutdown_runs_in_each_worker(served):
    status = served.status("echo")

    def log():
        return served.exec(["cat", f"/var/log/wsgi/echo/{status['generation']}.log"]).stdout

    workers = [pid for pid in status["pids"] if f"lifespan.startup of {pid}" in log().splitlines()]
    assert len(workers) == 2, (status, log())
    converge(served, served.server, env={"CHANGED": str(time.time())})
    ends = {f"lifespan.shutdown of {pid}" for pid in workers}
    # supervisord may not have read their last lines yet.
    assert wait_for(lambda: ends <= set(log().splitlines()), 60), (workers, log())


def test_switching_between_asgi_and_wsgi_under_load_loses_no_request(machine):
    converge(machine, "gunicorn")
    with machine.load(seconds=300, pause=0.02) as load:
        for server in SERVERS:
            converge(machine, server)
            converge(machine, server, make=inspected)
            converge(machine, "uwsgi", make=inspected)
    assert load.report["lost"] == 0, json.dumps(load.report, indent=1)
