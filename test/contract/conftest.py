"""Fixtures of the contract's tests. A file that imports checks sets MANAGERS: the servers that they run for, each with its
process manager. results.py makes the table of the results."""

import fleet as fleets
import pytest

pytest.register_assert_rewrite("request_checks", "process_checks", "limit_checks")


def pytest_generate_tests(metafunc):
    names = getattr(metafunc.module, "MANAGERS", None)
    if names is None:
        return
    setting = metafunc.definition.get_closest_marker("setting")
    if "refused" in metafunc.fixturenames:
        metafunc.parametrize("server, refused", [(name, setting) for name in names for setting in fleets.refused(name)])
    elif "server" in metafunc.fixturenames:
        if setting:
            names = [name for name in names if fleets.honoured(name, **{setting.args[0]: None})]
        metafunc.parametrize("server", list(names))


@pytest.fixture(scope="module")
def machine(machine, request):
    """The file's machine, with uv, which is much faster than pip, unless the file sets INSTALLER."""
    if getattr(request.module, "INSTALLER", "uv") == "uv":
        machine.call("saltutil.sync_all")
        machine.apply(sls="wsgi.uv")
    return machine


@pytest.fixture(scope="module")
def fleet(machine, request):
    """The apps of the file's servers that tests are selected for: two processes of one thread, no limits."""
    fleet = fleets.Fleet(machine, fleets.chosen_servers(request, request.module.MANAGERS))
    fleet.apply(workers=2, threads=1, request_timeout=30, graceful_timeout=20, max_requests=0)
    yield fleet
    fleet.agent.close()


@pytest.fixture
def site(fleet, server):
    try:
        return fleet.site(server)
    except AssertionError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(autouse=True)
def cell(request, record_property):
    """Record the cell of the table that a test fills."""
    asked = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    column = request.node.get_closest_marker("column")
    if "server" in asked:
        manager = asked.get("manager") or request.module.MANAGERS[asked["server"]]
        about = asked.get("refused") or column.args[0]
        record_property("cell", [asked["server"], manager, about, "refused" if "refused" in asked else "✓"])
