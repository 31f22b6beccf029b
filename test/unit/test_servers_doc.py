"""docs/servers.md, which describes every server and has the table of portable settings.

Run as a program, it rewrites that table: python test/unit/test_servers_doc.py
"""

import re
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "_utils"))

from wsgi_formula.pillar.servers import PORTABLE_SETTINGS

DOC = ROOT / "docs/servers.md"
SERVERS = yaml.safe_load((ROOT / "wsgi/servers.yaml").read_text())
PROCESS_MANAGERS = {name for row in SERVERS.values() for name in row["process_managers"]}
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


def test_table_of_settings_matches_servers_yaml():
    assert parts()[1] == table(), "to mend it: python test/unit/test_servers_doc.py"


@pytest.mark.parametrize("name", [*SERVERS, *sorted(PROCESS_MANAGERS)])
def test_each_server_has_five_lines(name):
    section = re.search(rf"^### {name}\n(.*?)(?=^##|\Z)", DOC.read_text(), re.MULTILINE | re.DOTALL)
    assert section, f"docs/servers.md has no section '### {name}'"
    assert len(re.findall("^- ", section[1], re.MULTILINE)) == 5


if __name__ == "__main__":
    before, _, after = parts()
    DOC.write_text(before + BEGIN + table() + END + after)
