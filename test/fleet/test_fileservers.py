"""File servers: a master serves the formula from file roots, gitfs or another saltenv, and updates reach the minions."""

import pytest
from master import FORMULA
from pillars import app
from readme import blocks, commands

BARE = "/srv/git/wsgi-formula.git"
COMMIT = "git -c user.name=a -c user.email=a@example.com commit -qam"


def serve(master, section, **replaced):
    """Let the master serve the formula as a section of the README shows."""
    text = blocks(section)[master.CONFIGURATION]
    for old, new in replaced.items():
        text = text.replace(old, new)
    master.configure(text)
    master.wait_for_minions()


def edit_command(folder):
    """Return a command that changes a template and a module of the formula in a folder."""
    new = "echo '# of a new version' | tee -a wsgi/nginx/wsgi.conf.jinja >> _utils/wsgi_formula/edge/nginx.py"
    return f"cd {folder} && {new} && test/manifest"


def assert_new_version(minion):
    assert "# of a new version" in minion.exec("cat /etc/nginx/wsgi/live/wsgi.conf").stdout
    assert (
        "# of a new version"
        in minion.exec("cat /var/cache/salt/minion/extmods/utils/wsgi_formula/edge/nginx.py").stdout
    )
    assert minion.get("/").status == 200


@pytest.fixture
def served(master):
    """The master, which serves the formula from a checkout, after a highstate with an app."""
    serve(master, "Use it on your master")
    master.restore_formula()
    master.pillar({"apps": {"hello": app("gunicorn")}})
    master.salt("*", "state.highstate")
    return master


def test_highstate_applies_an_update_of_the_formula(served):
    served.exec(edit_command(FORMULA))
    served.salt("*", "state.highstate")
    for minion in served.minions.values():
        assert_new_version(minion)


def test_state_apply_after_an_update_of_the_formula_says_to_sync_first(served):
    served.exec(edit_command(FORMULA))
    printed = served.exec(["salt", "*", "state.apply", "wsgi"], check=False)
    assert printed.rc != 0
    assert printed.stdout.count("run saltutil.sync_all, then repeat this") == len(served.minions)
    for command in commands("Use it on your master")[2:]:
        served.exec(command)
    for minion in served.minions.values():
        assert_new_version(minion)


@pytest.fixture(scope="module")
def repository(master):
    """A bare repository with the formula in its branch main, and a clone of it."""
    master.restore_formula()
    master.exec(
        f"cp -r {FORMULA} /srv/clone && cd /srv/clone && git init -q -b main && git add . && {COMMIT} v1 && "
        f"git clone -q --bare . {BARE} && git remote add origin {BARE}"
    )
    return master


def test_gitfs_serves_fresh_minions_and_an_update(repository):
    master = repository
    for minion in master.minions.values():
        minion.forget()
    serve(master, "With gitfs", **{"https://git.example.com/wsgi-formula.git": f"file://{BARE}"})
    master.pillar({"apps": {"hello": app("gunicorn", workers=3)}})
    master.salt("*", "state.highstate")
    assert master.salt("*", "cp.hash_file", "salt://wsgi/init.sls")["web1"]
    master.exec(f"{edit_command('/srv/clone')} && {COMMIT} v2 && git push -q origin main")
    master.exec("salt-run fileserver.update")
    master.salt("*", "state.highstate")
    for minion in master.minions.values():
        assert_new_version(minion)


def test_another_saltenv_serves_fresh_minions(master):
    master.restore_formula()
    for minion in master.minions.values():
        minion.forget()
    serve(master, "In another saltenv than base")
    master.pillar({"apps": {"hello": app("gunicorn", workers=4)}})
    (apply,) = commands("In another saltenv than base")
    master.exec(apply)
    for minion in master.minions.values():
        assert minion.get("/").status == 200
        assert minion.status("hello")["workers"] == 4
    assert master.salt("*", "wsgi.validate") == dict.fromkeys(master.minions, True)
    assert all("generation" in done for done in master.salt("*", "wsgi.deploy", "hello").values())
    master.put("/srv/salt/top.sls", "dev: {'*': [wsgi]}\n")
    runs = master.salt("*", "state.highstate")
    assert {id: run.changed for id, run in runs.items()} == {id: set() for id in master.minions}
