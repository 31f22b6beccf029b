"""The suites of kitchen.yml; Kitchen's verifier runs these tests on the machine that it converged."""

import harness
import pytest
from zeromq import count_answers, start_responder


@pytest.mark.parametrize("suite", ["uwsgi", "gunicorn", "switch"])
def test_hello_is_served(suite_machine, suite):
    machine = suite_machine(suite)
    server = harness.suites()[suite]["apps"]["hello"]["server"]
    assert server in machine.get("/").body.lower()
    assert machine.get("/healthz").status == 200
    status = machine.status("hello")
    assert status["server"] == server
    assert status["health"]["ok"]
    assert len(status["pids"]) == 3  # a master and two workers
    assert machine.host.service("nginx").is_enabled
    assert machine.host.service("nginx").is_running


def test_two_servers_are_behind_one_nginx(suite_machine):
    machine = suite_machine("both")
    assert "uwsgi" in machine.get("/", host="hello.example.com").body.lower()
    assert "gunicorn" in machine.get("/", host="api.example.com").body
    assert len(machine.exec("pgrep -P 1 -x nginx").stdout.split()) == 1


@pytest.mark.parametrize("name", harness.suites()["servers"]["apps"])
def test_every_server_serves_beside_the_others(suite_machine, name, request):
    machine = suite_machine("servers")
    asked = harness.suites(request.config.getoption("platform"))["servers"]["apps"][name]
    if asked.get("state") == "absent":
        pytest.skip(f"{asked['server']} is not available on this platform")
    assert machine.get("/", host=asked["domains"][0]).body.startswith("hello from")
    status = machine.status(name)
    assert status["server"] == asked["server"]
    assert status["health"]["ok"]


def test_release_runs_hooks_processes_and_schedules(suite_machine):
    machine = suite_machine("release")
    status = machine.status("hello")
    assert (
        machine.host.file(f"/srv/wsgi/hello/releases/{status['release']}/code/assets.txt").content_string == "assets\n"
    )
    assert machine.host.file("/var/lib/wsgi/home/hello/migrated.txt").content_string == "migrated\n"
    assert all(status["processes"]["worker"])
    assert len(status["processes"]["worker"]) == 2
    assert status["schedule"]["cleanup"]["next"]
    assert machine.call("wsgi.history", "hello")[-1]["event"] == "live"


def test_apps_share_a_domain_over_tls_and_nginx_serves_their_files(suite_machine):
    machine = suite_machine("edge")
    curl = "curl --silent --show-error --insecure --resolve example.com:443:127.0.0.1 https://example.com"
    assert "gunicorn" in machine.exec(f"{curl}/").stdout
    assert "uwsgi" in machine.exec(f"{curl}/shop/").stdout.lower()
    assert machine.exec(f"{curl}/static/app.css").stdout == "styles\n"
    redirected = machine.get("/shop/?a=b", host="example.com")
    assert (redirected.status, redirected.headers["Location"]) == (308, "https://example.com/shop/?a=b")


def test_changing_one_key_switches_the_server_and_back(suite_machine):
    machine = suite_machine("switch")
    apps = harness.suites()["switch"]["apps"]
    with machine.load(clients=4, pause=0.02) as load:
        for server in ("uwsgi", "gunicorn"):
            machine.pillar({"apps": {"hello": {**apps["hello"], "server": server}}})
            machine.apply()
            assert server in machine.get("/").body.lower()
    assert load.report["lost"] == 0, load.report


def test_zeromq_app_answers_with_many_workers_under_uwsgi_and_gunicorn(suite_machine):
    """The story that this project began with."""
    machine = suite_machine("zeromq")
    app = harness.suites()["zeromq"]["apps"]["zeromq"]
    start_responder(machine)
    for server in ("uwsgi", "gunicorn"):
        machine.pillar({"apps": {"zeromq": {**app, "server": server}}})
        machine.apply()
        assert len(machine.status("zeromq")["pids"]) == 5  # a master and four workers
        assert count_answers(machine) == 400
    machine.pillar({"apps": {"zeromq": app}})
    machine.apply()
