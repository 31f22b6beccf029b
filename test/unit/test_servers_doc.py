"""docs/servers.md, which describes every server and has the table of portable settings.

test/run unit -n 0 -k servers_doc --write-results writes that table.
"""

import re

import harness
import pytest
from container import ROOT
from wsgi_formula.pillar.app import PORTABLE_SETTINGS

DOC = ROOT / "docs/servers.md"
SERVERS = harness.servers()
PROCESS_MANAGERS = {name for row in SERVERS.values() for name in row["process_managers"]}
POINTS = ["Good at", "Can't", "Here", "In a change", "Maintained"]
BEGIN, END = "<!-- settings: begin -->\n", "<!-- settings: end -->\n"


def words(honoured):
    """Return what a setting becomes, as a cell: once for both interfaces, or for each that supports it."""
    if isinstance(honoured, str):
        return honoured
    return ", ".join(f"{become} ({interface})" for interface, become in honoured.items())


def table():
    """Return the table of the servers: what each setting becomes, or that it is refused."""
    settings = PORTABLE_SETTINGS
    rows = [["server", *settings], ["---"] * (1 + len(settings))]
    rows += [[name, *(words(row["honours"].get(key, "refused")) for key in settings)] for name, row in SERVERS.items()]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def parts():
    """Return the text before the table, the table, and the text after it."""
    before, _, rest = DOC.read_text().partition(BEGIN)
    found, _, after = rest.partition(END)
    return before, found, after


def test_table_of_settings_matches_servers_yaml(pytestconfig):
    before, found, after = parts()
    if pytestconfig.getoption("write_results"):
        DOC.write_text(before + BEGIN + table() + END + after)
    else:
        assert found == table(), "write it with: test/run unit -n 0 -k servers_doc --write-results"


@pytest.mark.parametrize("name", [*SERVERS, *sorted(PROCESS_MANAGERS)])
def test_each_server_has_the_same_five_points(name):
    section = re.search(rf"^### {name}\n(.*?)(?=^##|\Z)", DOC.read_text(), re.MULTILINE | re.DOTALL)
    assert section, f"docs/servers.md has no section '### {name}'"
    points = [line for line in section[1].splitlines() if line.startswith("- ")]
    assert [point.split("**")[1] for point in points] == POINTS


def test_contents_have_a_link_to_each_section():
    contents = re.search(r"^- \[Servers\].*\n- \[Process managers\].*", DOC.read_text(), re.MULTILINE)[0]
    assert [name for name in [*SERVERS, *sorted(PROCESS_MANAGERS)] if f"[{name}](#{name})" not in contents] == []
