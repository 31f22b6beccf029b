"""Contract of servers with ASGI apps, each under the process manager that test_every_server.py has for it."""

import hashlib
import json
import threading
import time

import pytest
from fleet import VARIANTS, Fleet, at_once, chosen_servers, once, row
from harness import wait_for

# Without `command`, whose command in VARIANTS runs a WSGI server.
ASGI = {
    name: manager
    for name, manager in once().items()
    if "asgi" in row(name)["interfaces"] and "command" not in VARIANTS.get(name, {})
}
column = pytest.mark.column
asgi = pytest.mark.parametrize(("server", "manager"), ASGI.items())
asgi_websockets = pytest.mark.parametrize(
    ("server", "manager"), [pair for pair in ASGI.items() if row(pair[0]).get("websockets")]
)
MOUNT = "/shop/inner"
SETTINGS = {"workers": 2, "request_timeout": 3, "graceful_timeout": 10}


@pytest.fixture(scope="module")
def found(machine, request):
    """The findings for all servers, which are tested at once."""
    fleet = Fleet(machine, chosen_servers(request, ASGI), "asgi")
    fleet.apply(**SETTINGS)
    asked = fleet.each(send_requests), change_under_load(fleet), request_under_mount(fleet)
    outcomes = fleet.each(lambda site: {k: v for one in asked for k, v in one.of(site).items()})
    fleet.agent.close()
    return outcomes


def send_requests(site):
    """Send all requests that need no change, in an order in which one could disturb the next."""
    before = site.processes()
    found = {
        "get": site.ask("/caf%C3%A9?a=%20b", headers=[["X-Twice", "one"], ["X-Twice", "two"]]),
        "posted": site.ask("/?do=tell", method="POST", size=160_000),
        "chunked": site.ask("/?do=tell", method="POST", size=160_000, chunked=True),
        "head": site.converse({"method": "HEAD"}, {"target": "/?do=echo", "method": "POST", "body": "after"}),
        "streams": site.streams(),
        "at once": site.at_once(12, "/?do=tell&seconds=0.5"),
        "workers": site.workers(),
        "failed": site.ask("/?do=fail&word=42"),
        "said": site.ask("/?do=say&word=42"),
        "unharmed": set(before) == set(site.processes()),
    }
    if site.row.get("websockets"):
        messages = ["one", "zwei ä", "scope", "close"]
        found["websocket"] = site.fleet.agent.do("websocket", host=site.host, messages=messages).result()
    found["hung"] = site.ask("/?do=tell&seconds=40")
    found["logs"] = site.fleet.machine.call("wsgi.logs", site.name, "lines=300")
    found["serves"] = site.serves()
    return found


def change_under_load(fleet):
    """Change a setting of each app under load, during a slow request."""

    def experiment(site):
        with fleet.machine.load(clients=4, host=site.host, path="/?do=echo", pause=0.1) as load:
            changing.wait()
            assert wait_for(lambda: len(site.generations()) == 2, 120, pause=0.05)
            slow = site.ask("/?do=outlast&seconds=1").body
            assert wait_for(lambda: len(site.generations()) == 1, 60)
        return {"slow": slow, "load": load.report}

    changing = threading.Event()
    changed = threading.Thread(target=apply_when_all_are_ready, args=[fleet, changing])
    changed.start()
    outcomes = fleet.each(experiment)
    changed.join()
    return outcomes


def request_under_mount(fleet):
    """Move each app to a mount, and request it there."""
    fleet.apply(mount=MOUNT, **fleet.settings)
    return fleet.each(lambda site: {"mounted": site.ask(f"{MOUNT}/caf%C3%A9?do=tell")})


def apply_when_all_are_ready(fleet, changing):
    time.sleep(3)
    changing.set()
    fleet.apply(**{**SETTINGS, "graceful_timeout": 11})


@pytest.fixture
def answers(found, server, manager):
    return found.futures[server].result()


@column("ASGI")
@asgi
def test_scope_describes_the_request_as_it_was_sent(answers, server):
    seen = answers["get"].json
    scope = seen["scope"]
    assert seen["app"] == server
    assert (scope["type"], scope["method"], scope["scheme"]) == ("http", "GET", "http")
    assert scope["http_version"] in ("1.0", "1.1")
    assert scope["path"] == "/café"
    assert scope["raw_path"] in ("/caf%C3%A9", None)
    assert scope["query_string"] == "a=%20b"
    assert scope.get("root_path", "") == ""
    assert scope["client"][0] == "127.0.0.1"
    assert ["host", f"{server}.example.com"] in scope["headers"]
    assert [value for name, value in scope["headers"] if name == "x-twice"] == ["one", "two"]


@column("ASGI")
@asgi
def test_root_path_is_the_mount_and_the_path_begins_with_it(answers):
    """https://asgi.readthedocs.io/en/latest/specs/www.html#http-connection-scope"""
    scope = answers["mounted"].json["scope"]
    assert (scope["root_path"], scope["path"]) == (MOUNT, f"{MOUNT}/café")
    assert scope["raw_path"] in (f"{MOUNT}/caf%C3%A9", None)


@column("ASGI")
@asgi
def test_lifespan_startup_runs_in_the_event_loop_that_serves(answers):
    assert answers["get"].json["started"]
    assert answers["get"].json["state"] == "by lifespan"


@column("ASGI")
@asgi
@pytest.mark.parametrize("way", ["posted", "chunked"])
def test_body_arrives_whole(answers, way):
    seen = answers[way].json
    assert seen["sha256"] == hashlib.sha256(b"0123456789abcdef" * 10_000).hexdigest()


@column("ASGI")
@asgi
def test_response_may_have_a_header_twice(answers):
    assert answers["get"].values("Set-Cookie") == ["one=1", "two=2"]


@column("ASGI")
@asgi
def test_response_to_head_has_no_body(answers):
    head, after = answers["head"]
    assert (head.status, head.body) == (200, "")
    assert (after.status, after.body) == (200, "after")


@column("ASGI")
@asgi
def test_response_is_streamed_part_by_part(answers):
    assert answers["streams"]


@column("ASGI")
@asgi
def test_worker_answers_many_requests_at_once(answers):
    seen = [answer.json for answer in answers["at once"]]
    assert at_once(seen) == 12
    assert len(answers["workers"]) == 2


@column("ASGI")
@asgi
def test_exception_is_answered_with_500_logged_and_ends_no_process(answers):
    assert answers["failed"].status == 500
    assert "RuntimeError: asked to fail: 42" in answers["logs"]
    assert answers["unharmed"]


@column("ASGI")
@asgi
@pytest.mark.parametrize("way", ["stdout", "stderr", "logging"])
def test_output_of_the_app_is_logged(answers, way):
    assert answers["logs"].count(f"{way} 42") == 1


@column("ASGI")
@asgi
def test_hung_request_is_ended(answers):
    assert answers["hung"].status in (500, 502, 504)
    assert answers["serves"]


@column("WebSockets")
@asgi_websockets
def test_websocket_messages_pass_both_ways(answers, server):
    found = answers["websocket"]
    assert " 101 " in found["head"][0]
    assert "sec-websocket-protocol: contract" in [line.lower() for line in found["head"]]
    one, two, scope, closed = found["answers"]
    assert (one, two, closed) == ([1, "one"], [1, "zwei ä"], [8, 4321])
    seen = json.loads(scope[1])
    assert (seen["scheme"], seen["path"], seen["client"][0]) == ("ws", "/", "127.0.0.1")


@column("ASGI")
@asgi
def test_change_under_load_loses_no_request(answers):
    assert answers["load"]["lost"] == 0, json.dumps(answers["load"], indent=1)
    assert answers["slow"] == "outlasted"
