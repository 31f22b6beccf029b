"""The linters find nothing: ruff in the Python, mypy in its type hints, salt-lint in the states."""

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
def test_a_linter_finds_nothing(command):
    done = subprocess.run([BIN / command[0], *command[1:]], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
