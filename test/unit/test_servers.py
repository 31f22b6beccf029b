"""Every server of wsgi/servers.yaml has its files, and is named wherever the servers are listed."""

import re

import pytest
from container import ROOT
from harness import servers


def named(text):
    """Return the servers that a text names, in prose or in pillar's words."""
    return {name for name in servers() if re.search(rf"\b{name}\b", text, re.IGNORECASE)}


def list_of_servers(file):
    """Return the servers that a file's fullest paragraph names."""
    paragraphs = re.split(r"\n\s*\n", (ROOT / file).read_text())
    return max(map(named, paragraphs), key=len)


@pytest.mark.parametrize("name", servers())
def test_a_server_has_a_folder_with_its_states_and_its_program(name):
    assert (ROOT / "wsgi" / name / "init.sls").is_file()
    config = servers()[name]["config"]
    if config:
        assert any((ROOT / "wsgi" / name / file).is_file() for file in (config, f"{config}.jinja"))


def test_pillar_example_lists_every_server():
    assert list_of_servers("pillar.example") == {*servers()}


def test_the_readme_lists_every_server():
    # It says "a program of your own" for `command`.
    assert list_of_servers("README.md") >= {*servers()} - {"command"}
