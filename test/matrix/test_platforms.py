"""Each Debian with each Salt: all servers of the platform, and what depends on its Salt, Python, systemd and nginx.

test/run test/matrix              the platforms of SLICE, which with debian-12 cover each Debian and each Salt
test/run test/matrix --matrix     all platforms of kitchen.yml
"""

import contextlib
import copy

import harness
import pytest
from integration import test_suites

SLICE = ("debian-11-salt-3006", "debian-13-salt-3007")
VERSIONS = """
echo Salt=$(salt-call --version | grep -o '[0-9.]*')
echo Python=$(python3 --version | grep -o '[0-9.]*')
echo systemd=$(systemctl --version | grep -o '^systemd [0-9]*' | grep -o '[0-9]*')
echo cgroups=$(test -e /sys/fs/cgroup/cgroup.controllers && echo v2 || echo v1)
echo nginx=$(nginx -v 2>&1 | grep -o '[0-9.]*$')
echo supervisor=$(supervisord --version)
echo uWSGI=$(uwsgi --version)
echo Passenger=$(dpkg-query --show --showformat='${Version}' passenger | grep -o '^[0-9.]*')
"""


def pytest_generate_tests(metafunc):
    names = harness.platforms() if metafunc.config.getoption("matrix") else SLICE
    metafunc.parametrize("platform", names, scope="module")


@pytest.fixture(scope="module")
def machine(platform, machine_factory, request):
    """The machine of one platform, at first without the formula's packages, for all of its tests in their order."""
    machine = machine_factory(provisioned=False, platform=platform)
    yield machine
    if not request.config.getoption("keep"):
        machine.destroy()


@pytest.fixture(scope="module")
def apps(platform):
    """The apps of the suite with every server on the platform: app -> settings."""
    return harness.suites(platform)["servers"]["apps"]


@pytest.fixture(scope="module")
def first_run(machine, platform):
    machine.pillar(harness.suites(platform)["servers"])
    return machine.apply(ok=False)


@pytest.fixture(scope="module")
def versions(machine, first_run):
    return dict(line.partition("=")[::2] for line in machine.exec(VERSIONS).stdout.splitlines())


@pytest.fixture(autouse=True)
def cell(request, platform, record_property):
    """Record the cell of docs/platforms.md that a test fills."""
    column = request.node.get_closest_marker("column")
    name = column.args[0] if column else request.getfixturevalue("name")
    there = column or request.getfixturevalue("apps")[name].get("state") != "absent"
    seen = [platform, name, "✓" if there else "–"]
    record_property("platform", [*seen, {}])  # of a machine that does not boot, too
    record_property("platform", [*seen, request.getfixturevalue("versions")])


@pytest.fixture
def suite_machine(machine, platform):
    def converged(name):
        machine.pillar(harness.suites(platform)[name])
        machine.apply()
        return machine

    return converged


@pytest.fixture
def gunicorn(machine, platform):
    """change(**settings) sets settings of the app `gunicorn` in the suite with every server, until the test ends."""
    suite = harness.suites(platform)["servers"]

    def change(**settings):
        changed = copy.deepcopy(suite)
        # Otherwise workers would be recycled under load.
        changed["apps"]["gunicorn"].update({"max_requests": 0, **settings})
        machine.pillar(changed)

    change()
    machine.apply()
    yield change
    machine.pillar(suite)


def serves(machine, name, server):
    status = machine.status(name)
    assert (status["server"], status["health"]["ok"]) == (server, True)
    return answers(machine, name)


def answers(machine, name):
    with contextlib.suppress(ConnectionError):
        return machine.get("/", host=f"{name}.example.com").body.startswith("hello from")


@pytest.mark.parametrize("name", harness.suites()["servers"]["apps"])
def test_first_run_brings_up_each_server_that_the_platform_has(machine, platform, apps, first_run, name):
    if apps[name].get("state") == "absent":
        suite = harness.suites(platform)["servers"]
        machine.pillar({**suite, "apps": {name: {**apps[name], "state": "present"}}})
        (problem,) = machine.call("wsgi.validate")
        machine.pillar(suite)
        assert f"'{apps[name]['server']}' is not available on {harness.osfinger(platform)}" in problem
    else:
        assert not first_run.failed & {f"{name}-release", f"{name}-live", f"{name}-site"}, first_run
        assert serves(machine, name, apps[name]["server"])


@pytest.mark.column("idle run")
def test_idle_run_changes_nothing(machine, first_run):
    assert first_run.ok, first_run
    assert machine.apply().changed == set()
    assert machine.apply(sls=None).changed == set()


@pytest.mark.column("switch")
def test_switching_under_load_loses_no_request(machine, gunicorn):
    ways = [("uwsgi", "systemd"), ("waitress", "circus"), ("uwsgi", "emperor"), ("gunicorn", "supervisor")]
    with machine.load(clients=8, host="gunicorn.example.com", pause=0.02) as load:
        for server, manager in ways:
            gunicorn(server=server, process_manager=manager)
            assert "gunicorn-live" in machine.apply().changed
            assert serves(machine, "gunicorn", server)
    assert load.report["lost"] == 0, load.report


@pytest.mark.column("failed change")
def test_failed_change_leaves_the_old_generation_serving(machine, gunicorn):
    before = machine.status("gunicorn")["generation"]
    gunicorn(application="hello:nothing", env={"SECRET": "hunter2-hunter2"})
    with machine.load(clients=4, host="gunicorn.example.com", pause=0.02) as load:
        run = machine.apply(ok=False)
    assert load.report["lost"] == 0, load.report
    assert run.failed == {"gunicorn-live", "gunicorn-site"}, run
    assert "nothing" in run.states["gunicorn-live"]["comment"]
    assert "hunter2" not in str(run.raw)
    assert machine.status("gunicorn")["generation"] == before


@pytest.mark.column("functions")
def test_deploy_and_rollback_work(machine, gunicorn):
    assert machine.call("wsgi.validate") is True
    first = machine.call("wsgi.deploy", "gunicorn")["generation"]
    gunicorn(env={"GREETING": "second"})
    second = machine.call("wsgi.deploy", "gunicorn")["generation"]
    assert second != first
    assert machine.call("wsgi.rollback", "gunicorn")["generation"] == first
    assert machine.call("wsgi.history", "gunicorn")[0]["generation"] == first
    machine.apply()


@pytest.mark.column("reboot")
def test_every_server_serves_after_a_reboot(machine, apps):
    machine.apply()
    machine.restart()
    expected = {name for name, app in apps.items() if app.get("state") != "absent"}
    assert harness.wait_for(lambda: expected == {name for name in expected if answers(machine, name)})


@pytest.mark.column("edge")
def test_apps_share_a_domain_over_tls_and_nginx_serves_their_files(suite_machine):
    test_suites.test_apps_share_a_domain_over_tls_and_nginx_serves_their_files(suite_machine)


@pytest.mark.column("clean")
def test_clean_removes_everything(machine):
    machine.apply(sls="wsgi.clean")
    assert harness.find_leftovers(machine) == ""
    assert machine.exec("nginx -t").rc == 0
    assert machine.apply(sls="wsgi.clean").changed == set()
