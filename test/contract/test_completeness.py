"""The contract covers every server and process manager of servers.yaml."""

import pathlib

from fleet import managers, once


def test_every_process_manager_has_a_test_file():
    here = pathlib.Path(__file__).parent
    assert [name for name in managers() if f'rest_of("{name}")' not in (here / f"test_{name}.py").read_text()] == []


def test_every_process_manager_runs_a_server_in_test_every_server():
    assert {*once().values()} == {*managers()}
