"""A pytest plugin that writes the table of results in docs/platforms.md.

    test/run test/matrix --matrix --write-results      writes the rows of the tested platforms

The rows of other platforms stay as they are.
"""

import datetime
import re

import harness
from container import ROOT
from contract.results import fill, tells

PAGE = ROOT / "docs/platforms.md"
BEGIN, END = "<!-- platforms: begin -->", "<!-- platforms: end -->"
SERVERS = tuple(harness.suites()["servers"]["apps"])
VERSIONS = ("Salt", "Python", "systemd", "cgroups", "nginx", "supervisor", "uWSGI", "Passenger")
# The name of each column, by the mark of its tests, and its meaning.
COLUMNS = {
    "idle run": "a second run changes nothing",
    "switch": "switching the server and the process manager and back under load loses no request",
    "failed change": "the old generation keeps serving, and no request is lost",
    "functions": "`wsgi.validate`, `wsgi.deploy`, `wsgi.rollback`, `wsgi.history`",
    "edge": "TLS, two apps on one domain, static files",
    "reboot": "every server serves again",
    "clean": "`state.apply wsgi.clean` leaves nothing of the formula",
}
WORST_LAST = ("–", "✓", "✗")


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # the process that all reports come to
        config.pluginmanager.register(Results(config))


class Results:
    """The results: platform -> column -> the worst result, and the versions there."""

    def __init__(self, config):
        self.config = config
        self.cells = {}

    def pytest_runtest_logreport(self, report):
        properties = dict(report.user_properties)
        if "platform" in properties and tells(report):
            platform, column, passed, versions = properties["platform"]
            row = self.cells.setdefault(platform, {})
            row.update(versions)
            fill(row, column, passed, report, WORST_LAST)

    def pytest_sessionfinish(self):
        if self.cells and self.config.getoption("write_results"):
            before = PAGE.read_text()
            PAGE.write_text(with_table(before, self.cells, datetime.date.today().isoformat()))


def with_table(page, cells, date):
    """Return a page with the rows of the tested platforms replaced in its table."""
    head, _, rest = page.partition(f"{BEGIN}\n")
    table, _, tail = rest.partition(END)
    rows = {row[0]: row for row in (re.split(r" *\| *", line)[1:-1] for line in table.splitlines()) if row}
    names = ["platform", *VERSIONS, *SERVERS, *COLUMNS, "date"]
    old = rows.get("platform", [])
    lines = [names, ["---"] * len(names)]
    for platform in harness.platforms():
        seen = {**cells[platform], "date": date} if platform in cells else dict(zip(old, rows.get(platform, ())))
        lines.append([platform, *(seen.get(name, "") for name in names[1:-1]), seen.get("date", "not run")])
    made = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"{head}{BEGIN}\n{made}{END}{tail}"
