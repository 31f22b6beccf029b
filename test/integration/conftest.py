"""What the integration tests share: one machine per file."""

import pytest


@pytest.fixture(scope="module")
def machine(machine_factory, request):
    """A machine for all tests of one file, which run in their order."""
    machine = machine_factory()
    yield machine
    if not request.config.getoption("keep"):
        machine.destroy()
