"""Checks of the settings that every server supports or refuses, independent of the process manager.

Tests run in their order, after those of process_checks.py, whose `limited` they use.
"""

import json
import time

import pytest
from fleet import at_once, honoured
from fleet import refused as unhonoured
from harness import wait_for
from process_checks import LIMITS

column = pytest.mark.column
setting = pytest.mark.setting
MOUNT = "/shop/inner"


@pytest.fixture(scope="module")
def served_by_threads(limited, fleet):
    """Each app's responses to simultaneous requests while its workers have two threads each."""

    def experiment(site):
        # The kernel chooses the worker, and may choose one that has no thread left.
        tries = (site.served_at_once(4) for _ in range(5))
        return next((found for found in tries if at_once(found) == 4), [])

    return fleet.each(lambda site: honoured(site.name, threads=2) and experiment(site))


@setting("threads")
@column("threads")
def test_each_worker_has_the_configured_number_of_threads(served_by_threads, site):
    answers = served_by_threads.of(site)
    assert len({(answer["pid"], answer["thread"]) for answer in answers}) == 4


@pytest.fixture(scope="module", params=["tell", "busy"])
def hung(request, limited, fleet):
    """The outcome of a request to each app that takes much longer than the time-out."""

    def experiment(site):
        if not honoured(site.name, request_timeout=3):
            return None
        before = set(site.processes())
        asked = site.sending({"target": f"/?do={request.param}&seconds=40"}, timeout=30)
        try:
            status = asked.result()[0]["status"]
        except ConnectionError as error:
            status = str(error)
        replaced = wait_for(lambda: before - set(site.processes()), 60)
        return {
            "status": status,
            "replaced": replaced,
            # Count processes, not those that answer: the kernel chooses these.
            "whole": wait_for(lambda: len(site.processes()) >= len(before), 60),
            "statuses": {answer.status for answer in site.at_once(8, "/")},
        }

    return fleet.each(experiment)


@setting("request_timeout")
@column("request_timeout")
def test_hung_request_is_ended_and_its_worker_replaced(hung, site):
    found = hung.of(site)
    assert found["replaced"], found
    assert found["status"] in (500, 502, 504), found
    assert found["statuses"] == {200}
    assert found["whole"]


@pytest.fixture(scope="module")
def outgrown(limited, fleet):
    """The outcome of requests under load that consume memory, until each app's workers have been replaced."""

    def experiment(site):
        before = site.workers()
        found = {"before": before, "peak": 0}

        def both_replaced():
            now = site.processes()
            found.update(now=now, peak=max([found["peak"], *now.values()]))
            return not before & set(now)

        with fleet.machine.load(clients=4, host=site.host, path="/?do=leak&mib=1", pause=0.1, seconds=90) as load:
            found["replaced"] = wait_for(both_replaced, 80, pause=0.2)
        return {**found, "load": load.report}

    return fleet.each(lambda site: honoured(site.name, memory_limit=120) and experiment(site))


@setting("memory_limit")
@column("memory_limit")
def test_worker_over_its_memory_limit_is_replaced_and_no_request_is_lost(outgrown, site):
    found = outgrown.of(site)
    assert found["replaced"], found
    assert found["load"]["lost"] == 0, json.dumps(found["load"], indent=1)
    assert found["peak"] < 2 * LIMITS["memory_limit"]


@setting("max_requests")
@column("max_requests")
def test_workers_are_replaced_after_max_requests_and_no_request_is_lost(limited, site):
    before = site.workers()
    with site.fleet.machine.load(clients=8, host=site.host, path="/?do=echo", seconds=90, requests=20_000) as load:
        replaced = wait_for(lambda: not before & set(site.processes()), 80, pause=0.2)
        time.sleep(0.5)  # of load on the new ones alone
    assert load.report["lost"] == 0, json.dumps(load.report, indent=1)
    assert replaced, (before, site.processes(), load.report["requests"])


@pytest.fixture(scope="module")
def problems(fleet):
    """The problems that wsgi.validate reports for all unsupported settings."""
    fleet.machine.pillar(
        {
            "apps": {
                name: {**app, **{refused: LIMITS[refused] for refused in unhonoured(name)}}
                for name, app in fleet.apps.items()
            }
        }
    )
    return fleet.machine.call("wsgi.validate")


def test_unsupported_setting_is_refused(problems, server, refused):
    assert any(
        problem.startswith(f"wsgi:apps:{server}:{refused}: {server} does not support {refused}") for problem in problems
    ), problems


@pytest.fixture(scope="module")
def mounted(fleet):
    """The changed generations after all apps moved to a mount."""
    fleet.apply(mount=MOUNT, **fleet.settings)
    return {id for id in fleet.run.changed if id.endswith("-live")}


@column("mount")
@pytest.mark.parametrize(
    ("target", "path"),
    [("/", "/"), ("/a%2Fb/caf%C3%A9?a=b", "/a/b/café"), ("//a", "/a"), ("/%FF", b"/\xff")],
    ids=["slash", "encoded", "slashes", "not UTF-8"],
)
def test_mount_is_passed_as_script_name(mounted, site, target, path):
    environ = site.ask(MOUNT + target).json["environ"]
    path = path if isinstance(path, bytes) else path.encode()
    assert environ["HTTP_X_FORWARDED_PREFIX"] == MOUNT
    if site.name != "command":  # which has no guard, and may make of the header what it likes
        assert (environ["SCRIPT_NAME"], environ["PATH_INFO"].encode("latin-1")) == (MOUNT, path)


@column("mount")
def test_mount_redirects_to_its_slash_and_does_not_cover_other_paths(mounted, site):
    bare = site.ask(f"{MOUNT}?a=b")
    assert (bare.status, bare.values("Location")) == (308, [f"{MOUNT}/?a=b"])
    for beside in (f"{MOUNT}er", "/", f"{MOUNT}/../a", f"{MOUNT}/%2e%2e/a"):
        assert site.ask(beside).status == 404, beside


@column("mount")
def test_wsgiref_validate_accepts_the_server_under_a_mount(mounted, site):
    answer = site.ask(f"{MOUNT}/a?validated=&do=tell", method="POST", size=160)
    assert answer.status == 200, site.fleet.machine.call("wsgi.logs", site.name)


def test_changing_the_mount_makes_no_new_generation(mounted):
    assert mounted == set()
