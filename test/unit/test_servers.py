"""Every server of wsgi/servers.yaml has its files, and is named wherever the servers are listed."""

import re

import harness
import pytest
from container import ROOT

SERVERS = harness.servers()


def listed(file):
    """Return the servers that a file lists: those of its paragraph that names the most."""
    paragraphs = re.split(r"\n\s*\n", (ROOT / file).read_text().lower())
    return max(({name for name in SERVERS if re.search(rf"\b{name}\b", text)} for text in paragraphs), key=len)


@pytest.mark.parametrize("name", SERVERS)
def test_each_server_has_its_states_and_its_program(name):
    folder, config = ROOT / "wsgi" / name, SERVERS[name]["config"]
    assert (folder / "init.sls").is_file(), f"wsgi/{name}/init.sls is missing"
    if config:
        program = config if config.endswith(".py") else f"{config}.jinja"
        assert (folder / program).is_file(), f"wsgi/{name}/{program} is missing"


@pytest.mark.parametrize("name", SERVERS)
def test_each_server_serves_wsgi(name):
    """test/contract, kitchen.yml and a switch to it from any other server need that; ASGI may come through a2wsgi."""
    assert "wsgi" in SERVERS[name]["interfaces"], "asgi_application() of wsgi_worker.py serves WSGI apps through a2wsgi"


def test_pillar_example_lists_every_server():
    assert [name for name in SERVERS if name not in listed("pillar.example")] == []


def test_readme_lists_every_server():
    # It says "a program of your own" for `command`.
    assert [name for name in SERVERS if name not in {*listed("README.md"), "command"}] == []


def test_suite_of_kitchen_has_every_server():
    apps = harness.suites()["servers"]["apps"].values()
    assert {app["server"] for app in apps} == {*SERVERS}
