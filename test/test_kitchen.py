"""kitchen.yml, which Test Kitchen and these tests both read."""

import harness
import pytest
import yaml
from container import ROOT, SYSTEMD


def test_every_suite_has_apps():
    assert set(harness.suites()) == {"uwsgi", "gunicorn", "both", "switch", "servers", "release", "edge", "zeromq"}
    assert all(wsgi["apps"] for wsgi in harness.suites().values())


def test_every_server_is_in_the_matrix():
    rows = yaml.safe_load((ROOT / "wsgi/servers.yaml").read_text())
    assert {app["server"] for app in harness.suites()["servers"]["apps"].values()} == set(rows)


@pytest.mark.parametrize("platform", harness.kitchen()["platforms"], ids=lambda platform: platform["name"])
def test_a_platform_uses_the_image_made_for_it(platform):
    assert platform["driver"]["image"] == f"wsgi-formula:{platform['name']}"


def test_kitchen_boots_systemd_as_the_tests_do():
    driver = harness.kitchen()["driver"]
    options = {**driver["run_options"], "volume": driver["volume"], "cgroupns": [driver["run_options"]["cgroupns"]]}
    assert {name: driver.get(name, options.get(name)) for name in SYSTEMD} == SYSTEMD
