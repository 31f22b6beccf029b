"""The linters: ruff for the Python, mypy for its type hints, salt-lint for the states."""

import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sysconfig.get_path("scripts"))


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "--no-cache"],
        ["ruff", "format", "--no-cache", "--check"],
        ["mypy", "--config-file", "test/mypy.ini"],
        ["salt-lint", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "wsgi").rglob("*.sls"))],
    ],
    ids=["ruff check", "ruff format", "mypy", "salt-lint"],
)
def test_linter_finds_nothing(command):
    done = subprocess.run([BIN / command[0], *command[1:]], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_sees_every_python_program():
    """Those without a suffix stand in ruff.toml."""
    shown = subprocess.run(
        [BIN / "ruff", "check", "--show-files"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    programs = {
        path
        for path in ROOT.rglob("*")
        if path.is_file() and not path.suffix and ".git" not in path.parts and is_python(path)
    }
    assert ROOT / "wsgi/common/launch" in programs
    assert {path.relative_to(ROOT) for path in programs - {*map(Path, shown.stdout.splitlines())}} == set()


def is_python(path):
    with open(path, "rb") as file:
        return re.match(rb"#!.*python", file.readline(200)) is not None
