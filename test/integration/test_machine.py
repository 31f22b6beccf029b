"""The machine as a whole: its first run, its reboots, and what it says of itself."""

import pytest
import yaml
from pillars import SERVERS, app

APPS = {
    f"{server}-{manager}": app(server, process_manager=manager, domains=[f"{server}-{manager}.example.com"])
    for server, manager in SERVERS
}


@pytest.mark.parametrize("function", ["state.apply wsgi", "state.highstate"])
def test_first_run_on_a_fresh_minion_is_enough(machine_factory, function):
    """No package of ours, no synced module."""
    machine = machine_factory(provisioned=False)
    machine.pillar({"apps": {"hello": app("uwsgi"), "api": app("gunicorn", domains=["api.example.com"])}})
    assert machine.exec("ls /var/cache/salt/minion/extmods", check=False).stdout == ""
    machine.exec(f"salt-call --retcode-passthrough {function}")
    assert "uWSGI" in machine.get("/").body
    assert "gunicorn" in machine.get("/", host="api.example.com").body
    run = machine.apply()
    assert run.changed == set()
    machine.destroy()


@pytest.fixture(scope="module")
def served(machine):
    machine.pillar({"apps": APPS})
    machine.apply()
    return machine


def test_first_run_can_be_tried_without_touching_anything(machine_factory):
    machine = machine_factory(provisioned=False)
    machine.pillar({"apps": {"hello": app("uwsgi")}})
    run = machine.apply(test=True)
    assert {"nginx-package", "hello-release", "hello-live", "hello-site"} <= {
        id for id, state in run.states.items() if state["result"] is None
    }
    assert machine.exec("ls /etc/wsgi /srv/wsgi /etc/nginx; id wsgi-hello", check=False).stdout == ""
    machine.destroy()


def test_all_apps_serve_again_after_a_reboot(served):
    before = {name: status["generation"] for name, status in served.call("wsgi.status").items()}
    served.restart()
    for name in APPS:
        served.exec(
            f"for i in $(seq 100); do curl -fso /dev/null -H 'Host: {name}.example.com' 127.0.0.1/ && exit; sleep 0.1; done; exit 1"
        )
    status = served.call("wsgi.status")
    assert {name: each["generation"] for name, each in status.items()} == before
    assert all(each["health"]["ok"] for each in status.values())
    assert served.apply().changed == set()


@pytest.mark.parametrize("name", APPS)
def test_killed_master_and_killed_worker_come_back(served, name):
    pids = served.call("wsgi.status", name)[name]["pids"]
    for victim in (pids[-1], pids[0]):
        served.exec(f"kill -9 {victim}")
        served.exec(
            f"for i in $(seq 100); do curl -fso /dev/null -H 'Host: {name}.example.com' 127.0.0.1/ && exit; sleep 0.1; done; exit 1"
        )
    assert served.apply().changed == set()


def test_status_tells_how_each_app_fares(served):
    status = served.call("wsgi.status")
    assert set(status) == set(APPS)
    for name, each in status.items():
        assert each["server"] == APPS[name]["server"]
        assert each["process_manager"] == APPS[name]["process_manager"]
        assert each["version"][0].isdigit()
        assert each["health"]["ok"]
        assert 0 < each["health"]["latency_ms"] < 30_000
        assert len(each["pids"]) == 3
        assert 5 < each["memory_mib"] < 500
        assert each["uptime_s"] >= 0
        assert served.exec(f"ls -d /etc/wsgi/{name}/{each['generation']} /srv/wsgi/{name}/releases/{each['release']}")


def test_settings_are_the_merged_ones_as_yaml(served):
    settings = yaml.safe_load(served.call("wsgi.settings"))
    assert settings["apps"]["gunicorn-supervisor"]["max_requests"] == 1000
    assert settings["apps"]["gunicorn-supervisor"]["user"] == "wsgi-gunicorn-supervisor"
    assert yaml.safe_load(served.call("wsgi.settings", "uwsgi-emperor")) == settings["apps"]["uwsgi-emperor"]


@pytest.mark.parametrize("name", APPS)
def test_restart_is_a_new_generation_and_loses_no_request(served, name):
    before = served.call("wsgi.status", name)[name]
    with served.load(clients=4, host=f"{name}.example.com", pause=0.02) as load:
        new = served.call("wsgi.restart", name)
    assert load.report["lost"] == 0, load.report
    after = served.call("wsgi.status", name)[name]
    assert after["generation"] == new != before["generation"]
    assert not set(after["pids"]) & set(before["pids"])
    assert served.apply().changed == set()


@pytest.mark.parametrize("name", APPS)
def test_logs_are_those_of_the_live_server(served, name):
    assert str(served.call("wsgi.status", name)[name]["pids"][0]) in served.call("wsgi.logs", name, "lines=1000")


@pytest.mark.parametrize("name", APPS)
def test_logs_rotate_and_go_on(served, name):
    served.exec("logrotate --force /etc/logrotate.d/wsgi")
    served.call("wsgi.restart", name)
    generation = served.call("wsgi.status", name)[name]["generation"]
    served.exec("logrotate --force /etc/logrotate.d/wsgi")
    served.exec(f"kill -9 {served.call('wsgi.status', name)[name]['pids'][-1]}")
    served.exec(f"timeout 60 sh -c 'until [ -s /var/log/wsgi/{name}/{generation}.log ]; do sleep 0.1; done'")


def test_unknown_app_is_named_with_those_there_are(served):
    done = served.exec("salt-call wsgi.logs nothing", check=False)
    assert done.rc
    assert (
        "'nothing' is not an app of this machine (gunicorn-supervisor, uwsgi-emperor, uwsgi-supervisor)" in done.stderr
    )


def test_bad_pillar_touches_nothing_and_tells_everything(served):
    before = served.exec("find /etc /srv/wsgi -newermt 1970-01-01 -printf '%p %T@ %C@\\n' | sort").stdout
    served.pillar({"apps": {**APPS, "uwsgi-emperor": app("unicorn")}, "ngnix": {}})
    run = served.apply(ok=False)
    assert set(run.states) == run.failed == {"wsgi-pillar"}
    comment = run.states["wsgi-pillar"]["comment"]
    assert "wsgi:apps:uwsgi-emperor:server: 'unicorn' is not a server; did you mean 'gunicorn'?" in comment
    assert "wsgi:ngnix" in comment and "did you mean 'nginx'?" in comment
    assert served.call("wsgi.validate") == comment.splitlines()[:-1]
    assert served.call("wsgi.status", "uwsgi-emperor")["uwsgi-emperor"]["health"]["ok"]
    assert served.exec("find /etc /srv/wsgi -newermt 1970-01-01 -printf '%p %T@ %C@\\n' | sort").stdout == before
    served.pillar({"apps": APPS})
    assert served.call("wsgi.validate") is True


def test_distributions_emperor_is_left_alone(served):
    assert "www-data" in served.exec("ps -eo user,args | grep '[u]wsgi-emperor'").stdout
    assert served.host.service("uwsgi-emperor").is_running
