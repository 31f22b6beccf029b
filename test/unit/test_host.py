"""The host of a Salt run: the conditions under which it refuses to work."""

import os

import pytest
import salt.exceptions
from wsgi_formula import files
from wsgi_formula.errors import WsgiError
from wsgi_formula.host import Host


@pytest.fixture(autouse=True)
def nothing_damaged(monkeypatch):
    monkeypatch.setattr(files.logger, "disabled", True)
    files.damaged_records.clear()
    files.take_damage_reports()


@pytest.mark.parametrize(
    ("served", "told"),
    [
        (
            ["top.sls", "formulas/wsgi-formula/wsgi/defaults.yaml"],
            "; it is in salt://formulas/wsgi-formula of another one",
        ),
        (["top.sls", "nowsgi/defaults.yaml"], ""),
    ],
)
def test_formula_that_is_not_its_own_file_root_is_refused(served, told):
    salt = {"cp.cache_file": lambda url, saltenv: "", "cp.list_master": lambda saltenv: served}
    host = Host(salt, pillar={}, grains={"os_family": "Debian"}, saltenv="dev")
    with pytest.raises(WsgiError) as problem:
        host.settings  # noqa: B018
    assert str(problem.value) == (
        "salt://wsgi/defaults.yaml is not served in saltenv dev: the formula's checkout has to be a file root of its own, "
        f"in file_roots or gitfs_remotes{told}"
    )


def test_problem_is_an_error_that_salt_shows_without_a_traceback():
    assert issubclass(WsgiError, salt.exceptions.CommandExecutionError)


def test_other_users_than_root_are_refused(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(WsgiError, match="wsgi must run as root, and this is the user with the UID 1000"):
        Host.of_run({}, {}, {}, {}, {}, "base")
