"""The master with two minions that all tests here share, which `test/conftest.py` gives to one worker of pytest."""

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
    """The master, clean: it serves this checkout, pillar is empty, and there is no app on the minions."""
    booted_master.reset()
    return booted_master
