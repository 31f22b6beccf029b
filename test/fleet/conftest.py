"""The master with two minions that all tests of this folder share; test/conftest.py gives them to one pytest worker."""

import pytest
from master import Master


@pytest.fixture(scope="session")
def booted_master(request, session_label):
    if request.config.getoption("hosts"):
        pytest.skip("needs machines of its own; --hosts gives kitchen's")
    master = Master.boot(platform=request.config.getoption("platform"), labels=[session_label])
    yield master
    if not request.config.getoption("keep"):
        master.destroy()


@pytest.fixture(scope="module")
def master(booted_master):
    """The master after a reset: it serves this checkout, pillar is empty, and the minions have no app."""
    booted_master.reset()
    return booted_master
