"""The contract that every server keeps under every process manager that may hold it.

The files beside this one take it over, one for each process manager: all of its servers stand
on one machine then, and share what takes long. Tests run in their order. First come two processes
of one thread, without limits; then, after one change under way of a slow request, `limited`.
"""

import hashlib
import json
import threading
import time

import pytest
from fleet import at_once, honoured, wait_for
from fleet import refused as unhonoured
from smuggling import attempts

column = pytest.mark.column
setting = pytest.mark.setting
LIMITS = {
    "workers": 2,
    "threads": 2,
    "request_timeout": 3,
    "graceful_timeout": 10,
    "max_requests": 400,
    "memory_limit": 120,
}
TEN_MIB = 10 * 2**20
MOUNT = "/shop/inner"


@column("serves")
def test_serves(site):
    told = site.ask().told
    assert told["app"] == site.name  # its environment has reached it


@column("streams")
def test_a_part_of_an_answer_is_sent_before_the_next_is_made(site):
    answer = site.ask("/?do=stream&count=4&pause=0.25")
    made = [float(time) for time in answer.body.split()]
    assert len(made) == 4
    assert answer.arrivals[0] < made[1]
    assert answer.arrivals[-2] < made[-1]


@column("bodies")
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("size", [16 * 200, TEN_MIB], ids=["small", "10 MiB"])
def test_a_body_arrives_whole(site, size, chunked):
    told = site.ask("/?do=tell", method="POST", size=size, chunked=chunked).told
    assert told["length"] == size
    assert told["sha256"] == hashlib.sha256(b"0123456789abcdef" * (size // 16)).hexdigest()


@column("bodies")
def test_a_large_answer_arrives_whole(site):
    assert len(site.ask(f"/?do=big&size={TEN_MIB}").body) == TEN_MIB


@column("bodies")
def test_a_body_that_the_app_does_not_read_harms_nobody(site):
    request = {"target": "/?do=cookies", "method": "POST", "size": 16 * 20_000}
    for answer in site.converse(request, request, {}):
        assert answer.status == 200


@column("environ")
def test_the_request_is_told_as_it_was_sent(site):
    environ = site.ask("/some/page?a=1&b=%20%C3%A9+x&a=2", headers=[["Content-Type", "text/x-test"]]).told["environ"]
    assert environ["wsgi.url_scheme"] == "http"
    assert environ["REQUEST_METHOD"] == "GET"
    assert environ["HTTP_HOST"] == site.host
    assert environ["QUERY_STRING"] == "a=1&b=%20%C3%A9+x&a=2"
    assert environ["CONTENT_TYPE"] == "text/x-test"
    assert environ.get("SCRIPT_NAME", "") == ""
    assert environ["PATH_INFO"] == "/some/page"
    assert environ["SERVER_PROTOCOL"] in ("HTTP/1.0", "HTTP/1.1")


@column("REMOTE_ADDR")
def test_the_clients_address_is_told(site):
    assert site.ask().told["environ"].get("REMOTE_ADDR") == "127.0.0.1"


@column("environ")
@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/caf%C3%A9", "/café"),
        ("/a%20b+c", "/a b+c"),
        ("/%E2%82%AC/%F0%9F%90%8D", "/€/🐍"),
        ("/100%25", "/100%"),
        ("/a;b=c,d", "/a;b=c,d"),
        ("/%FF", b"/\xff"),  # no UTF-8 at all
    ],
    ids=["UTF-8", "space", "beyond latin-1", "percent", "reserved", "not UTF-8"],
)
def test_a_path_is_told_decoded(site, target, path):
    environ = site.ask(target).told["environ"]
    wanted = path if isinstance(path, bytes) else path.encode()
    assert environ["PATH_INFO"].encode("latin-1") == wanted


@column("environ")
def test_a_path_with_bytes_that_no_url_may_hold_is_decoded_or_refused(site):
    answer = site.ask("/caf\xc3\xa9")
    assert answer.status == 400 or answer.told["environ"]["PATH_INFO"].encode("latin-1") == "/café".encode()


@column("headers")
def test_a_header_that_is_sent_twice_arrives_joined(site):
    environ = site.ask(headers=[["X-Twice", "one"], ["X-Twice", "two"]]).told["environ"]
    assert environ["HTTP_X_TWICE"].replace(" ", "") == of_two(site)


@column("headers")
def test_cookies_sent_in_two_headers_arrive_both(site):
    environ = site.ask(headers=[["Cookie", "one=1"], ["Cookie", "two=2"]]).told["environ"]
    assert environ["HTTP_COOKIE"].replace(" ", "") in ("one=1;two=2", "one=1,two=2")


@column("headers")
def test_a_header_of_the_answer_may_be_there_twice(site):
    assert site.ask("/?do=cookies").values("Set-Cookie") == ["one=1; Path=/", "two=2; Path=/"]


@column("HEAD, 304")
def test_the_answer_to_head_has_no_body(site):
    with_body, without, after = site.converse(
        {"target": "/?do=cookies"}, {"target": "/?do=cookies", "method": "HEAD"}, {"target": "/?do=cookies"}
    )
    assert (without.status, without.body) == (200, "")
    assert without.values("Content-Length") == with_body.values("Content-Length") == ["3"]
    assert (after.status, after.body) == (200, "two")
    # Before nginx, too: else its connection to the server would be spoilt.
    assert site.ask("/?do=tell").told["environ"]["REQUEST_METHOD"] == "GET"


@column("HEAD, 304")
def test_an_answer_of_304_has_no_body_and_keeps_its_headers(site):
    unchanged, after = site.converse({"target": "/?do=unchanged"}, {"target": "/?do=cookies"})
    assert (unchanged.status, unchanged.body) == (304, "")
    assert unchanged.values("ETag") == ['"one"']
    assert (after.status, after.body) == (200, "two")


@column("100-continue")
def test_a_body_that_waits_for_100_is_taken(site):
    answer = site.ask("/?do=tell", method="POST", size=16 * 10_000, expect=True)
    assert answer.interim == "HTTP/1.1 100 Continue"
    assert answer.told["length"] == 160_000


@pytest.fixture(scope="module")
def smuggled(fleet):
    """Each way to hide a request in another: what came back, how often the app ran, and what others then got."""

    def experiment(site):
        found = {}
        for number, (way, text) in enumerate(attempts(site.host).items()):
            answers = fleet.agent.do("raw", text=text).result()
            others = site.ask("/?do=echo", method="POST", body=f"other {number}").body
            found[way] = {"answers": answers, "others": others, "other": f"other {number}"}
        assert site.ask("/?do=say&word=the-end").body == "said"
        return found

    smuggled = fleet.each(experiment)
    time.sleep(1)

    def counted(site):
        said = fleet.machine.exec(f"grep -ho 'stdout smuggled-.*' /var/log/wsgi/{site.name}/*.log", check=False).stdout
        found = smuggled.of(site)
        for number, way in enumerate(found):
            found[way]["ran"] = [line for line in said.splitlines() if f"-{number}-" in line]
        return found

    return fleet.each(counted)


@column("smuggling")
def test_no_request_is_smuggled_past_nginx(smuggled, site):
    found = smuggled.of(site)
    harmed = {
        way: each
        for way, each in found.items()
        if each["others"] != each["other"]
        or len(each["ran"]) != each["answers"].count("\r\n\r\nsaid")
        or len(each["ran"]) != len(set(each["ran"]))
    }
    assert harmed == {}
    # Not because nothing came through at all.
    assert len(found["none"]["ran"]) == 2


@column("wsgiref.validate")
@pytest.mark.parametrize(
    "asked",
    [
        {"target": "/?validated=&do=tell"},
        {"target": "/a%20b?validated=&do=tell", "method": "POST", "size": 160},
        {"target": "/?validated=&do=tell", "method": "POST", "size": 160_000, "chunked": True},
        {"target": "/?validated=&do=tell", "method": "HEAD"},
        {"target": "/?validated=&do=stream&count=3&pause=0"},
        {"target": "/?validated=&do=cookies", "method": "DELETE"},
    ],
    ids=["GET", "POST", "chunked", "HEAD", "stream", "DELETE"],
)
def test_wsgiref_validate_finds_nothing(site, asked):
    answer = site.ask(**asked)
    assert answer.status == 200, site.fleet.machine.call("wsgi.logs", site.name)


@pytest.fixture(scope="module")
def told(fleet):
    """Each app fails and says something; then what its log has of it."""

    def experiment(site):
        before = site.processes()
        failed = [site.ask("/?do=fail&word=early"), site.ask("/?do=fail_at_once&word=begun")]
        try:
            late = site.ask("/?do=fail_late&word=late").status
        except ConnectionError:
            late = "cut"
        assert site.ask("/?do=say&word=42").body == "said"
        site.workers()
        after = site.processes()
        time.sleep(1)
        logs = fleet.machine.call("wsgi.logs", site.name, "lines=400")
        return {"failed": failed, "late": late, "before": before, "after": after, "logs": logs}

    return fleet.each(experiment)


@column("exception")
def test_an_exception_is_answered_by_500(told, site):
    for answer in told.of(site)["failed"]:
        assert answer.status == 500
        assert "asked to fail" not in answer.body


@column("exception")
def test_the_traceback_of_an_exception_is_logged(told, site):
    logs = told.of(site)["logs"]
    assert "RuntimeError: asked to fail: early" in logs
    assert "RuntimeError: asked to fail at once: begun" in logs
    assert "Traceback (most recent call last)" in logs


@column("exception")
def test_the_traceback_of_an_exception_within_the_answer_is_logged(told, site):
    assert "RuntimeError: asked to fail late: late" in told.of(site)["logs"]


@column("exception")
def test_an_exception_within_the_answer_does_not_look_like_its_end(told, site):
    assert told.of(site)["late"] in ("cut", 500, 502)


@column("exception")
def test_no_process_dies_of_an_exception(told, site):
    assert set(told.of(site)["before"]) == set(told.of(site)["after"])


@column("logs")
@pytest.mark.parametrize("way", ["stdout", "stderr", "logging", "wsgi.errors"])
def test_what_the_app_says_is_in_its_logs(told, site, way):
    said = {"logging": "logging 42"}.get(way, f"{way} 42")
    assert told.of(site)["logs"].count(said) == 1


@column("logs")
def test_wsgiref_validate_has_not_complained_in_the_logs(told, site):
    for complaint in ("garbage collected without being closed", "AssertionError"):
        assert complaint not in told.of(site)["logs"]


# Each app writes on, and has a log with something in it again before the next rotation: delaycompress
# counts on a server that moves on until then.
ROTATE = """
sleep 1
for time in 1 2; do
    logrotate --force /etc/logrotate.d/wsgi
    for folder in /var/log/wsgi/*/; do
        timeout 20 sh -c 'until find "$0" -name "*.log" ! -empty | grep -q .; do sleep 0.1; done' "$folder"
    done
done"""


@pytest.fixture(scope="module")
def rotated(fleet):
    """Each app says numbered lines while the logs are rotated twice; then all that its logs have."""

    def experiment(site):
        for number in range(10_000):
            over = not rotation.is_alive()
            site.ask(f"/?do=say&word=line{number:04}")
            if over:
                return number
            time.sleep(0.02)

    rotation = threading.Thread(target=fleet.machine.exec, args=[ROTATE])
    rotation.start()
    outcomes = fleet.each(experiment)
    time.sleep(1)

    def logs(site):
        return {
            "last": outcomes.of(site),
            "all": fleet.machine.exec(f"cd /var/log/wsgi/{site.name}; zcat -f *.log*").stdout,
            "now": fleet.machine.exec(f"cd /var/log/wsgi/{site.name}; cat *.log; ls -l").stdout,
        }

    return fleet.each(logs)


@column("logs")
@pytest.mark.parametrize("way", ["stdout", "stderr", "logging"])
def test_logs_rotate_with_no_line_lost(rotated, site, way):
    logs = rotated.of(site)
    lost = [number for number in range(logs["last"] + 1) if logs["all"].count(f"{way} line{number:04}") != 1]
    assert lost == [], logs["now"][-3000:]
    assert ".log.2.gz" in logs["now"]
    # And the server has moved on to the new file.
    assert f"{way} line{logs['last']:04}" in logs["now"]


@column("workers")
def test_as_many_requests_run_at_once_as_there_are_workers(site):
    answers = site.served_at_once(2)
    assert at_once(answers) == 2
    assert len({answer["pid"] for answer in answers}) == 2


@pytest.fixture(scope="module")
def worker_killed(fleet):
    """Of each app, one process that answers requests is killed."""

    def experiment(site):
        before = site.processes()
        victim = site.ask().told["pid"]
        fleet.machine.exec(f"kill -9 {victim}")
        back = wait_for(lambda: site.serves() and len(site.processes()) >= len(before), 20)
        assert back, site.processes()
        time.sleep(0.5)
        return {
            "victim": victim,
            "after": site.processes(),
            "workers": site.workers(),
            "statuses": {answer.status for answer in site.at_once(8, "/")},
        }

    return fleet.each(experiment)


@column("killed")
def test_a_killed_worker_comes_back(worker_killed, site):
    found = worker_killed.of(site)
    assert found["victim"] not in found["after"]
    assert len(found["workers"]) == 2
    assert found["statuses"] == {200}


@pytest.fixture(scope="module")
def master_killed(fleet):
    """Of each app, the process that its process manager holds is killed."""
    before = fleet.status()

    def experiment(site):
        master = before[site.name]["pids"][0]
        processes = set(site.processes())
        fleet.machine.exec(f"kill -9 {master}")
        # Workers that are left may serve for a while, and are none of the new master's.
        ended = wait_for(lambda: not processes & set(site.processes()), 25)
        assert wait_for(site.serves, 30) and len(site.workers(seconds=20)) == 2
        return {"master": master, "orphans": [] if ended else processes & set(site.processes())}

    killed = fleet.each(experiment)
    status = fleet.status()
    return fleet.each(lambda site: {**killed.of(site), "status": status[site.name]})


@column("killed")
def test_a_killed_master_comes_back(master_killed, site):
    status = master_killed.of(site)["status"]
    assert status["health"]["ok"]
    assert status["pids"] and master_killed.of(site)["master"] not in status["pids"]


@column("killed")
def test_a_killed_master_leaves_no_orphans(master_killed, site):
    assert not master_killed.of(site)["orphans"]


@pytest.fixture(scope="module")
def rebooted(fleet):
    before = fleet.status()
    fleet.machine.restart()
    outcomes = fleet.each(lambda site: wait_for(site.serves, 30))
    after = fleet.status()
    again = fleet.machine.apply(ok=False)
    return {"serves": outcomes, "before": before, "after": after, "again": again}


@column("reboot")
def test_serves_again_after_a_reboot(rebooted, site):
    assert rebooted["serves"].of(site)
    after = rebooted["after"][site.name]
    assert after["health"]["ok"]
    assert after["generation"] == rebooted["before"][site.name]["generation"]


@column("reboot")
def test_nothing_is_to_be_done_after_a_reboot(rebooted, site):
    assert rebooted["again"].states[f"{site.name}-live"]["changes"] == {}


@pytest.fixture(scope="module")
def limited(fleet):
    """All apps change to LIMITS. Each of them answers a slow request when its turn comes."""

    def experiment(site):
        assert wait_for(lambda: len(site.generations()) == 2, 240, pause=0.05)
        return site.ask("/?do=outlast&seconds=1.5").body

    change = threading.Thread(target=fleet.apply, kwargs=LIMITS)
    change.start()
    slow = fleet.each(experiment)
    change.join()
    return slow


@column("graceful stop")
def test_a_slow_request_is_answered_by_the_generation_that_got_it(limited, site):
    assert limited.of(site) == "outlasted"


@setting("threads")
@column("threads")
def test_each_worker_has_as_many_threads_as_asked(limited, site):
    # Which worker takes a connection is up to the kernel, which may choose one that has no thread left.
    tries = (site.served_at_once(4) for _ in range(5))
    answers = next((found for found in tries if at_once(found) == 4), [])
    assert len({(answer["pid"], answer["thread"]) for answer in answers}) == 4


@pytest.fixture(scope="module", params=["tell", "busy"])
def hung(request, limited, fleet):
    """Each app is asked for something that takes much longer than the time-out."""

    def experiment(site):
        if not honoured(site.name, request_timeout=3):
            return None
        before = set(site.processes())
        began = time.monotonic()
        asked = site.sending({"target": f"/?do={request.param}&seconds=40"}, timeout=30)
        try:
            status = asked.result()[0]["status"]
        except ConnectionError as error:
            status = str(error)
        seconds = time.monotonic() - began
        replaced = wait_for(lambda: before - set(site.processes()), 10)
        return {
            "status": status,
            "seconds": seconds,
            "replaced": replaced,
            # All of them, and not those that answer: who does is up to the kernel.
            "whole": wait_for(lambda: len(site.processes()) >= len(before), 20),
            "statuses": {answer.status for answer in site.at_once(8, "/")},
        }

    return fleet.each(experiment)


@setting("request_timeout")
@column("request_timeout")
def test_a_request_that_hangs_is_ended_and_its_worker_replaced(hung, site):
    found = hung.of(site)
    assert found["replaced"], found
    assert found["status"] in (500, 502, 504), found
    # It never takes as long as nginx's own patience.
    assert LIMITS["request_timeout"] - 1 < found["seconds"] < LIMITS["request_timeout"] + 5
    assert found["statuses"] == {200}
    assert found["whole"]


@setting("memory_limit")
@column("memory_limit")
def test_a_worker_that_outgrows_its_memory_is_replaced_with_nothing_lost(limited, site):
    before = site.workers()
    peak = 0

    def both_replaced():
        nonlocal peak
        now = site.processes()
        peak = max([peak, *now.values()])
        return not before & set(now)

    with site.fleet.machine.load(clients=4, host=site.host, path="/?do=leak&mib=1", pause=0.05, seconds=60) as load:
        replaced = wait_for(both_replaced, 25, pause=0.2)
    assert replaced, (before, site.processes())
    assert load.report["lost"] == 0, json.dumps(load.report, indent=1)
    assert peak < 2 * LIMITS["memory_limit"]


@setting("max_requests")
@column("max_requests")
def test_workers_are_replaced_after_so_many_requests_with_nothing_lost(limited, site):
    before = site.workers()
    with site.fleet.machine.load(clients=8, host=site.host, path="/?do=echo", seconds=60, requests=10_000) as load:
        replaced = wait_for(lambda: not before & set(site.processes()), 25, pause=0.2)
        time.sleep(0.5)
    assert load.report["lost"] == 0, json.dumps(load.report, indent=1)
    assert replaced, (before, site.processes(), load.report["requests"])


@pytest.fixture(scope="module")
def problems(fleet):
    """What wsgi.validate says of each setting that a server's row does not have."""
    fleet.machine.pillar(
        {
            "apps": {
                name: {**app, **{refused: LIMITS[refused] for refused in unhonoured(name)}}
                for name, app in fleet.apps.items()
            }
        }
    )
    return fleet.machine.call("wsgi.validate")


def test_a_setting_that_the_server_cannot_keep_is_refused(problems, server, refused):
    assert any(
        problem.startswith(f"wsgi:apps:{server}:{refused}: {LIMITS[refused]!r} can't be honoured by")
        for problem in problems
    ), problems


@pytest.fixture(scope="module")
def mounted(fleet):
    """All apps move to a mount, which is nginx's affair alone."""
    fleet.apply(mount=MOUNT, **fleet.settings)
    return {id for id in fleet.run.changed if id.endswith("-live")}


@column("mount")
@pytest.mark.parametrize(
    ("target", "path"),
    [("/", "/"), ("/a%2Fb/caf%C3%A9?a=b", "/a/b/café"), ("//a", "/a"), ("/%FF", b"/\xff")],
    ids=["slash", "encoded", "slashes", "not UTF-8"],
)
def test_the_mount_is_the_script_name(mounted, site, target, path):
    environ = site.ask(MOUNT + target).told["environ"]
    path = path if isinstance(path, bytes) else path.encode()
    assert environ["HTTP_X_FORWARDED_PREFIX"] == MOUNT
    if site.name != "command":  # which has no guard, and may make of the header what it likes
        assert (environ["SCRIPT_NAME"], environ["PATH_INFO"].encode("latin-1")) == (MOUNT, path)


@column("mount")
def test_a_mount_is_a_folder_and_has_neighbours(mounted, site):
    bare = site.ask(f"{MOUNT}?a=b")
    assert (bare.status, bare.values("Location")) == (308, [f"{MOUNT}/?a=b"])
    for beside in (f"{MOUNT}er", "/", f"{MOUNT}/../a", f"{MOUNT}/%2e%2e/a"):
        assert site.ask(beside).status == 404, beside


@column("mount")
def test_wsgiref_validate_finds_nothing_under_a_mount(mounted, site):
    answer = site.ask(f"{MOUNT}/a?validated=&do=tell", method="POST", size=160)
    assert answer.status == 200, site.fleet.machine.call("wsgi.logs", site.name)


def test_a_mount_is_not_the_servers_affair(mounted):
    assert mounted == set()


def of_two(site):
    """What comes of `one` and `two` in headers of one name."""
    if site.row["package"] == "bjoern":
        return "onetwo"
    # Over the uwsgi protocol, nginx before 1.23 sends both as they came, and uWSGI takes the last.
    return "two" if site.row["protocol"] == "uwsgi" and site.fleet.nginx < (1, 23) else "one,two"
