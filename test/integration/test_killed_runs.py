"""A run that is killed during a change leaves the live generation serving, and the next run finishes the change."""

import pytest
from pillars import app, inspected, wait_until_asleep

FLAG = "/tmp/there"
# It hangs once only, so that the next run gets through.
STOP = f"test -e {FLAG} || {{ touch {FLAG}; sleep 4321; }} # under %s"
OLD = {"env": {"GREETING": "old"}}
NEW = {"env": {"GREETING": "new"}}
# The hook in which the run is killed, and whether the new generation has the traffic by then.
MOMENTS = {"build": False, "before_live": False, "after_live": True, "before_retire": True}


def begin(machine):
    """Start a run in the background; killing it kills nothing else."""
    machine.exec("systemctl reset-failed run 2>/dev/null; true")
    machine.exec(["systemd-run", "--unit=run", "--property=KillMode=process", "salt-call", "state.apply", "wsgi"])


def kill(machine):
    machine.exec("systemctl kill --kill-who=main --signal=KILL run; sleep 0.5; systemctl reset-failed run", check=False)


def wait(machine, condition):
    machine.wait_until(condition, otherwise="journalctl -u run")


def assert_one_generation(machine):
    generations = machine.exec("ls -d /etc/wsgi/shop/*/ | xargs -n 1 basename").stdout.split()
    assert generations == [machine.live_generation("shop")]
    assert machine.exec("ps -eo args | grep '[s]leep 4321'", check=False).stdout == ""
    releases = machine.exec("ls -d /srv/wsgi/shop/releases/*").stdout.split()
    assert [path for path in releases if machine.exec(["test", "-e", f"{path}/release.json"], check=False).rc] == []


@pytest.mark.parametrize("process_manager", ["supervisor", "systemd"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_run_killed_during_a_hook_is_finished_by_the_next_run(machine, moment, process_manager):
    switched = MOMENTS[moment]
    # A command runs once per release unless its text differs.
    hooks = {moment: [STOP % process_manager]}
    machine.pillar({"apps": {"shop": app(process_manager=process_manager, **OLD)}})
    machine.apply()
    machine.exec(f"rm -f {FLAG}")
    machine.pillar({"apps": {"shop": app(process_manager=process_manager, hooks=hooks, **NEW)}})
    with machine.load(clients=4, pause=0.02) as load:
        begin(machine)
        wait(machine, f"test -e {FLAG}")
        kill(machine)
        assert machine.get("/").body.startswith("new" if switched else "old")
        machine.apply()
        assert machine.get("/").body.startswith("new")
    assert load.report["lost"] == 0, load.report
    assert_one_generation(machine)
    assert machine.apply().changed == set()


def test_run_killed_during_the_health_check_leaves_the_old_generation_live(machine):
    machine.pillar({"apps": {"shop": app(**OLD)}})
    machine.apply()
    never = {"health": {"path": "/healthz", "status": 418, "deadline": 300}}
    machine.pillar({"apps": {"shop": app(**{**NEW, **never})}})
    with machine.load(clients=4, pause=0.02) as load:
        begin(machine)
        wait(machine, "[ $(ls -d /run/wsgi/shop/*.own/http.sock 2>/dev/null | wc -l) = 2 ]")
        kill(machine)
        assert machine.get("/").body.startswith("old")
        machine.pillar({"apps": {"shop": app(**NEW)}})
        machine.apply()
        assert machine.get("/").body.startswith("new")
    assert load.report["lost"] == 0, load.report
    assert_one_generation(machine)


def test_run_killed_while_the_old_generation_drains_is_finished_by_the_next_run(machine):
    machine.pillar({"apps": {"shop": inspected(env={"A": "old"})}})
    machine.apply()
    machine.exec("systemd-run --unit=slow --collect sh -c 'curl -s \"127.0.0.1/?sleep=15\" > /tmp/slow'")
    wait_until_asleep(machine, "shop", "sleep=15")
    before = machine.exec("readlink /var/lib/wsgi/live/shop").stdout
    machine.pillar({"apps": {"shop": inspected(env={"A": "new"})}})
    begin(machine)
    wait(machine, f'[ "$(readlink /var/lib/wsgi/live/shop)" != {before.strip()} ]')
    kill(machine)
    machine.apply()
    machine.wait_until("[ -s /tmp/slow ]")
    assert '"A": "old"' in machine.exec("cat /tmp/slow").stdout
    assert_one_generation(machine)
    assert machine.apply().changed == set()
