"""The whole machine: its first run, reboots, and the functions that report or restart apps."""

import pytest
import yaml
from pillars import PAIRS, app

APPS = {
    f"{server}-{manager}": app(server, process_manager=manager, domains=[f"{server}-{manager}.example.com"])
    for server, manager in PAIRS
}


@pytest.mark.parametrize("function", ["state.apply wsgi", "state.highstate"])
def test_first_run_on_a_fresh_minion_serves_all_apps(machine_factory, function):
    """It has neither the packages nor the modules of the formula."""
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


def test_dry_run_on_a_fresh_minion_touches_nothing(machine_factory):
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
        served.wait_until(f"curl -fso /dev/null -H 'Host: {name}.example.com' 127.0.0.1/")
    status = served.call("wsgi.status")
    assert {name: each["generation"] for name, each in status.items()} == before
    assert all(each["health"]["ok"] for each in status.values())
    assert served.apply().changed == set()


@pytest.mark.parametrize("name", APPS)
def test_killed_worker_and_killed_master_are_restarted(served, name):
    pids = served.status(name)["pids"]
    for victim in (pids[-1], pids[0]):
        served.exec(f"kill -9 {victim}")
        served.wait_until(f"curl -fso /dev/null -H 'Host: {name}.example.com' 127.0.0.1/")
    assert served.apply().changed == set()


def test_status_reports_each_app(served):
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


def test_settings_function_returns_the_merged_settings_as_yaml(served):
    settings = yaml.safe_load(served.call("wsgi.settings"))
    assert settings["apps"]["gunicorn-supervisor"]["max_requests"] == 1000
    assert settings["apps"]["gunicorn-supervisor"]["user"] == "wsgi-gunicorn-supervisor"
    assert yaml.safe_load(served.call("wsgi.settings", "uwsgi-emperor")) == settings["apps"]["uwsgi-emperor"]


@pytest.mark.parametrize("name", APPS)
def test_restart_makes_a_new_generation_and_loses_no_request(served, name):
    before = served.status(name)
    with served.load(clients=4, host=f"{name}.example.com", pause=0.02) as load:
        new = served.call("wsgi.restart", name)
    assert load.report["lost"] == 0, load.report
    after = served.status(name)
    assert after["generation"] == new != before["generation"]
    assert not set(after["pids"]) & set(before["pids"])
    assert served.apply().changed == set()


@pytest.mark.parametrize("name", APPS)
def test_logs_function_returns_the_log_of_the_live_generation(served, name):
    assert str(served.status(name)["pids"][0]) in served.call("wsgi.logs", name, "lines=1000")


@pytest.mark.parametrize("name", APPS)
def test_server_writes_to_its_log_after_rotation(served, name):
    served.exec("logrotate --force /etc/logrotate.d/wsgi")
    served.call("wsgi.restart", name)
    generation = served.status(name)["generation"]
    served.exec("logrotate --force /etc/logrotate.d/wsgi")
    served.exec(f"kill -9 {served.status(name)['pids'][-1]}")
    served.wait_until(f"[ -s /var/log/wsgi/{name}/{generation}.log ]")


def test_unknown_app_is_named_together_with_the_known_ones(served):
    done = served.exec("salt-call wsgi.logs nothing", check=False)
    assert done.rc
    assert (
        "'nothing' is not an app of this machine (gunicorn-supervisor, uwsgi-emperor, uwsgi-supervisor)" in done.stderr
    )


def test_invalid_pillar_touches_nothing_and_reports_every_problem(served):
    before = served.exec("find /etc /srv/wsgi -newermt 1970-01-01 -printf '%p %T@ %C@\\n' | sort").stdout
    served.pillar({"apps": {**APPS, "uwsgi-emperor": app("unicorn")}, "ngnix": {}})
    run = served.apply(ok=False)
    assert set(run.states) == run.failed == {"wsgi-pillar"}
    comment = run.states["wsgi-pillar"]["comment"]
    assert "wsgi:apps:uwsgi-emperor:server: 'unicorn' is not a server; did you mean 'gunicorn'?" in comment
    assert "wsgi:ngnix" in comment and "did you mean 'nginx'?" in comment
    assert served.call("wsgi.validate") == comment.splitlines()[:-1]
    assert served.status("uwsgi-emperor")["health"]["ok"]
    assert served.exec("find /etc /srv/wsgi -newermt 1970-01-01 -printf '%p %T@ %C@\\n' | sort").stdout == before
    served.pillar({"apps": APPS})
    assert served.call("wsgi.validate") is True


def test_emperor_of_the_distribution_is_left_alone(served):
    assert "www-data" in served.exec("ps -eo user,args | grep '[u]wsgi-emperor'").stdout
    assert served.host.service("uwsgi-emperor").is_running
