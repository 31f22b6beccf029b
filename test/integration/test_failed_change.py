"""A change that fails leaves what was serving as it was, says why, and leaves nothing behind."""

import re

import pytest
from pillars import SERVERS, app

BROKEN = {
    "syntax error": ({"source": "salt://apps/syntax_error", "application": "broken:application"}, "SyntaxError"),
    "import error": ({"source": "salt://apps/import_error", "application": "broken:application"}, "RuntimeError"),
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
    """What a generation consists of: processes, sockets, configuration."""
    return machine.exec(
        "ps -eo pid=,user=,args= | grep -E 'wsgi-hello|hello\\.' | grep -v grep | sort;"
        "ls -d /etc/wsgi/hello/*/ /run/wsgi/hello/* /etc/supervisor/conf.d/* /etc/wsgi/vassals/*"
        " /etc/tmpfiles.d/wsgi-*; readlink /var/lib/wsgi/live/hello; cat /etc/nginx/conf.d/* /etc/nginx/wsgi/live/*/*",
        check=False,
    ).stdout


@pytest.fixture(scope="module", params=[("uwsgi", "emperor"), ("gunicorn", "supervisor")], ids="-".join)
def serving(machine, request):
    server, manager = request.param
    # Else workers come and go by themselves under the load.
    good = app(server, process_manager=manager, max_requests=0)
    machine.pillar({"apps": {"hello": good}})
    machine.apply()
    return machine, good


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_change_leaves_the_old_generation_serving(serving, broken):
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


def test_mending_the_pillar_mends_the_app(serving):
    machine, good = serving
    machine.pillar({"apps": {"hello": {**good, "env": {"GREETING": "mended"}}}})
    assert machine.apply().changed == {"hello-live"}
    assert machine.get("/").body.startswith("mended")


def test_refused_nginx_tree_is_put_back(serving):
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


def test_port_of_another_program_is_refused(serving):
    machine, good = serving
    machine.pillar({"apps": {"hello": good}})
    machine.apply()
    before = traces(machine)
    machine.exec("systemd-run --unit=squatter --collect python3 -m http.server 8123")
    try:
        machine.exec("for i in $(seq 50); do curl -so /dev/null 127.0.0.1:8123 && break; sleep 0.1; done")
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
    [*((*each, "import error") for each in SERVERS), ("gunicorn", "supervisor", "never healthy")],
)
def test_failed_first_deploy_leaves_nothing_running(machine, server, manager, broken):
    machine.pillar({"apps": {}})
    machine.apply()
    settings, reason = BROKEN[broken]
    machine.pillar({"apps": {"hello": app(server, process_manager=manager, **settings)}})
    run = machine.apply(ok=False)
    assert run.failed == {"hello-live", "hello-site"}
    assert reason in run.states["hello-live"]["comment"]
    assert "nothing of it runs" in run.states["hello-live"]["comment"]
    assert "hello" not in machine.exec("ps -eo user:20,args").stdout
    assert not machine.exec("ls /etc/nginx/wsgi/live/*/hello.conf /var/lib/wsgi/live/hello", check=False).stdout


def test_requirement_that_cannot_be_had_fails_the_release(machine):
    machine.pillar({"apps": {"hello": app(requirements=["no-such-package-anywhere==1.0"])}})
    run = machine.apply(ok=False)
    assert run.failed == {"hello-release", "hello-live", "hello-site"}
    assert "no-such-package-anywhere" in run.states["hello-release"]["comment"]
    machine.pillar({"apps": {"hello": app()}})
    machine.apply()
    assert machine.get("/").status == 200


def test_server_with_a_known_hole_that_the_requirements_bring_fails_the_release(machine):
    machine.pillar({"apps": {"hello": app()}})
    machine.apply()
    before = traces(machine)
    machine.pillar({"apps": {"hello": app(requirements=["gunicorn==22.0.0"])}})
    run = machine.apply(ok=False)
    assert run.failed == {"hello-release", "hello-live", "hello-site"}
    assert (
        "wsgi:apps:hello:requirements: '22.0.0' of gunicorn has CVE-2024-6827; use 27.0.1, the default, or say "
        "allow_vulnerable: true"
    ) in run.states["hello-release"]["comment"]
    assert traces(machine) == before


@pytest.mark.parametrize(
    "settings",
    [{"version": "26.0.0"}, {"requirements": ["gunicorn==22.0.0"], "allow_vulnerable": True}],
    ids=str,
)
def test_another_version_of_a_server_is_the_one_that_runs(machine, settings):
    machine.pillar({"apps": {"hello": app(**settings)}})
    machine.apply()
    version = settings.get("version", "22.0.0")
    assert machine.call("wsgi.status")["hello"]["version"] == version
    assert machine.get("/").body.startswith("hello from gunicorn")
