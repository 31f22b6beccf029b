"""Nothing that servers.yaml claims goes unasked."""

import pathlib

from fleet import managers


def test_each_process_manager_has_its_file():
    here = pathlib.Path(__file__).parent
    asked = {
        path.stem.removeprefix("test_") for path in here.glob("test_*.py") if "PROCESS_MANAGER =" in path.read_text()
    }
    assert asked >= set(managers())
