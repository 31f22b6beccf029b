"""Hooks: the commands of an app at build, before_live, after_live and before_retire, and their failures."""

import pytest
from pillars import app

SECRET = "hunter2-hunter2"


@pytest.fixture
def hello(machine):
    """hello(hooks, …) applies the app `hello` with these hooks and returns the run; ok=False allows a failure."""

    def applied(hooks, ok=True, **settings):
        settings = {"env": {"GREETING": "hello", "SECRET": SECRET}, **settings}
        machine.pillar({"apps": {"hello": app(hooks=hooks, **settings)}})
        run = machine.apply(ok=ok)
        assert SECRET not in str(run.raw)
        return run

    return applied


def generations(machine):
    return machine.exec("ls /etc/wsgi/hello", check=False).stdout.split()


def test_build_commands_run_once_per_release_as_the_build_user(machine, hello):
    hooks = {"build": ['echo "$(id -un) $GREETING $(command -v python) $SECRET" | tee built.txt', ["ls", "built.txt"]]}
    run = hello(hooks)
    status = machine.status("hello")
    release = f"/srv/wsgi/hello/releases/{status['release']}"
    environment = machine.exec(f"readlink -f {release}/environment").stdout.strip()
    said = run.hook_output("hello-release")
    assert list(said.values()) == [f"wsgibuild-hello hello {environment}/bin/python ***", "built.txt"]
    assert all(label.startswith("build: ") for label in said)
    assert machine.exec(f"stat -c '%U %a' {release}/code/built.txt {release}/code").stdout.splitlines() == [
        "root 644",
        "root 750",
    ]
    assert "hooks" not in hello(hooks, workers=3).states["hello-release"]["changes"]
    assert machine.apply().changed == set()


def test_changed_build_command_makes_a_new_release(machine, hello):
    before = machine.status("hello")["release"]
    assert hello({"build": ["echo another"]}).hook_output("hello-release") == {"build: echo another": "another"}
    assert machine.status("hello")["release"] != before


def test_failed_build_command_stops_the_change_and_leaves_no_files(machine, hello):
    before, releases = machine.live_generation("hello"), machine.exec("ls /srv/wsgi/hello/releases").stdout
    run = hello({"build": ["echo $SECRET is not enough; exit 3"]}, ok=False)
    assert run.failed == {"hello-release", "hello-live", "hello-site"}
    assert (
        "build: echo $SECRET is not enough; exit 3 failed:\n  *** is not enough"
        in run.states["hello-release"]["comment"]
    )
    assert (machine.live_generation("hello"), machine.exec("ls /srv/wsgi/hello/releases").stdout) == (before, releases)
    failure = machine.call("wsgi.history", "hello", "limit=1")[0]
    assert failure["event"] == "failed"
    assert "is not enough" in failure["error"]


def test_before_live_commands_run_once_per_release_or_for_every_change(machine, hello):
    hooks = {"before_live": ["echo migrated", {"command": "echo warmed up", "every": "change"}]}
    both = {"before_live: echo migrated": "migrated", "before_live: echo warmed up": "warmed up"}
    assert hello(hooks).hook_output("hello-live") == both
    assert hello(hooks, workers=3).hook_output("hello-live") == {"before_live: echo warmed up": "warmed up"}
    assert hello(hooks, source="salt://apps/hello_two").hook_output("hello-live") == both
    assert hello(hooks).hook_output("hello-live") == {
        "before_live: echo warmed up": "warmed up"
    }  # this release was migrated


def test_changed_before_live_commands_alone_make_no_new_generation(machine, hello):
    hello({"before_live": ["echo one"]})
    assert hello({"before_live": ["echo two"]}).changed == set()


def test_failed_before_live_command_stops_the_change_before_it_goes_live(machine, hello):
    hello({})
    before = machine.live_generation("hello")
    with machine.load(clients=4, pause=0.02) as load:
        run = hello({"before_live": ["echo first", "echo no such table; false"]}, ok=False, workers=3)
    assert load.report["lost"] == 0, load.report
    assert run.failed == {"hello-live", "hello-site"}
    assert "before_live: echo no such table; false failed:\n  no such table" in run.states["hello-live"]["comment"]
    assert machine.live_generation("hello") == before
    assert [id for id in generations(machine) if "." not in id] == [before]
    run = hello({"before_live": ["echo first", "echo the table is there"]}, workers=3)
    # The first command had succeeded for this release already.
    assert run.hook_output("hello-live") == {"before_live: echo the table is there": "the table is there"}
    assert machine.live_generation("hello") != before


def test_command_that_exceeds_its_timeout_is_killed_with_its_children(machine, hello):
    before = machine.live_generation("hello")
    endless = {"command": "sleep 4321 & echo started; sleep 4321", "timeout": 5}
    run = hello({"before_live": [endless]}, ok=False, workers=2)
    assert "did not end within 5 s:\n  started" in run.states["hello-live"]["comment"]
    assert machine.live_generation("hello") == before
    assert machine.exec("ps -eo args | grep '[s]leep 4321'", check=False).stdout == ""


def test_background_process_that_a_command_leaves_is_killed(machine, hello):
    hello({"before_live": ["setsid sleep 4321 > /dev/null 2>&1 & echo left"]}, workers=2)
    assert machine.exec("ps -eo args | grep '[s]leep 4321'", check=False).stdout == ""


def test_after_live_runs_in_the_new_generation_and_before_retire_in_the_old_one(machine, hello):
    note = "echo %s $GREETING $(readlink /var/lib/wsgi/live/hello | xargs basename)"
    hooks = {"after_live": [note % "after"], "before_retire": [note % "retire"]}
    hello(hooks, env={"GREETING": "old", "SECRET": SECRET})
    run = hello(hooks, env={"GREETING": "new", "SECRET": SECRET})
    now = machine.live_generation("hello")
    assert sorted(run.hook_output("hello-live").values()) == [f"after new {now}", f"retire old {now}"]


def test_failed_after_live_command_fails_the_state_and_is_retried(machine, hello):
    hello({})
    flag = "/var/lib/wsgi/home/hello/told"
    hooks = {"after_live": [f"test -e {flag} && echo told them"]}
    with machine.load(clients=4, pause=0.02) as load:
        run = hello(hooks, ok=False, max_requests=99)
    assert load.report["lost"] == 0, load.report
    assert "hello-live" in run.failed
    now = machine.live_generation("hello")
    assert f"Generation {now} of hello is live" in run.states["hello-live"]["comment"]
    assert f"after_live: {hooks['after_live'][0]} failed" in run.states["hello-live"]["comment"]
    assert machine.apply(test=True, ok=False).changed == {"hello-live"}
    machine.exec(f"touch {flag}")
    run = machine.apply()
    assert run.changed == {"hello-live"}
    assert list(run.hook_output("hello-live").values()) == ["told them"]
    assert machine.live_generation("hello") == now
    assert machine.apply().changed == set()


def test_failed_after_live_command_rolls_back_with_rollback_on_failure(machine, hello):
    hello({})
    before = machine.live_generation("hello")
    with machine.load(clients=4, pause=0.02) as load:
        run = hello({"after_live": ["echo smoke test; false"]}, ok=False, rollback_on_failure=True, workers=4)
    assert load.report["lost"] == 0, load.report
    comment = run.states["hello-live"]["comment"]
    assert f"generation {before} under gunicorn still serves it" in comment
    assert "smoke test" in comment
    assert machine.live_generation("hello") == before
    assert [id for id in generations(machine) if "." not in id] == [before]
    assert machine.status("hello")["health"]["ok"]


def test_failed_before_retire_command_is_reported_and_does_not_stop_the_change(machine, hello):
    before = machine.live_generation("hello")
    run = hello({"before_retire": ["echo still busy; false"]}, ok=False, max_requests=98)
    assert "before_retire: echo still busy; false failed:\n  still busy" in run.states["hello-live"]["comment"]
    assert machine.live_generation("hello") != before
    assert [id for id in generations(machine) if "." not in id] == [machine.live_generation("hello")]
    assert machine.apply().changed == set()
