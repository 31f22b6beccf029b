"""The files and commands that the README shows, by section."""

import re

from container import ROOT


def _fenced(section):
    """Return the fenced blocks below a heading, up to the next one, as pairs of language and text."""
    text = (ROOT / "README.md").read_text()
    found = re.search(rf"^##+ {re.escape(section)}\n(.*?)(?=^##+ |\Z)", text, re.MULTILINE | re.DOTALL)
    return re.findall(r"^```(\w*)\n(.*?)^```$", found[1], re.MULTILINE | re.DOTALL)


def blocks(section):
    """Return the YAML files that a section shows, path to text; the path is in the first comment of each."""
    return {re.match("# (/.*)", text)[1]: text for language, text in _fenced(section) if language == "yaml"}


def commands(section):
    """Return the commands that a section shows, in their order."""
    return [line for language, text in _fenced(section) if not language for line in text.splitlines()]
