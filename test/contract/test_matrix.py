"""Nothing that servers.yaml claims goes unasked."""

import pathlib

from fleet import managers, once


def test_each_process_manager_has_its_file():
    here = pathlib.Path(__file__).parent
    assert [name for name in managers() if f'rest_of("{name}")' not in (here / f"test_{name}.py").read_text()] == []


def test_each_process_manager_holds_a_server_where_each_server_is_asked_once():
    assert {*once().values()} == {*managers()}
