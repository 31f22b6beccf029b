"""`wsgi.maintenance <app> on`: nginx answers 503 with a page, and nothing else changes."""

import json

import pytest
from harness import CommandFailed
from pillars import BROKEN_AT_IMPORT, app, inspected, wait_until_asleep

HOST = "hello.example.com"
PAGE = "/srv/salt-top/down.html"
# Sends requests one after the other over one connection, and prints each response.
CLIENT = f"""
import http.client, json, sys
connection = http.client.HTTPConnection("127.0.0.1", 80, timeout=20)
for method, path, headers, size in json.load(sys.stdin):
    connection.request(method, path, b"x" * size or None, {{"Host": "{HOST}", **headers}})
    answer = connection.getresponse()
    received = {{name.lower(): value for name, value in answer.getheaders()}}
    print(json.dumps([answer.status, received, answer.read().decode(), connection.sock is not None]))
"""
UPGRADE = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
REQUESTS = {
    "GET": ("GET", "/any/where?and=more", {}, 0),
    "HEAD": ("HEAD", "/", {}, 0),
    "POST": ("POST", "/", {"Content-Type": "text/plain"}, 100),
    "POST of some MB": ("POST", "/", {}, 5_000_000),
    "PUT": ("PUT", "/", {}, 10),
    "PATCH": ("PATCH", "/", {}, 10),
    "DELETE": ("DELETE", "/", {}, 0),
    "OPTIONS": ("OPTIONS", "/", {}, 0),
    "WebSocket": ("GET", "/", UPGRADE, 0),
    "conditional": ("GET", "/", {"If-None-Match": "*", "If-Modified-Since": "Sat, 01 Jan 2050 00:00:00 GMT"}, 0),
    "a part": ("GET", "/", {"Range": "bytes=0-9"}, 0),
    "the page's own path": ("GET", "//maintenance", {}, 0),
}


def hello(server="uwsgi", **settings):
    return inspected(server, **{"domains": [HOST], "max_requests": 0, **settings})


@pytest.fixture(scope="module")
def served(machine):
    """The machine with an app that answers, and one whose own status is 503."""
    busy = app("uwsgi", source="salt://apps/unhealthy", application="broken:application", domains=["busy.example.com"])
    busy["health"] = {"status": 503}
    machine.put("/root/client.py", CLIENT)
    machine.pillar({"apps": {"hello": hello(), "busy": busy}})
    machine.apply()
    return machine


@pytest.fixture
def maintained(served):
    served.call("wsgi.maintenance", "hello", "on")
    yield served
    served.call("wsgi.maintenance", "hello", "off")


def change(machine, **settings):
    """Apply other settings of hello, and remove the other app."""
    machine.pillar({"apps": {"hello": hello(**settings)}})
    return machine.apply()


def ask(machine, *requests):
    machine.put("/root/requests.json", json.dumps(requests))
    lines = machine.exec("python3 /root/client.py < /root/requests.json").stdout.splitlines()
    return [json.loads(line) for line in lines]


def refused(machine, call):
    with pytest.raises(CommandFailed) as failure:
        machine.call("wsgi.maintenance", *call)
    return str(failure.value)


def workers(machine):
    return machine.exec("pgrep -P $(cat /run/nginx.pid) | sort").stdout


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_any_request_gets_503_with_the_page_on_a_connection_that_stays_open(maintained, request_):
    for status, headers, body, stays in ask(maintained, request_, request_):
        assert status == 503
        assert headers["retry-after"] == "600"
        assert headers["cache-control"] == "no-store"
        assert headers["content-type"] == "text/html; charset=utf-8"
        assert stays
        page = maintained.exec("cat /usr/local/lib/wsgi/maintenance.html").stdout
        assert body == ("" if request_[0] == "HEAD" else page)


def test_maintenance_starts_and_ends_without_a_reload(served):
    before = workers(served)
    for _ in range(2):
        assert served.call("wsgi.maintenance", "hello", "on").startswith("hello is in maintenance")
        assert served.get("/", host=HOST).status == 503
    for _ in range(2):
        assert served.call("wsgi.maintenance", "hello", "off") == "hello is not in maintenance."
        assert served.get("/", host=HOST).status == 200
    assert workers(served) == before
    # Outside of maintenance the path of the page belongs to the app.
    answers = ask(served, REQUESTS["the page's own path"])
    assert json.loads(answers[0][2])["environ"]["PATH_INFO"].endswith("/maintenance")


def test_status_reports_whether_an_app_is_in_maintenance(served):
    assert "maintenance" not in served.status("hello")
    for state, on in (("on", True), ("True", True), ("'on'", True), ("off", False), ("False", False), ("'OFF'", False)):
        said = served.call("wsgi.maintenance", "hello", state)
        assert served.call("wsgi.maintenance", "hello") == said
        status = served.call("wsgi.status")
        assert [status["hello"].get("maintenance"), status["busy"].get("maintenance")] == [on or None, None]


def test_invalid_state_and_unknown_app_are_refused(served):
    assert "'maybe' is not a state of maintenance; it must be on or off" in refused(served, ["hello", "maybe"])
    assert "1 is not a state of maintenance; it must be on or off" in refused(served, ["hello", "1"])
    assert "'hallo' is not an app of this machine (busy, hello)" in refused(served, ["hallo", "on"])
    assert served.exec("ls /var/lib/wsgi/maintenance").stdout == ""


def test_maintenance_of_one_app_leaves_the_503_of_another_alone(maintained):
    answer = maintained.get("/", host="busy.example.com")
    assert (answer.status, answer.body, answer.headers["Retry-After"]) == (503, "", None)


def reload(machine):
    """Reload nginx, and wait until its old workers are gone, which close idle connections."""
    before = workers(machine)
    machine.exec("nginx -s reload")
    gone = " && ".join(f"! kill -0 {pid}" for pid in before.split())
    machine.wait_until(f"{{ {gone}; }} 2>/dev/null")


def test_503_of_a_request_limit_has_no_maintenance_page(served):
    limit = "limit_req_zone $server_name zone=limit:1m rate=1r/m; limit_req zone=limit;\n"
    served.put("/etc/nginx/conf.d/limit.conf", limit)
    reload(served)
    answers = [served.get("/", host=HOST) for _ in range(3)]
    assert answers[-1].status == 503
    assert answers[-1].headers["Retry-After"] is None
    served.exec("rm /etc/nginx/conf.d/limit.conf")
    reload(served)


def test_switching_maintenance_under_load_loses_no_request(served):
    with served.load(clients=8, pause=0.05, host=HOST, statuses="200,503", seconds=300) as load:
        for state in ("on", "off") * 3:
            served.call("wsgi.maintenance", "hello", state)
    assert load.report["lost"] == 0, load.report
    assert min(load.report["statuses"].get(status, 0) for status in ("200", "503")) > 50, load.report


@pytest.mark.parametrize("lost", ["short", "shortcuts/hello.uwsgi"])
def test_app_is_served_without_its_fast_path_and_the_next_run_restores_it(served, lost):
    served.exec(f"rm /var/lib/wsgi/{lost}")
    assert served.get("/", host=HOST).status == 200
    for state, status in (("on", 503), ("off", 200)):
        served.call("wsgi.maintenance", "hello", state)
        assert served.get("/", host=HOST).status == status
    assert served.apply().changed == set()
    assert "hello.uwsgi" in served.exec("ls /var/lib/wsgi/short/").stdout.split()


def test_next_run_after_a_killed_reload_keeps_connections_open_again(served):
    served.exec("touch /run/wsgi/nginx.closing && rm /var/lib/wsgi/short")
    assert [ask(served, REQUESTS["GET"])[0][i] for i in (0, 3)] == [200, False]
    served.apply()
    assert [ask(served, REQUESTS["GET"])[0][i] for i in (0, 3)] == [200, True]


def test_request_in_flight_is_answered_by_the_app(served):
    served.exec(
        "systemd-run --unit=slow --collect sh -c"
        f" 'curl -s -o /dev/null -w %{{http_code}} -H Host:{HOST} 127.0.0.1/?sleep=12 > /tmp/slow'"
    )
    wait_until_asleep(served, "hello", "sleep=12")
    served.call("wsgi.maintenance", "hello", "on")
    assert served.get("/", host=HOST).status == 503
    assert served.exec("cat /tmp/slow").stdout == ""  # still in flight
    served.wait_until("! systemctl is-active -q slow")
    assert served.exec("cat /tmp/slow").stdout == "200"
    served.call("wsgi.maintenance", "hello", "off")


def test_maintenance_survives_highstates_changes_and_a_reboot(maintained):
    assert maintained.apply(sls=None).changed == set()
    before = maintained.status("hello")["generation"]
    change(maintained, env={"A": "1"})  # its health check passes: it is not asked through nginx
    assert maintained.status("hello")["generation"] != before
    assert maintained.get("/", host=HOST).status == 503
    change(maintained, server="waitress", domains=[HOST, "two.example.com"])
    assert maintained.get("/", host=HOST).status == 503
    maintained.restart()
    maintained.wait_until("systemctl is-active -q nginx")
    assert maintained.get("/", host=HOST).status == 503
    assert maintained.status("hello")["maintenance"] is True


def test_reload_during_maintenance_loses_no_request(maintained):
    change(maintained)
    with maintained.load(clients=8, pause=0.05, host=HOST, statuses=503, seconds=300) as load:
        for seconds in (120, 600):
            change(maintained, maintenance={"retry_after": seconds})
            assert maintained.get("/", host=HOST).headers["Retry-After"] == str(seconds)
    assert load.report["lost"] == 0, load.report


def test_own_page_is_added_changed_and_removed_without_a_reload(maintained):
    change(maintained)
    before = workers(maintained)
    own = {"maintenance": {"page": "salt://down.html"}}
    pillar = {"apps": {"hello": hello(**own)}}
    # The page is served byte for byte, with all kinds of line ends.
    for text in ("<p>Gone fishing ☃\r\nback\nsoon", "<p>Back at five\n"):
        maintained.put(PAGE, text)
        maintained.pillar(pillar)
        assert maintained.apply(test=True).changed == {"hello-site"}
        run = maintained.apply()
        assert run.changed == {"hello-site"}
        assert "/var/lib/wsgi/maintenance/hello.html" in run.states["hello-site"]["changes"]
        assert ask(maintained, REQUESTS["GET"])[0][2] == text
        assert maintained.apply().changed == set()
        assert maintained.apply(test=True).changed == set()
    assert change(maintained).changed == {"hello-site"}
    assert "Down for maintenance" in maintained.get("/", host=HOST).body
    assert workers(maintained) == before


def test_page_that_salt_does_not_serve_fails_the_site_and_leaves_it_unchanged(maintained):
    maintained.put(PAGE, "<p>Back at five\n")
    change(maintained, maintenance={"page": "salt://down.html"})
    wrong = hello(maintenance={"page": "salt://dwon.html", "retry_after": 9})
    maintained.pillar({"apps": {"hello": wrong}})
    run = maintained.apply(ok=False)
    assert run.failed == {"hello-site"}
    assert "wsgi:apps:hello:maintenance:page: salt://dwon.html is not served" in run.states["hello-site"]["comment"]
    assert run.changed == set()
    answer = maintained.get("/", host=HOST)
    assert (answer.body, answer.headers["Retry-After"]) == ("<p>Back at five\n", "600")
    assert maintained.apply(test=True, ok=False).failed == {"hello-site"}


def test_app_that_never_went_live_cannot_be_put_into_maintenance(machine):
    broken = app("uwsgi", **BROKEN_AT_IMPORT, domains=["new.example.com"])
    machine.pillar({"apps": {"hello": hello(), "new": broken}})
    machine.apply(ok=False)
    assert "new is not live" in refused(machine, ["new", "on"])


@pytest.mark.parametrize("how", ["absent", "clean"])
def test_removing_the_app_removes_its_maintenance(machine, how):
    own = {"maintenance": {"page": "salt://down.html"}}
    machine.put(PAGE, "<p>Back at five\n")
    change(machine, **own)
    machine.call("wsgi.maintenance", "hello", "on")
    machine.pillar({"apps": {} if how == "absent" else {"hello": hello(**own)}})
    machine.apply(sls="wsgi" if how == "absent" else "wsgi.clean")
    left = machine.exec("ls /var/lib/wsgi/maintenance /usr/local/lib/wsgi/maintenance.html", check=False).stdout
    assert "hello" not in left
    assert ("maintenance.html" in left) == (how == "absent")
    machine.pillar({"apps": {"hello": hello(**own)}})
    predicted = machine.apply(test=True).states["hello-site"]["changes"]
    assert {*machine.apply().states["hello-site"]["changes"]} == {*predicted}
    assert "/var/lib/wsgi/maintenance/hello.html" in predicted
    assert machine.get("/", host=HOST).status == 200
