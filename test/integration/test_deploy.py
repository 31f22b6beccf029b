"""`wsgi.deploy`: one app, without a highstate, at a revision that stays until pillar names it; and the lock of an app."""

import pytest
from container import CommandFailed
from pillars import app

REPOSITORY = "git+file:///srv/shop.git"
COMMIT = "git -c user.name=a -c user.email=a@example.com commit -qam"


def release(machine, version, tag=True):
    """Commit a version of the shop, and tag it."""
    machine.exec(
        f"cd /srv/shop && sed -i 's/^VERSION.*/VERSION = \"{version}\"/' shop.py && {COMMIT} {version} && git push -q origin main"
        + (f" && git tag {version} && git push -q origin {version}" if tag else "")
    )


@pytest.fixture(scope="module")
def repository(machine):
    """The machine with a bare repository of an app: the tags v1, v2, v3 and a broken one, `bad`."""
    machine.exec("command -v git || apt-get install -qy git")
    machine.exec("git init -q --bare -b main /srv/shop.git && git clone -q /srv/shop.git /srv/shop")
    machine.put(
        "/srv/shop/shop.py",
        'VERSION = "v0"\n\n\n'
        "def application(environ, start_response):\n"
        '    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))\n'
        '    start_response("200 OK", [])\n'
        "    return [body or VERSION.encode()]\n",
    )
    machine.exec("cd /srv/shop && git checkout -q -B main && git add .")
    for version in ("v1", "v2", "v3"):
        release(machine, version)
    machine.exec(
        f"cd /srv/shop && echo 'raise RuntimeError(\"rotten\")' >> shop.py && {COMMIT} bad && git tag bad && git push -q origin bad"
    )
    machine.exec("cd /srv/shop && git reset -q --hard v3")
    return machine


def pillar(machine, revision="v1", **settings):
    shop = app(
        application="shop:application", **{"source": f"{REPOSITORY}@{revision}", "health": {}, "env": {}, **settings}
    )
    other = app("uwsgi", domains=["other.example.com"])
    machine.pillar({"apps": {"shop": {**shop, "domains": ["shop.example.com"]}, "other": other}})


@pytest.fixture
def shop(repository):
    """The machine with the shop at v1 and no override."""
    pillar(repository)
    if repository.exec("test -e /var/lib/wsgi/live/shop", check=False).rc == 0:
        repository.call("wsgi.deploy", "shop")
    repository.apply()
    assert version(repository) == "v1"
    return repository


def version(machine):
    return machine.get("/", host="shop.example.com").body


def override(machine):
    return machine.status("shop").get("override")


def test_deployed_revision_stays_live_until_pillar_names_it(shop):
    other = shop.status("other")["pids"]
    with shop.load(clients=8, pause=0.02, host="shop.example.com") as load:
        done = shop.call("wsgi.deploy", "shop", "rev=v2")
    assert load.report["lost"] == 0, load.report
    assert version(shop) == "v2"
    assert done["revision"]["ref"] == "v2"
    assert "v2 was deployed" in done["note"]
    assert "v2 was deployed" in override(shop)
    assert shop.status("other")["pids"] == other
    run = shop.apply()
    assert run.changed == set()
    assert "v2 was deployed" in run.states["shop-live"]["comment"]
    pillar(shop, "v2")
    assert shop.apply().changed == set()
    assert override(shop) is None
    entry = shop.call("wsgi.history", "shop", "limit=1")[0]
    assert (entry["by"]["function"], entry["revision"]["ref"]) == ("wsgi.deploy", "v2")


@pytest.mark.parametrize("asked", ["rev=v2", f"source={REPOSITORY}@v2", "rev=main"])
def test_switching_the_server_keeps_the_branch_or_tag_of_a_deployed_revision(shop, asked):
    found = shop.call("wsgi.deploy", "shop", asked)
    pillar(shop, server="waitress")
    shop.apply()
    switched = shop.status("shop")
    assert switched["release"] != found["release"]
    assert switched["revision"] == found["revision"]
    assert found["revision"]["ref"] == asked.rpartition("=")[2].rpartition("@")[2]
    # A damaged release is rebuilt beside it.
    shop.exec(f"rm -r /srv/wsgi/shop/releases/{switched['release']}/code")
    shop.apply()
    again = shop.status("shop")
    assert again["release"] != switched["release"]
    assert again["revision"] == found["revision"]
    back = shop.call("wsgi.rollback", "shop", f"to={found['generation']}", "pin=True")
    assert (back["release"], back["revision"]) == (found["release"], found["revision"])
    # A power cut may leave it so.
    shop.exec(f"truncate --size=0 /srv/wsgi/shop/releases/{back['release']}/release.json")
    shop.apply()
    assert shop.status("shop")["revision"] == found["revision"]
    shop.call("wsgi.unpin", "shop")


def test_new_source_in_pillar_replaces_the_deployed_revision(shop):
    shop.call("wsgi.deploy", "shop", "rev=v2")
    pillar(shop, "v3")
    shop.apply()
    assert (version(shop), override(shop)) == ("v3", None)


def test_other_settings_of_pillar_apply_to_the_deployed_revision(shop):
    shop.call("wsgi.deploy", "shop", "rev=v2")
    pillar(shop, workers=3)
    shop.apply()
    assert version(shop) == "v2"
    assert len(shop.status("shop")["pids"]) == 4


def test_deployed_branch_stays_at_its_commit_until_the_next_deploy(shop):
    shop.call("wsgi.deploy", "shop", "rev=main")
    assert version(shop) == "v3"
    release(shop, "v4", tag=False)
    assert shop.apply().changed == set()
    shop.call("wsgi.deploy", "shop", "rev=main")
    assert version(shop) == "v4"


def test_deploy_without_a_revision_returns_to_the_source_of_pillar(shop):
    shop.call("wsgi.deploy", "shop", "rev=v2")
    shop.call("wsgi.deploy", "shop")
    assert (version(shop), override(shop)) == ("v1", None)


def test_rollback_of_a_deploy_returns_to_the_source_of_pillar(shop):
    shop.call("wsgi.deploy", "shop", "rev=v2")
    shop.call("wsgi.rollback", "shop")
    assert (version(shop), override(shop)) == ("v1", None)
    assert shop.apply().changed == set()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["rev=v22"], "v22"),
        (["rev=bad"], "rotten"),
        (["rev=-x"], "has the revision '-x', which is not a valid branch, tag or commit"),
        (["rev=1.10"], "rev was read as 1.1; quote it twice"),
        (["rev=''"], "must end in @ and a branch"),
        (["source=nonsense"], "'nonsense' must be salt://folder"),
        (["rev=v2", "source=salt://shop"], "rev and source cannot be combined"),
    ],
    ids=str,
)
def test_failed_deploy_changes_nothing(shop, asked, said):
    with shop.load(clients=4, pause=0.02, host="shop.example.com") as load, pytest.raises(CommandFailed, match=said):
        shop.call("wsgi.deploy", "shop", *asked)
    assert load.report["lost"] == 0, load.report
    assert (version(shop), override(shop)) == ("v1", None)
    assert shop.apply().changed == set()


def test_deploy_accepts_another_source(shop):
    shop.exec("rm -rf /srv/elsewhere; git clone -q /srv/shop.git /srv/elsewhere; cd /srv/elsewhere; git checkout -q v2")
    shop.call("wsgi.deploy", "shop", "source=/srv/elsewhere")
    assert version(shop) == "v2"
    assert "/srv/elsewhere was deployed" in override(shop)


def test_app_with_a_problem_in_pillar_is_not_deployed(shop):
    pillar(shop, workers="many")
    problem = "wsgi:apps:shop:workers: 'many' must be an integer from 1 to 1024"
    for function in ("deploy", "rollback", "restart", "unpin"):
        with pytest.raises(CommandFailed, match=problem):
            shop.call(f"wsgi.{function}", "shop")
    assert version(shop) == "v1"


def test_app_that_is_not_live_is_not_deployed(shop):
    shop.pillar({"apps": {"new": app(domains=["new.example.com"])}})
    with pytest.raises(CommandFailed, match="new is not live yet: run state.apply wsgi"):
        shop.call("wsgi.deploy", "new")
    pillar(shop)


# One run at a time

FLAG = "/tmp/building"
SLOW = {"build": [f"touch {FLAG}; sleep 4321"]}


def begin(machine, *command):
    """Start a run of Salt in the background, and wait until it is building."""
    machine.exec(f"rm -f {FLAG}; systemctl reset-failed run 2>/dev/null; true")
    machine.exec(["systemd-run", "--unit=run", "--property=KillMode=process", "salt-call", *command])
    machine.wait_until(f"[ -e {FLAG} ]", otherwise="journalctl -u run")


def test_second_deploy_waits_or_is_refused_with_the_name_of_the_first(shop):
    pillar(shop, hooks=SLOW)
    begin(shop, "wsgi.deploy", "shop", "rev=v2")
    pid = shop.exec("systemctl show --property=MainPID --value run").stdout.strip()
    refused = rf"shop is being changed by wsgi.deploy \(PID {pid}, since .*\); try again when that has ended"
    for command in (["wsgi.deploy", "shop", "rev=v3"], ["wsgi.rollback", "shop"], ["wsgi.restart", "shop"]):
        with pytest.raises(CommandFailed, match=refused):
            shop.call(*command)
    pillar(shop)
    shop.exec("systemd-run --unit=second salt-call wsgi.deploy shop rev=v3 wait=60; sleep 4")
    assert version(shop) == "v1"
    shop.exec("pkill -x sleep")  # and with it the first one's build
    shop.wait_until("! systemctl is-active -q run second")
    assert version(shop) == "v3"
    last = shop.call("wsgi.history", "shop", "limit=1")[0]
    assert (last["event"], last["revision"]["ref"]) == ("live", "v3")
    shop.exec("systemctl reset-failed run second", check=False)


def test_lock_of_a_killed_run_is_taken_over_and_its_build_is_killed(shop):
    pillar(shop, hooks=SLOW)
    begin(shop, "wsgi.deploy", "shop", "rev=v2")
    shop.exec("systemctl kill --kill-who=main --signal=KILL run; sleep 0.5")
    assert "sleep 4321" in shop.exec("ps -eo args").stdout
    pillar(shop)
    shop.call("wsgi.deploy", "shop", "rev=v3")
    assert "sleep 4321" not in shop.exec("ps -eo args").stdout
    assert version(shop) == "v3"
