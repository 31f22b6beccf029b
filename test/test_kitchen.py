"""kitchen.yml, which both Test Kitchen and these tests read."""

import os
import subprocess

import harness
import pytest
import yaml
from container import ROOT, SYSTEMD


def test_every_suite_has_apps():
    assert set(harness.suites()) == {"uwsgi", "gunicorn", "both", "switch", "servers", "release", "edge", "zeromq"}
    assert all(wsgi["apps"] for wsgi in harness.suites().values())


def test_every_suite_has_a_test():
    tests = (ROOT / "test/integration/test_suites.py").read_text()
    assert [suite for suite in harness.suites() if f'"{suite}"' not in tests] == []


def test_every_debian_is_tested_with_every_salt():
    assert set(harness.platforms()) == {
        f"debian-{debian}{salt}" for debian in (11, 12, 13) for salt in ("", "-salt-3007", "-salt-3006")
    }


def test_salt_version_of_a_platform_is_that_of_its_image():
    for row in harness.kitchen()["platforms"]:
        version = row.get("provisioner", {}).get("salt_version")
        assert row["name"].partition("-salt-")[2] == (version or "").partition(".")[0]


@pytest.mark.parametrize("platform", harness.platforms())
def test_platform_omits_exactly_the_servers_that_are_unavailable_on_it(platform):
    family = yaml.safe_load((ROOT / "wsgi/os_family/Debian.yaml").read_text())
    rows = family["servers"].get(harness.osfinger(platform), {})
    apps = harness.suites(platform)["servers"]["apps"].values()
    left_out = {app["server"] for app in apps if app.get("state") == "absent"}
    assert left_out == {name for name, row in rows.items() if "unavailable" in row}


def test_test_image_accepts_only_platforms_of_kitchen_yml():
    made = subprocess.run([ROOT / "test/image", "debian-9"], check=False, capture_output=True, text=True)
    assert made.returncode == 1
    assert f"'debian-9' is not a platform of kitchen.yml ({' '.join(harness.platforms())})" in made.stderr


@pytest.mark.parametrize("platform", harness.kitchen()["platforms"], ids=lambda platform: platform["name"])
def test_each_platform_uses_the_image_built_for_it(platform):
    assert platform["driver"]["image"] == f"wsgi-formula:{platform['name']}"


def test_kitchen_boots_systemd_with_the_options_of_the_tests():
    driver = harness.kitchen()["driver"]
    options = {**driver["run_options"], "volume": driver["volume"], "cgroupns": [driver["run_options"]["cgroupns"]]}
    assert {name: driver.get(name, options.get(name)) for name in SYSTEMD} == SYSTEMD


def verify(suite, container):
    """Run the verifier's command as Kitchen does, for a suite that it has converged in a container."""
    variables = {"KITCHEN_SUITE": suite, "KITCHEN_PLATFORM": "debian-12", "KITCHEN_CONTAINER_ID": container}
    command = harness.kitchen()["verifier"]["command"]
    return subprocess.run(
        command, shell=True, check=False, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True
    )


def test_verifier_runs_the_tests_of_the_converged_suite(suite_machine):
    machine = suite_machine("uwsgi")
    machine.exec("mkdir /tmp/kitchen && ln -s /etc /srv /tmp/kitchen")  # where Kitchen has them
    verified = verify("uwsgi", machine.name)
    assert verified.returncode == 0, verified.stdout
    assert " 1 passed" in verified.stdout


def test_verifier_fails_a_suite_without_tests():
    verified = verify("untested", "none")
    assert verified.returncode == pytest.ExitCode.NO_TESTS_COLLECTED
    assert "No test uses the machine of the suite untested." in verified.stdout
