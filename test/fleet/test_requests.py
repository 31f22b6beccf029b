"""Requests of an idle minion to its master, and edits of the formula on the master."""

import json
from collections import Counter

import pytest
from master import FORMULA
from pillars import app

RUN, HIGHSTATE = 12, 20
EDITED = "wsgi/nginx/proxy.conf.jinja"


@pytest.fixture(scope="module")
def minion(master):
    """A minion that serves the two apps of pillar.example and has nothing left to change."""
    flask = {"source": "salt://wsgi/examples/flask", "application": "app:app", "requirements": "requirements.txt"}
    apps = {
        "hello": app("uwsgi", domains=["hello.example.com"]),
        "visits": app("gunicorn", domains=["visits.example.com"], health={}, **flask),
    }
    master.pillar({"apps": apps})
    minion = next(iter(master.minions.values()))
    master.salt(minion.id, "state.highstate")
    yield minion
    minion.configure()
    master.wait_for_minions()


@pytest.fixture(autouse=True)
def formula(master):
    """Restore the formula of the checkout after each test."""
    yield
    master.exec("rm -rf /srv/salt/wsgi")
    master.restore_formula()


def count_requests(master, minion, *function):
    """Return a Counter of the minion's requests during a function that changes nothing."""
    with master.requests() as requests:
        returned = master.salt(minion.id, *function)[minion.id]
    assert not getattr(returned, "changed", None), returned
    return Counter((each["command"], each["path"]) for each in requests if each["minion"] == minion.id)


def refused(master, minion, *function):
    """Return what Salt says of a function that fails."""
    return str(master.salt(minion.id, *function, ok=False)[minion.id])


def test_idle_run_requests_one_file_besides_its_sls(master, minion):
    requests = count_requests(master, minion, "state.apply", "wsgi")
    files = {path for command, path in requests if command == "_file_hash"}
    assert files == {"wsgi.sls", "wsgi/init.sls", "wsgi/SHA256SUMS"}
    assert sum(requests.values()) <= RUN, requests


def test_idle_highstate_requests_little_besides_the_sync_of_modules(master, minion):
    """The sync alone requests a list for each kind of module and a hash for each module."""
    synced = count_requests(master, minion, "saltutil.sync_all")
    requests = count_requests(master, minion, "state.highstate") - synced
    assert 0 < sum(requests.values()) <= HIGHSTATE, requests


def test_idle_highstate_without_the_sync_of_modules_requests_little(master, minion):
    minion.configure(autoload_dynamic_modules=False)
    master.wait_for_minions()
    requests = count_requests(master, minion, "state.highstate")
    assert 0 < sum(requests.values()) <= HIGHSTATE, requests


@pytest.mark.parametrize("include", [["wsgi", "wsgi.nginx"], ["wsgi.nginx", "wsgi"]], ids=" ".join)
def test_other_sls_can_include_and_require_parts_of_the_formula(master, minion, include):
    required = [{"sls": name} for name in ("wsgi", "wsgi.common", "wsgi.nginx")]
    master.put("/srv/salt/own.sls", json.dumps({"include": include, "own": {"test.nop": [{"require": required}]}}))
    run = master.salt(minion.id, "state.apply", "own")[minion.id]
    assert {"own", "hello-live", "nginx-files"} <= {*run.states}


def test_edit_on_the_master_is_used_once_the_manifest_is_written(master, minion):
    master.exec(f"echo '# edited' >> {FORMULA}/{EDITED}")
    assert f"salt://{EDITED} does not have the sum" in refused(master, minion, "wsgi.validate")
    assert master.salt(minion.id, "state.apply", "wsgi")[minion.id].changed == set()
    master.exec(f"{FORMULA}/test/manifest")
    assert master.salt(minion.id, "state.apply", "wsgi")[minion.id].changed
    assert master.salt(minion.id, "wsgi.validate")[minion.id] is True


def test_formula_file_from_another_file_root_is_not_used(master, minion):
    master.salt(minion.id, "state.apply", "wsgi")
    master.put(f"/srv/salt/{EDITED}", "nonsense;")
    minion.exec(["rm", f"/var/cache/salt/minion/files/base/{EDITED}"])
    assert f"salt://{EDITED} does not have the sum" in refused(master, minion, "state.apply", "wsgi")
    assert minion.get("/", host="hello.example.com").status == 200


def test_minion_whose_modules_cannot_be_loaded_is_told_to_sync_them(master, minion):
    minion.exec("rm -r /var/cache/salt/minion/extmods/utils/wsgi_formula")
    assert "run saltutil.sync_all" in refused(master, minion, "state.apply", "wsgi")
    assert minion.get("/", host="hello.example.com").status == 200
    master.salt(minion.id, "saltutil.sync_all")
    assert master.salt(minion.id, "state.apply", "wsgi")[minion.id].changed == set()


def test_minion_that_does_not_fork_must_be_restarted_after_a_sync(master, minion):
    minion.configure(multiprocessing=False)
    master.wait_for_minions()
    master.salt(minion.id, "state.apply", "wsgi")
    master.exec(
        f"cd {FORMULA} && echo '# edited' | tee -a _modules/wsgi.py >> _utils/wsgi_formula/run/probe.py && test/manifest"
    )
    assert "run saltutil.sync_all" in refused(master, minion, "state.apply", "wsgi")
    master.salt(minion.id, "saltutil.sync_all")
    for function in (["state.apply", "wsgi"], ["wsgi.restart", "hello"]):
        comment = refused(master, minion, *function)
        assert "_utils/wsgi_formula/run/probe.py" in comment
        assert "restart salt-minion" in comment
    minion.exec("systemctl restart salt-minion")
    master.wait_for_minions()
    assert master.salt(minion.id, "state.apply", "wsgi")[minion.id].changed == set()
