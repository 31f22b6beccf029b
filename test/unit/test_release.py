"""FORMULA, CHANGELOG.md and test/release agree on the version."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FORMULA = yaml.safe_load((ROOT / "FORMULA").read_text())
HEADING = re.compile(r"^## \[(.*)\] - (unreleased|\d{4}-\d\d-\d\d)$", re.MULTILINE)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with the files that a release changes."""
    for name in ("FORMULA", "CHANGELOG.md", "test/release"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    changelog = tmp_path / "CHANGELOG.md"
    changelog.write_text(HEADING.sub(r"## [\1] - unreleased", changelog.read_text(), count=1))
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "Ann")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "ann@example.com")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    return tmp_path


def git(folder, *words):
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout


def release(checkout):
    return subprocess.run([checkout / "test/release"], check=False, capture_output=True, text=True)


def test_newest_version_of_the_changelog_is_that_of_formula():
    assert HEADING.search((ROOT / "CHANGELOG.md").read_text())[1] == FORMULA["version"]


def test_release_is_dated_and_tagged(checkout):
    assert release(checkout).returncode == 0
    dated = HEADING.search(git(checkout, "show", f"v{FORMULA['version']}:CHANGELOG.md"))
    assert dated[1] == FORMULA["version"]
    assert dated[2] != "unreleased"
    assert git(checkout, "status", "--porcelain") == ""


def test_version_is_not_released_twice(checkout):
    assert release(checkout).returncode == 0
    assert "CHANGELOG.md has no heading" in release(checkout).stderr


def test_release_refuses_uncommitted_changes(checkout):
    (checkout / "FORMULA").write_text("version: 9.9.9\n")
    assert "there are changes that are not committed" in release(checkout).stderr
