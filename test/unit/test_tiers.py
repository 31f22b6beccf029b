"""The selection of tests: the quick ones, unless a path or an option selects others."""

from types import SimpleNamespace

import pytest
from container import ROOT
from pytest import Config

CHOICES = {"all": False, "matrix": False, "hosts": None, "keyword": "", "markexpr": "", "lf": False}


@pytest.fixture
def chosen(pytestconfig):
    """chosen(source, **options) returns the arguments that pytest continues with."""
    (conftest,) = [each for each in pytestconfig.pluginmanager.get_plugins() if hasattr(each, "suite_machine")]

    def chosen(source=Config.ArgsSource.TESTPATHS, **options):
        config = SimpleNamespace(args=["test"], args_source=source, ArgsSource=Config.ArgsSource)
        config.option = SimpleNamespace(**{**CHOICES, **options})
        config.getini = pytestconfig.getini
        return conftest.chosen(config)

    return chosen


@pytest.mark.parametrize("name", ["quick", "longest"])
def test_every_file_in_pytest_ini_exists(pytestconfig, name):
    named = [each.partition("::")[0] for each in pytestconfig.getini(name)]
    assert named
    assert [each for each in named if not (ROOT / each).exists()] == []


def test_quick_tests_run_without_a_selection(chosen, pytestconfig):
    assert chosen() == pytestconfig.getini("quick") != ["test"]


@pytest.mark.parametrize(
    "option", [{"all": True}, {"matrix": True}, {"hosts": "docker://x"}, {"keyword": "granian"}, {"lf": True}], ids=str
)
def test_option_selects_from_all_tests(chosen, option):
    assert chosen(**option) == ["test"]


def test_path_selects_its_own_tests(chosen):
    assert chosen(Config.ArgsSource.ARGS) == ["test"]
