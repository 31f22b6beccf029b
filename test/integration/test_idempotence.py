"""A second run changes nothing, and test=True predicts what a run changes."""

import copy

import pytest
from pillars import app

APPS = {
    "one": app("uwsgi", domains=["one.example.com"]),
    "two": app("gunicorn", domains=["two.example.com"], requirements=["iniconfig==2.1.0"]),
}


def predicted(machine):
    run = machine.apply(test=True)
    return {id for id, state in run.states.items() if state["result"] is None}


def snapshot(machine):
    """Return all files that the formula writes, with times and modes, and all processes."""
    return machine.exec(
        # Without Salt's own folder.
        "find /etc /srv/wsgi /var/lib/wsgi /run/wsgi /usr/local /var/log/wsgi -not -path '/etc/salt*' -not -path /etc -printf '%p %T@ %C@ %m %u %g %l\\n' | sort;"
        " getent passwd; ps -eo pid=,user=,args= | grep -v -E 'ps -eo|sort|sh -c|salt|\\[' "
    ).stdout


def changed(apps, **settings):
    apps = copy.deepcopy(apps)
    apps["one"].update(settings)
    return apps


STEPS = {
    "first run": APPS,
    "server": changed(APPS, server="gunicorn"),
    "process manager": changed(APPS, process_manager="supervisor"),
    "setting": changed(APPS, workers=1),
    "site": changed(APPS, workers=1, domains=["one.example.org"]),
    "code": changed(APPS, source="salt://apps/hello_two"),
    "requirements": changed(APPS, requirements=["iniconfig==2.1.0"]),
    "absent": changed(APPS, state="absent"),
    "back": APPS,
    "taken out": {"two": APPS["two"]},
}


@pytest.mark.parametrize("step", STEPS)
def test_run_changes_what_a_dry_run_predicts_and_the_next_run_changes_nothing(machine, step):
    machine.pillar({"apps": STEPS[step]})
    before = snapshot(machine)
    prediction = predicted(machine)
    assert snapshot(machine) == before
    assert prediction
    assert machine.apply().changed == prediction
    before = snapshot(machine)
    assert machine.apply().changed == set()
    assert snapshot(machine) == before


@pytest.mark.parametrize(
    "path", ["/etc/wsgi/two/*/gunicorn.conf.py", "/etc/wsgi/two/*/env", "/etc/supervisor/conf.d/wsgi-two.*"]
)
def test_file_changed_by_hand_is_restored(machine, path):
    machine.exec(f"for file in {path}; do echo '# by hand' >> $file; done")
    assert predicted(machine) == {"two-live"}
    assert machine.apply().changed == {"two-live"}
    assert machine.exec(f"grep -l 'by hand' {path}", check=False).rc == 1
    assert machine.apply().changed == set()


def test_mode_changed_by_hand_is_restored(machine):
    machine.exec("chmod o+r /etc/wsgi/two/*/env")
    assert machine.apply().changed == {"two-live"}
    assert machine.exec("stat -c %a /etc/wsgi/two/*/env").stdout.strip() == "640"


def test_site_changed_by_hand_is_restored(machine):
    machine.exec("echo '# by hand' >> /etc/nginx/wsgi/live/locations/two.conf")
    assert predicted(machine) == {"two-site", "wsgi-nginx"}
    assert machine.apply().changed == {"two-site"}
    assert machine.apply().changed == set()


def test_dry_run_predicts_no_change_when_there_is_nothing_to_do(machine):
    assert predicted(machine) == set()


def test_server_that_was_stopped_is_replaced(machine):
    machine.exec("supervisorctl stop all")
    assert machine.apply().changed == {"two-live"}
    assert machine.get("/", host="two.example.com").status == 200


def test_next_run_retires_the_generation_that_a_killed_run_started(machine):
    """The run is killed while the new generation starts."""
    machine.pillar(
        {
            "apps": {
                "two": app(**{**APPS["two"], "source": "salt://apps/unhealthy", "application": "broken:application"})
            }
        }
    )
    machine.exec("systemd-run --unit=killed --collect --property=KillMode=mixed salt-call state.apply wsgi")
    machine.wait_until("[ $(ls -d /etc/wsgi/two/*/ | wc -l) = 2 ]")
    machine.exec("sleep 1")
    machine.exec(
        "systemctl kill --signal=KILL --kill-whom=all killed; while systemctl is-active -q killed; do sleep 0.1; done"
    )
    assert machine.exec("ls -d /etc/wsgi/two/*/ | wc -l").stdout.strip() == "2"
    assert machine.get("/", host="two.example.com").status == 200
    machine.pillar({"apps": {"two": APPS["two"]}})
    assert machine.apply().changed == {"two-live"}
    assert machine.exec("ls -d /etc/wsgi/two/*/ /run/wsgi/two/*.own/ | wc -l").stdout.strip() == "2"
    assert machine.apply().changed == set()
