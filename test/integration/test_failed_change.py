"""A failed change leaves the live generation serving, reports the reason, and leaves nothing behind."""

import re

import pytest
from harness import find_traces
from pillars import BROKEN_AT_IMPORT, PAIRS, app

BROKEN = {
    "syntax error": ({"source": "salt://apps/syntax_error", "application": "broken:application"}, "SyntaxError"),
    "import error": (BROKEN_AT_IMPORT, "RuntimeError"),
    "missing dependency": (
        {"source": "salt://apps/missing_dependency", "application": "broken:application"},
        "a_library_that_nobody_installed",
    ),
    "never healthy": (
        {"source": "salt://apps/unhealthy", "application": "broken:application", "health": {"deadline": 6}},
        "answered 503 instead of 200",
    ),
    "no such callable": ({"application": "hello:nothing"}, "callable not found|has no attribute 'nothing'"),
    "no such module": ({"application": "goodbye:application"}, "No module named 'goodbye'"),
}
SECRET = "postgres://shop:hunter2-hunter2@db"


def traces(machine):
    """Return all that there is of the app, its live generation, and the text of nginx's files."""
    nginx = machine.exec("cat /etc/nginx/conf.d/* /etc/nginx/wsgi/live/*/*").stdout
    return find_traces(machine, "hello"), machine.live_generation("hello"), nginx


@pytest.fixture(scope="module", params=[("uwsgi", "emperor"), ("gunicorn", "supervisor")], ids="-".join)
def serving(machine, request):
    server, manager = request.param
    # Otherwise workers would be recycled under the load.
    good = app(server, process_manager=manager, max_requests=0)
    machine.pillar({"apps": {"hello": good}})
    machine.apply()
    return machine, good


@pytest.mark.parametrize("broken", BROKEN)
def test_failed_change_leaves_the_old_generation_serving(serving, broken):
    machine, good = serving
    settings, reason = BROKEN[broken]
    before = traces(machine)
    machine.pillar({"apps": {"hello": {**good, **settings, "env": {"DATABASE_URL": SECRET}}}})
    with machine.load(clients=4, pause=0.02) as load:
        run = machine.apply(ok=False)
    assert load.report["lost"] == 0, load.report
    assert run.failed == {"hello-live", "hello-site"}, run
    comment = run.states["hello-live"]["comment"]
    assert re.search(reason, comment)
    assert "still serves it" in comment
    assert SECRET not in str(run.raw)
    assert traces(machine) == before


def test_corrected_pillar_brings_up_the_new_generation(serving):
    machine, good = serving
    machine.pillar({"apps": {"hello": {**good, "env": {"GREETING": "mended"}}}})
    assert machine.apply().changed == {"hello-live"}
    assert machine.get("/").body.startswith("mended")


def test_nginx_files_are_restored_when_nginx_refuses_the_new_ones(serving):
    machine, good = serving
    before = traces(machine)
    machine.put("/etc/nginx/conf.d/zz-somebody-elses.conf", "this is no nginx;\n")
    try:
        machine.pillar({"apps": {"hello": {**good, "domains": ["new.example.com"], "workers": 3}}})
        run = machine.apply(ok=False)
    finally:
        machine.exec("rm /etc/nginx/conf.d/zz-somebody-elses.conf")
    assert "hello-live" in run.failed
    assert "zz-somebody-elses.conf" in run.states["hello-live"]["comment"]
    assert traces(machine) == before
    assert machine.get("/").status == 200


def test_port_that_another_program_uses_is_refused(serving):
    machine, good = serving
    machine.pillar({"apps": {"hello": good}})
    machine.apply()
    before = traces(machine)
    machine.exec("systemd-run --unit=squatter --collect python3 -m http.server 8123")
    try:
        machine.wait_until("curl -so /dev/null 127.0.0.1:8123")
        machine.pillar({"apps": {"hello": {**good, "listen": 8123}}})
        run = machine.apply(ok=False)
    finally:
        machine.exec("systemctl stop squatter")
    assert "wsgi:apps:hello:listen: port 8123 is in use by another program" in run.states["hello-site"]["comment"]
    assert traces(machine) == before
    assert machine.apply().changed == {"hello-site", "wsgi-nginx"}
    assert machine.get("/", port=8123).status == 200


@pytest.mark.parametrize(
    ("server", "manager", "broken"),
    [*((*each, "import error") for each in PAIRS), ("gunicorn", "supervisor", "never healthy")],
)
def test_failed_first_deploy_leaves_nothing_running(machine, server, manager, broken):
    machine.pillar({"apps": {}})
    machine.apply()
    settings, reason = BROKEN[broken]
    machine.pillar({"apps": {"hello": app(server, process_manager=manager, **settings)}})
    run = machine.apply(ok=False)
    assert run.failed == {"hello-live", "hello-site"}
    assert reason in run.states["hello-live"]["comment"]
    assert "no generation of it runs" in run.states["hello-live"]["comment"]
    assert "hello" not in machine.exec("ps -eo user:20,args").stdout
    assert not machine.exec("ls /etc/nginx/wsgi/live/*/hello.conf /var/lib/wsgi/live/hello", check=False).stdout


def test_requirement_that_does_not_exist_fails_the_release(machine):
    machine.pillar({"apps": {"hello": app(requirements=["no-such-package-anywhere==1.0"])}})
    run = machine.apply(ok=False)
    assert run.failed == {"hello-release", "hello-live", "hello-site"}
    assert "no-such-package-anywhere" in run.states["hello-release"]["comment"]
    machine.pillar({"apps": {"hello": app()}})
    machine.apply()
    assert machine.get("/").status == 200


def test_requirement_that_pins_a_vulnerable_server_fails_the_release(machine):
    machine.pillar({"apps": {"hello": app()}})
    machine.apply()
    before = traces(machine)
    machine.pillar({"apps": {"hello": app(requirements=["gunicorn==22.0.0"])}})
    run = machine.apply(ok=False)
    assert run.failed == {"hello-release", "hello-live", "hello-site"}
    assert (
        "wsgi:apps:hello:requirements: gunicorn 22.0.0 has CVE-2024-6827; use 27.0.1, the default, or set "
        "allow_vulnerable: true"
    ) in run.states["hello-release"]["comment"]
    assert traces(machine) == before


@pytest.mark.parametrize(
    "settings",
    [{"version": "26.0.0"}, {"requirements": ["gunicorn==22.0.0"], "allow_vulnerable": True}],
    ids=str,
)
def test_pinned_version_of_the_server_is_the_one_that_runs(machine, settings):
    machine.pillar({"apps": {"hello": app(**settings)}})
    machine.apply()
    version = settings.get("version", "22.0.0")
    assert machine.status("hello")["version"] == version
    assert machine.get("/").body.startswith("hello from gunicorn")
