"""Checks of every server under every process manager that can run it: start, logs, stop, and restart after a kill.

Tests run in their order. First all apps have two processes of one thread, and no limits; `limited` then sets limits
while each app answers a slow request.
"""

import threading
import time

import pytest
from fleet import at_once
from harness import wait_for

column = pytest.mark.column

LIMITS = {
    "workers": 2,
    "threads": 2,
    "request_timeout": 3,
    "graceful_timeout": 10,
    "max_requests": 400,
    "memory_limit": 120,
}
# The ways in which the app writes output.
WAYS = ["stdout", "stderr", "logging", "wsgi.errors"]


@column("serves")
def test_server_answers_its_app(site):
    seen = site.ask().json
    assert seen["app"] == site.name  # its environment has reached it


@pytest.fixture(scope="module")
def logged(fleet):
    """Each app's responses, processes and logs after exceptions and output."""

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
        wait_for(lambda: all(f"{way} 42" in site.logs() for way in WAYS), 10)
        logs = fleet.machine.call("wsgi.logs", site.name, "lines=400")
        return {"failed": failed, "late": late, "before": before, "after": after, "logs": logs}

    return fleet.each(experiment)


@column("exception")
def test_exception_is_answered_with_500(logged, site):
    for answer in logged.of(site)["failed"]:
        assert answer.status == 500
        assert "asked to fail" not in answer.body


@column("exception")
def test_traceback_of_an_exception_is_logged(logged, site):
    logs = logged.of(site)["logs"]
    assert "RuntimeError: asked to fail: early" in logs
    assert "RuntimeError: asked to fail at once: begun" in logs
    assert "Traceback (most recent call last)" in logs


@column("exception")
def test_traceback_of_an_exception_during_the_response_is_logged(logged, site):
    assert "RuntimeError: asked to fail late: late" in logged.of(site)["logs"]


@column("exception")
def test_exception_during_the_response_does_not_look_like_a_complete_response(logged, site):
    assert logged.of(site)["late"] in ("cut", 500, 502)


@column("exception")
def test_exception_ends_no_process(logged, site):
    assert set(logged.of(site)["before"]) == set(logged.of(site)["after"])


@column("logs")
@pytest.mark.parametrize("way", WAYS)
def test_output_of_the_app_is_logged(logged, site, way):
    assert logged.of(site)["logs"].count(f"{way} 42") == 1


# Each app keeps writing, and its new log is not empty before the next rotation: delaycompress expects that the server
# has reopened its log by then.
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
    """Each app's logs after it has written numbered lines during two rotations."""

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

    def logs(site):
        last = f" line{outcomes.of(site):04}"
        wait_for(lambda: all(way + last in site.logs() for way in WAYS), 10)
        return {
            "last": outcomes.of(site),
            "all": fleet.machine.exec(f"cd /var/log/wsgi/{site.name}; zcat -f *.log*").stdout,
            "now": fleet.machine.exec(f"cd /var/log/wsgi/{site.name}; cat *.log; ls -l").stdout,
            "owners": fleet.machine.exec(f"stat -c %U /var/log/wsgi/{site.name}/*.log").stdout.split(),
        }

    return fleet.each(logs)


@column("logs")
@pytest.mark.parametrize("way", ["stdout", "stderr", "logging"])
def test_log_rotation_loses_no_line(rotated, site, way):
    logs = rotated.of(site)
    lost = [number for number in range(logs["last"] + 1) if logs["all"].count(f"{way} line{number:04}") != 1]
    assert lost == [], logs["now"][-3000:]
    assert ".log.2.gz" in logs["now"]
    assert set(logs["owners"]) == {site.user}
    # The server writes to the new file.
    assert f"{way} line{logs['last']:04}" in logs["now"]


@pytest.fixture(scope="module")
def simultaneous(fleet):
    """Each app's responses to simultaneous requests."""
    return fleet.each(lambda site: site.served_at_once(2))


@column("workers")
def test_requests_run_in_parallel_on_all_workers(simultaneous, site):
    answers = simultaneous.of(site)
    assert at_once(answers) == 2
    assert len({answer["pid"] for answer in answers}) == 2


@pytest.fixture(scope="module")
def worker_killed(fleet):
    """The state of each app after one process that answers requests was killed."""

    def experiment(site):
        before = site.processes()
        victim = site.ask().json["pid"]
        fleet.machine.exec(f"kill -9 {victim}")

        def back():
            now = site.processes()
            return victim not in now and len(now) >= len(before) and site.serves()

        assert wait_for(back, 60), site.processes()
        return {
            "victim": victim,
            "after": site.processes(),
            "workers": site.workers(),
            "statuses": {answer.status for answer in site.at_once(8, "/")},
        }

    return fleet.each(experiment)


@column("killed")
def test_killed_worker_is_restarted(worker_killed, site):
    found = worker_killed.of(site)
    assert found["victim"] not in found["after"]
    assert len(found["workers"]) == 2
    assert found["statuses"] == {200}


@pytest.fixture(scope="module")
def master_killed(fleet):
    """The state of each app after the process that its process manager runs was killed."""
    before = fleet.status()

    def experiment(site):
        master = before[site.name]["pids"][0]
        processes = set(site.processes())
        fleet.machine.exec(f"kill -9 {master}")
        # Workers that are left may serve for a while, but do not belong to the new master.
        ended = wait_for(lambda: not processes & set(site.processes()), 60)
        assert wait_for(site.serves, 60) and len(site.workers(seconds=60)) == 2
        return {"master": master, "orphans": [] if ended else processes & set(site.processes())}

    killed = fleet.each(experiment)
    status = fleet.status()
    return fleet.each(lambda site: {**killed.of(site), "status": status[site.name]})


@column("killed")
def test_killed_master_is_restarted(master_killed, site):
    status = master_killed.of(site)["status"]
    assert status["health"]["ok"]
    assert status["pids"] and master_killed.of(site)["master"] not in status["pids"]


@column("killed")
def test_killed_master_leaves_no_orphans(master_killed, site):
    assert not master_killed.of(site)["orphans"]


@pytest.fixture(scope="module")
def rebooted(fleet):
    before = fleet.status()
    fleet.machine.restart()
    outcomes = fleet.each(lambda site: wait_for(site.serves, 60))
    after = fleet.status()
    again = fleet.machine.apply(ok=False)
    return {"serves": outcomes, "before": before, "after": after, "again": again}


@column("reboot")
def test_server_answers_again_after_a_reboot(rebooted, site):
    assert rebooted["serves"].of(site)
    after = rebooted["after"][site.name]
    assert after["health"]["ok"]
    assert after["generation"] == rebooted["before"][site.name]["generation"]


@column("reboot")
def test_run_after_a_reboot_changes_nothing(rebooted, site):
    assert rebooted["again"].states[f"{site.name}-live"]["changes"] == {}


@pytest.fixture(scope="module")
def limited(fleet):
    """Each app's response to a slow request during the change of all apps to LIMITS."""

    def experiment(site):
        assert wait_for(lambda: len(site.generations()) == 2, 240, pause=0.05)
        return site.ask("/?do=outlast&seconds=1.5").body

    change = threading.Thread(target=fleet.apply, kwargs=LIMITS)
    change.start()
    slow = fleet.each(experiment)
    change.join()
    return slow


@column("graceful stop")
def test_slow_request_is_answered_by_the_generation_that_received_it(limited, site):
    assert limited.of(site) == "outlasted"
