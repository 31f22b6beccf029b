"""A master that is set up as the README shows: runs, switches, deploys and rollbacks on all of its minions."""

import contextlib
import json

import pytest
from container import CommandFailed
from pillars import app
from readme import blocks, commands

REPOSITORY = """
systemctl start ssh
mkdir -p -m 700 /root/.ssh
ssh-keygen -q -t ed25519 -N '' -f /root/deploy && cp /root/deploy.pub /root/.ssh/authorized_keys
git init -q --bare -b main /srv/shop.git && git clone -q /srv/shop.git /srv/shop && cd /srv/shop && git checkout -q -B main
git config user.name a && git config user.email a@example.com
for version in v1 v2; do
    cat > shop.py << END
def application(environ, start_response):
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    start_response("200 OK", [])
    return [body or b"$version"]
END
    git add shop.py && git commit -qm $version && git tag $version
done
git push -q --tags origin main
"""


@pytest.fixture(scope="module")
def served(master):
    """The master, set up as the README shows, and the result of its first highstate."""
    for path, text in blocks("Use it on your master").items():
        if path == master.CONFIGURATION:
            master.configure(text)
        else:
            master.put(path, text)
    restart, highstate = commands("Use it on your master")[:2]
    assert restart.split() == ["systemctl", "restart", "salt-master"]
    master.wait_for_minions()
    return master, master.exec(highstate, check=False)


def test_first_highstate_of_the_readme_serves_an_app_on_fresh_minions(served):
    master, printed = served
    assert printed.rc == 0, printed.stdout
    for minion in master.minions.values():
        assert minion.get("/").body.startswith("hello from uWSGI")


def test_idle_run_changes_nothing(served):
    master, _ = served
    for function in (["state.apply", "wsgi"], ["state.highstate"]):
        runs = master.salt("*", *function)
        assert {id: run.changed for id, run in runs.items()} == {id: set() for id in master.minions}


def everywhere(master, ask):
    """Call a function with each minion, and return the one answer that all of them give."""
    first, *others = (ask(minion) for minion in master.minions.values())
    assert others == [first] * len(others)
    return first


@contextlib.contextmanager
def load(master):
    """Put a load on every minion at once, and assert that no request is lost."""
    with contextlib.ExitStack() as stack:
        loads = {id: stack.enter_context(minion.load(clients=4, pause=0.05)) for id, minion in master.minions.items()}
        yield
    for id, load in loads.items():
        assert load.report["requests"] > 50
        assert load.report["lost"] == 0, f"{id}: {json.dumps(load.report, indent=1)}"


def test_switching_all_minions_at_once_loses_no_request(served):
    master, _ = served
    master.pillar({"apps": {"hello": app("gunicorn")}})
    with load(master):
        runs = master.salt("*", "state.apply", "wsgi")
    assert all("hello-live" in run.changed for run in runs.values())
    assert everywhere(master, lambda minion: minion.get("/").body).startswith("hello from gunicorn")


def test_typo_is_explained_in_the_output_of_salt_and_the_app_keeps_serving(served):
    master, _ = served
    master.pillar({"apps": {"hello": app("gunicron")}})
    printed = master.exec(["salt", "*", "state.apply", "wsgi"], check=False)
    assert printed.rc != 0
    for id in master.minions:
        assert f"{id}:\n" in printed.stdout
    expected = "wsgi:apps:hello:server: 'gunicron' is not a server; did you mean 'gunicorn'?"
    assert printed.stdout.count(expected) == len(master.minions)
    assert everywhere(master, lambda minion: minion.get("/").body).startswith("hello from gunicorn")


def test_lists_in_pillar_reach_the_configuration_of_the_server(served):
    master, _ = served
    files = ["/etc/hosts", "/etc/hostname"]
    options = {"gunicorn": {"reload_extra_files": files}}
    master.pillar({"apps": {"hello": app("gunicorn", server_options=options)}})
    master.salt("*", "state.apply", "wsgi")
    for minion in master.minions.values():
        generation = minion.status("hello")["generation"]
        written = minion.exec(f"cat /etc/wsgi/hello/{generation}/gunicorn.conf.py").stdout
        assert f"'reload_extra_files': {files}" in written


@pytest.fixture(scope="module")
def shop(served):
    """The master, with a repository of an app that its minions serve at version v1."""
    master, _ = served
    master.exec(REPOSITORY)
    shop = app(
        source="git+ssh://root@salt/srv/shop.git@v1",
        application="shop:application",
        deploy_key=master.exec("cat /root/deploy").stdout,
        known_hosts=master.exec("ssh-keyscan -t ed25519 salt 2>/dev/null").stdout,
        health={},
    )
    master.pillar({"apps": {"shop": shop}})
    master.salt("*", "state.apply", "wsgi")
    assert version(master) == "v1"
    return master


def version(master):
    return everywhere(master, lambda minion: minion.get("/").body)


def test_deployed_revision_stays_live_on_all_minions_until_pillar_names_it(shop):
    with load(shop):
        done = shop.salt("*", "wsgi.deploy", "shop", "rev=v2")
    assert {id: found["revision"]["ref"] for id, found in done.items()} == dict.fromkeys(shop.minions, "v2")
    assert version(shop) == "v2"
    runs = shop.salt("*", "state.apply", "wsgi")
    assert {id: run.changed for id, run in runs.items()} == {id: set() for id in shop.minions}


def test_rollback_on_all_minions_returns_to_the_previous_generation(shop):
    with load(shop):
        shop.salt("*", "wsgi.rollback", "shop")
    assert version(shop) == "v1"


def test_deploy_that_fails_on_the_minions_makes_salt_fail(shop):
    with load(shop), pytest.raises(CommandFailed, match="v3"):
        shop.salt("*", "wsgi.deploy", "shop", "rev=v3")
    assert version(shop) == "v1"
