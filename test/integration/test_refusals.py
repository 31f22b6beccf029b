"""Where the formula cannot work, one sentence says why and what to do; and a run without warnings shows none."""

import json

import pytest
from pillars import app

FUNCTIONS = [["wsgi.status"], ["wsgi.validate"], ["wsgi.deploy", "hello"], ["wsgi.logs", "hello"]]


@pytest.fixture(scope="module")
def configured(machine):
    """configured(user, *file_roots) returns salt-call for a user with a configuration and a cache of their own."""
    machine.exec("useradd --create-home alice")

    def salt_call(user, *file_roots):
        home = f"/srv/salt-of-{user}{len(file_roots)}"
        minion = {
            "file_client": "local",
            "file_roots": {"base": list(file_roots)},
            "pillar_roots": {"base": []},
            "root_dir": home,
            "user": user,
        }
        machine.put(f"{home}/minion", json.dumps(minion))
        machine.exec(["chown", "-R", user, home])

        def call(*words):
            done = machine.exec(
                ["runuser", "-u", user, "--", "salt-call", "--local", f"--config-dir={home}", *words], check=False
            )
            return done.rc, done.stdout + done.stderr

        return call

    return salt_call


def test_other_users_than_root_are_refused_in_one_sentence(machine, configured):
    sentence = "wsgi must run as root, and this is the user with the UID 1000: use sudo"
    call = configured("alice", "/srv/salt-top", "/srv/formula")
    # This syncs the modules, too.
    code, said = call("state.apply", "wsgi")
    assert code
    assert f"Comment: Nothing was changed: {sentence}" in said
    assert "Traceback" not in said
    for function in FUNCTIONS:
        code, said = call(*function)
        assert code
        assert f"Error running '{function[0]}': {sentence}" in said
        assert "Traceback" not in said


def test_checkout_that_is_not_its_own_file_root_is_refused_in_one_sentence(machine, configured):
    machine.exec("mkdir -p /srv/roots/formulas && cp -r /srv/formula /srv/roots/formulas/wsgi-formula")
    call = configured("root", "/srv/roots")
    sentence = "is not served: the formula's checkout has to be a file root of its own, in file_roots or gitfs_remotes"
    code, said = call("state.apply", "formulas.wsgi-formula.wsgi")
    assert code
    assert f"salt://_modules/wsgi.py {sentence}" in said
    # Now with the modules alone at the top of the file root.
    machine.exec("cd /srv/roots && ln -s formulas/wsgi-formula/_* . && rm -rf /srv/salt-of-root1/var/cache")
    for function in (["state.apply", "formulas.wsgi-formula.wsgi"], ["wsgi.validate"]):
        code, said = call(*function)
        assert code
        assert "salt://wsgi/defaults.yaml is not served" in said
        assert "it is in salt://formulas/wsgi-formula of another one" in said
        assert "Traceback" not in said


def test_no_state_has_an_empty_list_of_warnings(machine):
    apps = {"one": app("uwsgi", process_manager="circus"), "two": app("gunicorn", domains=["two.example.com"])}
    for wsgi in ({"apps": apps, "status_page": {}}, {"apps": {"two": apps["two"]}}, {"apps": {}}):
        machine.pillar(wsgi)
        for test in (True, False, False):
            run = machine.apply(test=test)
            assert [state for state in run.raw.values() if state.get("warnings") == []] == []
    machine.pillar({"apps": {"two": {}}})
    run = machine.apply(ok=False)
    assert [state for state in run.raw.values() if state.get("warnings") == []] == []
