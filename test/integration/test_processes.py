"""Processes and scheduled commands of an app: they start, run and stop with their generation."""

import re
from functools import partial

import pytest
from container import CommandFailed
from harness import find_traces, wait_for
from pillars import app

MANAGERS = {"supervisor": "gunicorn", "systemd": "gunicorn", "circus": "gunicorn", "emperor": "uwsgi"}
APPS = {f"by-{manager}": manager for manager in MANAGERS}
SECRET = "amqp://shop:hunter2-hunter2@queue"
OFTEN = "*:*:0/2"


def pytest_generate_tests(metafunc):
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", APPS)


def settings_of(name, **said):
    own = {
        "process_manager": APPS[name],
        "source": "salt://apps/programs",
        "application": "programs:application",
        "domains": [f"{name}.example.com"],
        "workers": 1,
        "max_requests": 0,
        "health": {"deadline": 30},
        "env": {"VERSION": "1", "SECRET": SECRET},
        # An argument that each process manager would interpret.
        "processes": {
            "worker": {"command": "python3 programs.py worker '100% $HOME; \"it'", "count": 2},
            "stubborn": {"command": ["python3", "programs.py", "stubborn"], "graceful_timeout": 1},
        },
        "schedule": {"job": {"command": "python3 programs.py job '100% $HOME; \"it'", "calendar": "daily"}},
    }
    return app(MANAGERS[APPS[name]], **{**own, **said})


@pytest.fixture(scope="module")
def apps():
    return {name: settings_of(name) for name in APPS}


@pytest.fixture(scope="module")
def served(machine, apps):
    machine.pillar({"apps": apps})
    machine.apply()
    assert machine.apply().changed == set()
    return machine


@pytest.fixture
def converge(served, apps):
    """converge(name, key=value, …) changes an app's settings for all later tests, applies, and returns the run."""

    def converged(name, ok=True, env=(), **said):
        wanted = {**apps[name], **said, "env": {**apps[name]["env"], **dict(env)}}
        served.pillar({"apps": {**apps, name: wanted}})
        run = served.apply(ok=ok)
        if run.ok:
            apps[name] = wanted
        return run

    return converged


def recorded_events(machine, name):
    """Return the events that an app's programs wrote, in their order, as dicts."""
    lines = machine.exec(f"sort -n /var/lib/wsgi/home/{name}/told").stdout.splitlines()
    keys = ("time", "program", "version", "pid", "what")
    return [dict(zip(keys, line.split())) for line in lines]


def events(machine, name, program, what, **fields):
    return [
        event
        for event in recorded_events(machine, name)
        if event["program"] == program and event["what"] == what and fields.items() <= event.items()
    ]


def beside(found):
    """Return the PIDs of all processes beside the server, from an app's `wsgi.status`."""
    return [pid for pids in found["processes"].values() for pid in pids]


def whole(machine, name):
    found = machine.status(name)
    return found["health"]["ok"] and None not in beside(found)


def has_told_more(machine, name, ended):
    return len(events(machine, name, "job", "ends")) > ended


def test_processes_run_as_the_app_with_its_environment(served, name):
    found = served.status(name)
    assert found["health"]["ok"]
    assert {process: len(pids) for process, pids in found["processes"].items()} == {"worker": 2, "stubborn": 1}
    for pid in found["processes"]["worker"]:
        assert served.exec(f"ps -o user:30= -p {pid}").stdout.strip() == f"wsgi-{name}"
        words = served.exec(f"tr '\\0' '\\n' < /proc/{pid}/cmdline").stdout.splitlines()
        assert words[1:] == ["programs.py", "worker", '100% $HOME; "it']
        variables = served.exec(f"tr '\\0' '\\n' < /proc/{pid}/environ").stdout.splitlines()
        assert f"SECRET={SECRET}" in variables
        assert f"PATH=/srv/wsgi/{name}/environments/" in "\n".join(variables)
        assert served.exec(f"readlink /proc/{pid}/cwd").stdout.strip().endswith("/code")
    assert SECRET not in served.exec("ps -eo args").stdout
    assert (
        "SECRET" not in served.exec("cat /etc/systemd/system/wsgi-* /etc/supervisor/conf.d/* /etc/wsgi/circus/*").stdout
    )


def test_memory_of_an_app_includes_its_processes(served, name):
    found = served.status(name)
    assert not {*beside(found)} & {*found["pids"]}
    rollups = [f"/proc/{pid}/smaps_rollup" for pid in found["pids"]]
    server = served.exec(f"cat {' '.join(rollups)} | awk '/^Pss:/ {{ sum += $2 }} END {{ print sum }}'").stdout
    # Each of the three is a Python of some MiB.
    assert found["memory_mib"] > int(server) / 1024 + 6


def test_each_process_has_a_log_of_its_own(served, name):
    # Both processes wrote it; unbuffered output of Python reaches the shared log in pieces.
    assert "".join(served.call("wsgi.logs", name, "process=worker").split()) == "startsstarts"
    assert served.call("wsgi.logs", name, "process=job") == ""
    with pytest.raises(CommandFailed, match=r"'wroker' is not a process of [\w-]+ \(worker, stubborn, job\)"):
        served.call("wsgi.logs", name, "process=wroker")


def test_killed_process_is_restarted_and_writes_to_the_rotated_log(served, name):
    before = served.status(name)["processes"]["worker"]
    served.exec("logrotate --force /etc/logrotate.d/wsgi")
    served.exec(f"kill -9 {before[0]}")

    def back():
        now = served.status(name)["processes"]["worker"]
        return None not in now and before[0] not in now and now

    after = wait_for(back)
    assert after, served.status(name)
    assert before[1] in after
    assert wait_for(lambda: served.call("wsgi.logs", name, "process=worker").split() == ["starts"])
    assert served.apply().changed == set()


def test_old_processes_stop_once_those_of_the_new_generation_are_up(served, converge, name):
    old = served.status(name)
    with served.load(clients=4, host=f"{name}.example.com", pause=0.02) as load:
        assert converge(name, env={"VERSION": "2"}).changed == {f"{name}-live"}
    assert load.report["lost"] == 0, load.report
    new = served.status(name)
    assert not {*beside(old)} & {*beside(new)}
    started = events(served, name, "worker", "starts", version="2")
    assert {event["pid"] for event in started} == {str(pid) for pid in new["processes"]["worker"]}
    stopped = events(served, name, "worker", "stops", version="1")
    assert {event["pid"] for event in stopped} == {str(pid) for pid in old["processes"]["worker"]}
    assert max(float(event["time"]) for event in started) < min(float(event["time"]) for event in stopped)
    # They finished their work; the stubborn one was killed.
    assert {event["pid"] for event in events(served, name, "worker", "ends", version="1")} == {
        event["pid"] for event in stopped
    }
    assert served.exec(f"ps -p {old['processes']['stubborn'][0]}", check=False).rc == 1
    assert old["generation"] not in find_traces(served, name)
    assert served.apply().changed == set()


def test_process_that_does_not_start_fails_the_change_with_its_reason(served, converge, name):
    before, pids = find_traces(served, name), served.status(name)["processes"]
    with served.load(clients=2, host=f"{name}.example.com", pause=0.02) as load:
        run = converge(name, ok=False, env={"QUEUE": "none"})
    assert load.report["lost"] == 0, load.report
    assert run.failed == {f"{name}-live", f"{name}-site"}
    comment = run.states[f"{name}-live"]["comment"]
    assert f"wsgi:apps:{name}:processes:worker: number " in comment
    assert "did not start" in comment
    assert "there is no queue" in comment
    assert "still serves it" in comment
    assert SECRET not in str(run.raw)
    assert find_traces(served, name) == before
    assert served.status(name)["processes"] == pids


def test_next_run_removes_processes_that_a_killed_run_started(served, apps, name):
    before = find_traces(served, name)
    never = {"health": {"status": 404, "deadline": 300}, "env": {**apps[name]["env"], "VERSION": "killed"}}
    served.pillar({"apps": {**apps, name: {**apps[name], **never}}})
    served.exec("systemd-run --quiet --collect --unit=killed salt-call state.apply wsgi")
    assert wait_for(lambda: len(events(served, name, "worker", "starts", version="killed")) == 2)
    served.exec("systemctl kill --signal=KILL killed")
    assert find_traces(served, name) != before
    served.pillar({"apps": apps})
    assert served.apply().changed == {f"{name}-live"}
    assert find_traces(served, name) == before


def test_invalid_calendar_is_refused_before_anything_is_switched(served, converge, apps, name):
    before = find_traces(served, name)
    jobs = {"job": {**apps[name]["schedule"]["job"], "calendar": "dayly"}}
    run = converge(name, ok=False, schedule=jobs)
    assert (
        f"wsgi:apps:{name}:schedule:job:calendar: systemd does not accept 'dayly'"
        in run.states[f"{name}-live"]["comment"]
    )
    assert find_traces(served, name) == before
    assert "'dayly'" in served.apply(test=True, ok=False).states[f"{name}-live"]["comment"]


def test_scheduled_command_runs_at_its_times_and_its_result_is_reported(served, converge, apps, name):
    jobs = {"job": {**apps[name]["schedule"]["job"], "calendar": OFTEN}}
    converge(name, env={"VERSION": "3"}, schedule=jobs)
    assert wait_for(lambda: len(events(served, name, "job", "ends", version="3")) >= 2)

    def ran_and_waits():
        # systemd names no next time while a run goes on.
        job = served.status(name)["schedule"]["job"]
        return job if job["result"] == "success" and job["next"] else None

    found = wait_for(ran_and_waits)
    assert found["calendar"] == OFTEN
    assert found["next"] > found["last"] > "2000"
    assert "  starts\n  ends" in served.call("wsgi.logs", name, "process=job")
    assert served.exec(f"stat -c %U /var/log/wsgi/{name}/{served.status(name)['generation']}.job.log").stdout == (
        f"wsgi-{name}\n"
    )


def test_running_scheduled_command_ends_in_its_generation_and_later_ones_run_in_the_new_one(served, converge, name):
    old, home = served.status(name)["generation"], f"/var/lib/wsgi/home/{name}"
    assert f"wsgi-{name}.{old}.job.timer" in find_traces(served, name)
    served.exec(f"touch {home}/hold")
    held = wait_for(lambda: events(served, name, "job", "holds", version="3"))
    assert served.status(name)["schedule"]["job"]["result"] == "running"
    # Let it go on once the old generation is stopping.
    served.put(
        "/root/release",
        f"for i in $(seq 600); do grep -q ' 3 .* stops' {home}/told && break; sleep 0.1; done; rm {home}/hold",
    )
    served.exec("systemd-run --quiet --collect sh /root/release")
    assert converge(name, env={"VERSION": "4"}).changed == {f"{name}-live"}
    (stopped, *_) = events(served, name, "worker", "stops", version="3")
    (ended,) = events(served, name, "job", "ends", pid=held[-1]["pid"])
    assert float(ended["time"]) > float(stopped["time"])
    assert old not in find_traces(served, name)
    last = events(served, name, "job", "starts", version="3")[-1]
    assert last["pid"] == held[-1]["pid"]
    assert wait_for(lambda: len(events(served, name, "job", "ends", version="4")) >= 2)
    assert events(served, name, "job", "starts", version="3")[-1] == last
    assert served.apply().changed == set()


def test_process_that_would_not_start_after_a_reboot_makes_a_new_generation(served, name):
    old = served.status(name)["generation"]
    served.exec(
        f"rm -f /etc/systemd/system/*.wants/wsgi-{name}.{old}.worker.2.* /etc/wsgi/circus/{name}.{old}.worker.2.ini"
        f" /etc/supervisor/conf.d/wsgi-{name}.{old}.worker.2.conf"
    )
    run = served.apply()
    assert run.changed == {f"{name}-live"}
    assert f"{name}'s worker 2 would not have started after a reboot" in run.states[f"{name}-live"]["comment"]
    assert served.status(name)["generation"] == f"{old}-2"
    assert not re.search(rf"{old}(?!-2)", find_traces(served, name))


def test_all_processes_and_schedules_run_after_a_reboot(served, apps):
    before = served.call("wsgi.status")
    served.restart()
    for name in apps:
        assert wait_for(partial(whole, served, name))
        ended = len(events(served, name, "job", "ends"))
        assert wait_for(partial(has_told_more, served, name, ended))
    after = served.call("wsgi.status")
    assert {n: s["generation"] for n, s in after.items()} == {n: s["generation"] for n, s in before.items()}
    assert served.apply().changed == set()
    assert served.exec("systemctl --failed --plain --no-legend").stdout == ""


def test_removing_an_app_removes_its_processes_and_schedules(served, apps, name):
    served.pillar({"apps": {other: apps[other] for other in apps if other != name}})
    assert f"{name}-absent" in served.apply().changed
    assert find_traces(served, name) == ""
    served.pillar({"apps": apps})
    served.apply()
