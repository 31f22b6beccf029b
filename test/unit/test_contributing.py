"""CONTRIBUTING.md names files that exist."""

import re

from container import ROOT


def test_named_files_exist():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    paths = {*re.findall(r"\b(?:_utils|_modules|_states|wsgi|docs|test)/[\w./-]*\w", page)}
    assert paths
    assert sorted(path for path in paths if "NAME" not in path and not (ROOT / path).exists()) == []
