"""The table of the contract's results: what a run writes, and what it keeps."""

from types import SimpleNamespace

import pytest
from contract import results


def report(server, manager, column, passed=True):
    cell = [server, manager, column, "✓"]
    return SimpleNamespace(user_properties=[("cell", cell)], when="call", failed=not passed)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """run(*reports, write=True) simulates a run of tests and returns pytest's exit status; run.page is the page."""
    page = tmp_path / "servers.md"
    page.write_text(f"# Servers\n{results.BEGIN}\n{results.END}\nAfter it.\n")
    monkeypatch.setattr(results, "PAGE", page)
    monkeypatch.setattr(results, "ROOT", tmp_path)

    def run(*reports, write=True, platform=results.PLATFORM):
        options = {"write_results": write, "platform": platform}
        seen = results.Results(SimpleNamespace(getoption=options.get))
        for each in reports:
            seen.pytest_runtest_logreport(each)
        session = SimpleNamespace(exitstatus=0)
        seen.pytest_sessionfinish(session)
        return session.exitstatus

    run.page = page
    run.cells = lambda: results.read(page.read_text())
    return run


def everything():
    from contract.fleet import once, pairs

    for pair in pairs():
        for column in set(results.COLUMNS) if pair in once().items() else results.OF_PAIRS:
            yield report(*pair, column)


def test_run_of_one_server_replaces_its_cells_and_keeps_all_others(run):
    run(
        report("granian", "systemd", "serves"), report("granian", "systemd", "logs"), report("uwsgi", "emperor", "logs")
    )
    run(report("granian", "systemd", "logs", passed=False))
    assert run.cells()["granian", "systemd"]["serves"] == "✓"
    assert run.cells()["granian", "systemd"]["logs"] == "✗"
    assert run.cells()["granian", "systemd"]["reboot"] == "–"
    assert run.cells()["uwsgi", "emperor"]["logs"] == "✓"
    assert run.page.read_text().startswith("# Servers\n") and run.page.read_text().endswith("\nAfter it.\n")


def test_new_server_gets_its_row_in_the_order_of_servers_yaml(run):
    run(report("uwsgi", "emperor", "serves"), report("command", "circus", "serves"))
    run(report("granian", "systemd", "serves"))
    assert list(run.cells()) == [("uwsgi", "emperor"), ("granian", "systemd"), ("command", "circus")]


def test_whole_run_removes_rows_that_servers_yaml_no_longer_has(run):
    run(report("unicorn", "systemd", "serves"))
    run(report("granian", "systemd", "serves"))
    assert ("unicorn", "systemd") in run.cells()
    run(*everything())
    assert ("unicorn", "systemd") not in run.cells()


def test_whole_run_fails_when_the_table_differs_from_its_results(run):
    assert run(*everything(), write=False) == 1
    run(*everything())
    assert run(*everything(), write=False) == 0
    assert run(*everything(), report("granian", "systemd", "logs", passed=False), write=False) == 1


def test_partial_run_does_not_fail_for_the_rest_of_the_table(run):
    run(*everything())
    assert run(report("granian", "systemd", "serves"), write=False) == 0


def test_run_on_another_platform_writes_nothing(run):
    before = run.page.read_text()
    run(report("granian", "systemd", "serves"), platform="debian-13")
    assert run.page.read_text() == before


def written():
    """Return the table of the page."""
    page = results.PAGE.read_text()
    return page[page.index(results.BEGIN) + len(results.BEGIN) + 1 : page.index(results.END)]


def test_written_table_is_read_back_unchanged():
    assert results.Results.table(results.read(written())) == written()


def test_table_has_the_whole_contract_of_every_server():
    """A row between others would change the process manager under which those after it get the whole contract."""
    from contract.fleet import pairs

    cells = results.read(written())
    untested = {
        pair[0]
        for pair in pairs()
        if any(cells.get(pair, {}).get(column, "–") == "–" for column in results.asked(pair))
    }
    assert sorted(untested) == [], "write each with: test/run test/contract -k NAME --write-results"
