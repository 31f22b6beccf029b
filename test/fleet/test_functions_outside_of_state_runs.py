"""Functions that are called outside of a state run use the current pillar, as a state run does."""

import json

import pytest
from pillars import app

DEPLOYING = """
deploying:
  module.run:
    - wsgi.deploy:
      - app: hello
"""
SSH = """
systemctl start ssh
mkdir -p -m 700 /root/.ssh
ssh-keygen -q -t ed25519 -N '' -f /root/salt-ssh && cat /root/salt-ssh.pub >> /root/.ssh/authorized_keys
"""


def hello(server, **settings):
    return {"apps": {"hello": app(server, **settings)}, "status_page": {}}


@pytest.fixture
def served(master):
    """The master, one minion of which serves an app under gunicorn."""
    master.pillar(hello("gunicorn"))
    master.salt("web1", "state.apply", "wsgi")
    return master


def call_on_web1(master, function, *args, ok=True):
    return master.salt("web1", function, *args, ok=ok)["web1"]


def serving_server(master):
    return master.minions["web1"].get("/").body.split()[2].partition("/")[0]


def test_deploy_keeps_the_server_that_state_apply_brought_up(served):
    served.pillar(hello("waitress"))
    served.salt("web1", "state.apply", "wsgi")
    call_on_web1(served, "wsgi.deploy", "hello")
    assert serving_server(served) == "waitress"
    call_on_web1(served, "wsgi.restart", "hello")


def test_restart_is_refused_when_pillar_has_changed_since_the_last_run(served):
    served.pillar(hello("gunicorn", workers=3))
    assert "pillar has changed since the live generation of hello was made" in call_on_web1(
        served, "wsgi.restart", "hello", ok=False
    )


def test_validate_reports_a_typo_that_no_run_has_seen(served):
    served.pillar(hello("gunicron"))
    (problem,) = call_on_web1(served, "wsgi.validate", ok=False)
    assert "did you mean 'gunicorn'?" in problem


@pytest.mark.parametrize(
    "function", [["wsgi.validate"], ["wsgi.status"], ["wsgi.restart", "hello"], ["state.apply", "wsgi"]], ids=" ".join
)
def test_pillar_is_compiled_once_per_function(served, function):
    with served.requests() as requests:
        served.salt("web1", *function)
    assert [request["command"] for request in requests].count("_pillar") == 1


def test_pillar_that_salt_call_compiled_is_not_compiled_again(served):
    with served.requests() as requests:
        assert served.minions["web1"].call("wsgi.validate") is True
    assert [request["command"] for request in requests].count("_pillar") == 1


def test_function_in_a_state_run_uses_the_pillar_of_that_run(served):
    served.put("/srv/salt/deploying.sls", DEPLOYING)
    served.salt("web1", "state.apply", "deploying", f"pillar={json.dumps({'wsgi': hello('waitress')})}")
    assert serving_server(served) == "waitress"
    served.salt("web1", "state.apply", "deploying")
    assert serving_server(served) == "gunicorn"


def test_pillar_that_does_not_render_is_reported_and_touches_nothing(served):
    before = call_on_web1(served, "wsgi.status", "hello")["hello"]["generation"]
    served.put("/srv/pillar/web1.sls", "{{ broken")
    failed = "Rendering SLS 'web1' failed"
    (problem,) = call_on_web1(served, "wsgi.validate", ok=False)
    assert failed in problem
    for function in (["restart", "hello"], ["deploy", "hello"], ["maintenance", "hello", "on"], ["settings"]):
        assert failed in call_on_web1(served, f"wsgi.{function[0]}", *function[1:], ok=False)
    assert call_on_web1(served, "wsgi.status", "hello")["hello"]["generation"] == before
    assert serving_server(served) == "gunicorn"


def test_saltenv_of_the_last_run_is_used_unless_another_is_given(served):
    served.salt("web1", "state.apply", "wsgi", "saltenv=base")
    assert "not served" in call_on_web1(served, "wsgi.validate", "saltenv=elsewhere", ok=False)
    assert call_on_web1(served, "wsgi.validate") is True


@pytest.fixture(scope="module")
def salt_ssh(master):
    """salt_ssh(function, …) calls a function on the master's own machine through salt-ssh."""
    master.exec(SSH)
    roster = {"box": {"host": "127.0.0.1", "user": "root", "priv": "/root/salt-ssh"}}
    master.put("/etc/salt/roster", json.dumps(roster))

    def asked(*args):
        done = master.exec(["salt-ssh", "--ignore-host-keys", "--out=json", "box", *args], check=False)
        return json.loads(done.stdout)["box"]

    return asked


@pytest.mark.parametrize("sls", ["wsgi", "wsgi.clean"])
def test_run_through_salt_ssh_is_refused_in_one_sentence(salt_ssh, master, sls):
    (state,) = salt_ssh("state.apply", sls).values()
    assert (state["result"], state["changes"], state["comment"]) == (False, {}, "Nothing was changed.")
    assert state["name"].startswith("wsgi does not run through salt-ssh: ")
    assert master.exec("ls -d /srv/wsgi /etc/wsgi", check=False).stdout == ""


def test_function_through_salt_ssh_is_refused_in_one_sentence(salt_ssh):
    said = salt_ssh("wsgi.status")
    assert said["retcode"] != 0
    assert "wsgi does not run through salt-ssh: install salt-minion" in said["stderr"]
    assert "Traceback" not in said["stderr"]
