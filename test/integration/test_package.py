"""The package that Salt's package manager builds from FORMULA, installed on a masterless minion."""

import json

import pytest
from container import ROOT
from pillars import app

SPM = "/opt/salt/bin/spm"


@pytest.fixture(scope="module")
def installed(machine):
    """A machine that gets the formula from the package alone, as Salt's default `file_roots` has it."""
    machine.exec(f"cd /srv/formula && {SPM} build . && {SPM} --assume-yes local install /srv/spm_build/wsgi-*.spm")
    minion = json.loads(machine.exec("cat /etc/salt/minion").stdout)
    minion["file_roots"]["base"] = ["/srv/salt-top", "/srv/spm/salt"]
    machine.put("/etc/salt/minion", json.dumps(minion))
    return machine


def test_package_contains_the_whole_formula_and_nothing_else(installed):
    listed = installed.exec(f"{SPM} local files /srv/spm_build/wsgi-*.spm").stdout.splitlines()
    folders = {name.rpartition("/")[0] for name in listed}
    files = {name.partition("/")[2] for name in listed if name not in folders}
    sums = [line.split("  ")[1] for line in (ROOT / "wsgi/SHA256SUMS").read_text().splitlines()]
    assert files == {"FORMULA", "LICENSE", "README.md", "pillar.example", "wsgi/SHA256SUMS", *sums}


def test_app_is_served_from_the_installed_package(installed):
    installed.pillar({"apps": {"hello": app()}})
    installed.apply()
    assert installed.get("/").body.startswith("hello from gunicorn")


def test_removal_leaves_no_file_of_the_package(installed):
    installed.exec(f"{SPM} --assume-yes remove wsgi")
    assert installed.exec("find /srv/spm/salt -type f").stdout == ""
