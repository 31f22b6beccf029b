"""Tiers of tests, and the fixtures of machines and of the converged suites of kitchen.yml.

pytest                                          the files and tests that pytest.ini names as `quick`
pytest --all, pytest --matrix                   all tests; --matrix on every platform with every Salt
pytest test/unit/test_x.py, pytest -k word      a selection from all tests
pytest --keep                                   keeps the machines for inspection, and prints their names
pytest --platform debian-13                     on another platform
pytest --hosts=docker://root@ID                 in kitchen's verifier: only the tests of that suite, on the
                                                machine that kitchen converged
"""

import collections
import os
import shutil
import tempfile
import time
import uuid
from pathlib import Path

import harness
import pytest
from container import ROOT
from daemon import client
from docker.errors import DockerException

pytest_plugins = ["contract.results", "matrix.results"]
SESSION = f"wsgi-formula.session={uuid.uuid4().hex}"


def pytest_addoption(parser):
    parser.addoption("--keep", action="store_true", help="leave the containers when the tests are done")
    parser.addoption("--platform", default="debian-12", help="a platform of kitchen.yml (default: %(default)s)")
    parser.addoption("--all", action="store_true", help="all tests, with some of the platforms' and Salts' matrix")
    parser.addoption("--matrix", action="store_true", help="all tests, with all of the platforms' and Salts' matrix")
    parser.addini("quick", "the tests that run where nothing chooses others", type="linelist", default=[])
    parser.addini("longest", "the files that take longest, which begin first", type="linelist", default=[])


def chosen(config):
    """Return the paths of the tests to run: those that are named, or all where an option chooses, or the quick ones."""
    option = config.option
    by_option = option.all or option.matrix or option.hosts or option.keyword or option.markexpr or option.lf
    if by_option or config.args_source is not config.ArgsSource.TESTPATHS:
        return config.args
    return config.getini("quick")


def pytest_configure(config):
    config.args = chosen(config)
    if hasattr(config, "workerinput"):
        harness.Machine.checkout = Path(config.workerinput["checkout"])
    else:
        folder = tempfile.mkdtemp(prefix="wsgi-formula-")
        if not config.option.keep:
            config.add_cleanup(lambda: shutil.rmtree(folder))  # after pytest_unconfigure
        harness.Machine.checkout = copy_of_the_checkout(folder)


def copy_of_the_checkout(folder):
    """Return a copy of the checkout for all machines of this run, which edits do not change."""
    copy = Path(folder) / "checkout"
    ignored = (ROOT / ".gitignore").read_text().replace("/", "").split()
    shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(".git", *ignored))
    return copy


@pytest.hookimpl(optionalhook=True)  # of xdist
def pytest_configure_node(node):
    node.workerinput["checkout"] = str(harness.Machine.checkout)


def pytest_collection_modifyitems(config, items):
    longest = config.getini("longest")
    items.sort(key=lambda item: [item.nodeid.startswith(each) for each in longest], reverse=True)


SECONDS = collections.Counter()


def pytest_runtest_logreport(report):
    SECONDS[report.nodeid.partition("::")[0]] += report.duration


def pytest_sessionfinish(session):
    """Fail kitchen's verifier for a suite that has no test, where every test is skipped."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.config.option.hosts and not {"passed", "failed", "error"} & {*reporter.stats}:
        reporter.write_line(f"\nNo test uses the machine of the suite {os.environ.get('KITCHEN_SUITE')}.", red=True)
        session.exitstatus = session.exitstatus or pytest.ExitCode.NO_TESTS_COLLECTED


def pytest_terminal_summary(terminalreporter):
    if SECONDS:
        terminalreporter.section("slowest files")
    for file, seconds in SECONDS.most_common(10):
        terminalreporter.write_line(f"{seconds:7.1f} s  {file}")


BEGAN = pytest.StashKey[float]()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    item.stash[BEGAN] = time.time()
    harness.Machine.used.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Add to a failed test's report the logs of the machines that it used or got from a fixture."""
    report = yield
    if report.failed:
        fixtures = {value for value in item.funcargs.values() if isinstance(value, harness.Machine)}
        for machine in harness.Machine.used | fixtures:
            if logs := machine.logs_since(item.stash[BEGAN]):
                report.sections.append((f"Logs on {machine.name}", logs))
    return report


def pytest_unconfigure(config):
    """Remove all machines of the session, also after Ctrl-C or an interrupted boot."""
    try:
        machines = client().containers.list(all=True, filters={"label": SESSION})
    except DockerException:  # Docker does not answer, so no test has had a machine
        return
    if machines and config.getoption("keep"):
        print("Left running:", *(machine.short_id for machine in machines))
    else:
        for machine in machines:
            machine.remove(force=True, v=True)
        client().networks.prune(filters={"label": SESSION})


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give the tests of a file to one worker, and all of test/fleet to the same, so that its master boots once."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduler(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return "test/fleet" if file.startswith("test/fleet/") else file

    return Scheduler(config, log)


@pytest.fixture(scope="session")
def session_label():
    """The label of all containers and networks of this session, by which its end removes them."""
    return SESSION


@pytest.fixture(scope="session")
def machine_factory(request, session_label):
    """machine_factory(provisioned=True, platform=None) boots a Machine, which lives until the session ends.

    provisioned=False boots a system without the formula's packages, for tests of the first run."""
    if request.config.getoption("hosts"):
        pytest.skip("needs a machine of its own; --hosts gives kitchen's")

    def boot(provisioned=True, platform=None):
        platform = platform or request.config.getoption("platform")
        return harness.Machine.boot(platform, provisioned, [session_label])

    return boot


@pytest.fixture(scope="module")
def machine(machine_factory, request):
    """A machine for all tests of one file, which run in their order."""
    machine = machine_factory()
    yield machine
    if not request.config.getoption("keep"):
        machine.destroy()


@pytest.fixture
def fresh_machine(machine_factory, request):
    """A machine for one test, with the packages installed, an empty pillar and no app."""
    machine = machine_factory()
    yield machine
    if not request.config.getoption("keep"):
        machine.destroy()


@pytest.fixture(scope="session")
def suite_machine(request):
    """suite_machine("uwsgi") returns the machine of that suite, converged once a session. Tests must leave it as it was."""
    hosts = request.config.getoption("hosts")
    machines = {}

    def of_kitchen(name):
        if name != os.environ.get("KITCHEN_SUITE"):
            pytest.skip(f"kitchen converged another suite than {name}")
        return harness.Machine.of_kitchen(hosts)

    def converged(name):
        if name not in machines:
            machine = request.getfixturevalue("machine_factory")()
            machine.pillar(harness.suites(request.config.getoption("platform"))[name])
            machine.apply()
            machines[name] = machine
        return machines[name]

    return of_kitchen if hosts else converged
