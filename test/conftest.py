"""Fixtures: machines, and the converged machine of each suite in kitchen.yml.

pytest test                                            boots what the tests need
pytest test --keep                                     leaves the machines for a look, and says their names
pytest test --platform debian-13                       on another platform
pytest test --hosts=docker://root@ID                   in kitchen's verifier: only the tests of that
                                                       suite, on the machine that kitchen converged
"""

import os
import uuid

import harness
import pytest
from container import docker

pytest_plugins = ["contract.results", "matrix.results"]
SESSION = f"wsgi-formula.session={uuid.uuid4().hex}"


def pytest_addoption(parser):
    parser.addoption("--keep", action="store_true", help="leave the containers when the tests are done")
    parser.addoption("--platform", default="debian-12", help="a platform of kitchen.yml (default: %(default)s)")
    parser.addoption("--matrix", action="store_true", help="test/matrix: all platforms of kitchen.yml, not only some")


def pytest_unconfigure(config):
    """Also after Ctrl-C, and for a machine whose boot was interrupted."""
    machines = docker("ps", "--all", "--quiet", f"--filter=label={SESSION}", check=False).stdout.split()
    if machines and config.getoption("keep"):
        print("Left running:", *machines)
    elif machines:
        docker("rm", "--force", "--volumes", *machines)


@pytest.fixture(scope="session")
def machine_factory(request):
    """machine_factory(provisioned=True, platform=None) boots a Machine, which lives until the session's end.

    provisioned=False starts from a system without the formula's packages: for tests of the first run."""
    if request.config.getoption("hosts"):
        pytest.skip("needs a machine of its own; --hosts gives kitchen's")

    def boot(provisioned=True, platform=None):
        return harness.Machine.boot(platform or request.config.getoption("platform"), provisioned, [SESSION])

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
    """A machine for one test: packages installed, pillar empty, no app."""
    machine = machine_factory()
    yield machine
    if not request.config.getoption("keep"):
        machine.destroy()


@pytest.fixture(scope="session")
def suite_machine(request):
    """suite_machine("uwsgi") is the machine of that suite, converged once a session. Leave it as it was."""
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
