"""docs/servers.md tells of every server, and what each makes of the neutral settings.

Run as a program, it writes that table anew: python test/unit/test_servers_doc.py
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
    """What a setting becomes, in a cell: the same for both interfaces, or told of each that can have it."""
    if isinstance(honoured, str):
        return honoured
    return ", ".join(f"{become} ({interface})" for interface, become in honoured.items())


def table():
    """The table of the servers' rows: what each setting becomes, or that it is refused."""
    settings = PORTABLE_SETTINGS
    rows = [["server", *settings], ["---"] * (1 + len(settings))]
    rows += [[name, *(words(row["honours"].get(key, "refused")) for key in settings)] for name, row in SERVERS.items()]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def parts():
    """The text before the table, the table, and the text after it."""
    before, _, rest = DOC.read_text().partition(BEGIN)
    found, _, after = rest.partition(END)
    return before, found, after


def test_the_table_of_settings_is_what_the_servers_rows_say():
    assert parts()[1] == table(), "to mend it: python test/unit/test_servers_doc.py"


@pytest.mark.parametrize("name", [*SERVERS, *sorted(PROCESS_MANAGERS)])
def test_it_tells_of_each_in_five_lines(name):
    section = re.search(rf"^### {name}\n(.*?)(?=^##|\Z)", DOC.read_text(), re.MULTILINE | re.DOTALL)
    assert section, f"docs/servers.md has no section '### {name}'"
    assert len(re.findall("^- ", section[1], re.MULTILINE)) == 5


if __name__ == "__main__":
    before, _, after = parts()
    DOC.write_text(before + BEGIN + table() + END + after)
