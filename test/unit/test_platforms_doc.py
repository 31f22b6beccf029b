"""docs/platforms.md, the table of which the matrix tests write."""

import harness
from matrix import results

PAGE = f"Before.\n{results.BEGIN}\n{results.END}\nAfter.\n"


def rows(page):
    lines = (line for line in page.splitlines() if line.startswith("| "))
    return {line.split(" | ")[0][2:]: line for line in lines}


def test_table_has_a_row_for_each_platform_and_a_column_for_each_server(pytestconfig):
    page = results.PAGE.read_text()
    updated = results.with_table(page, {}, "2026-01-01")
    if pytestconfig.getoption("write_results"):
        results.PAGE.write_text(updated)
    else:
        assert list(rows(page)) == ["platform", "---", *harness.platforms()]
        # What was not run stays empty; `test/run test/matrix --write-results` runs and fills it.
        assert updated == page, "write it with: test/run unit -n 0 -k platforms_doc --write-results"


def test_page_explains_each_column():
    page = results.PAGE.read_text()
    assert [column for column, meaning in results.COLUMNS.items() if f"- *{column}*: {meaning}\n" not in page] == []


def test_run_replaces_the_rows_of_its_platforms_and_keeps_the_others():
    first = results.with_table(PAGE, {"debian-13": {"nginx": "1.26.3", "uwsgi": "✓"}}, "2026-01-01")
    assert all(line.endswith(" | not run |") for name, line in rows(first).items() if name.startswith("debian-12"))
    second = results.with_table(first, {"debian-11": {"nginx": "1.18.0", "uwsgi": "✗"}}, "2026-01-02")
    changed = {name for name, line in rows(second).items() if line != rows(first)[name]}
    assert changed == {"debian-11"}
    assert "1.18.0" in rows(second)["debian-11"]
    assert rows(second)["debian-11"].endswith(" | 2026-01-02 |")
    assert "1.26.3" in rows(second)["debian-13"]
    assert second.startswith("Before.\n")
    assert second.endswith("\nAfter.\n")
