"""A pytest plugin that writes the table of results in docs/servers.md, and checks that it is true.

    test/run test/contract --write-results                  writes the table of this run's results
    test/run test/contract -k granian --write-results       writes the cells that this run tested, and keeps the others

Without the option, a whole run fails when the table differs from its results.
"""

import re

from container import ROOT

PAGE = ROOT / "docs/servers.md"
BEGIN, END = "<!-- contract suite: begin -->", "<!-- contract suite: end -->"
PLATFORM = "debian-12"
# The name of each column, by the mark of its tests, and its explanation below the table.
COLUMNS = {
    "serves": "answers over nginx, and its environment reaches it",
    "streams": "a part of an answer is with the client before the next is made",
    "bodies": "10 MiB up and down, with a length or chunked",
    "environ": "scheme, host, query and path as they were sent: percent-encoded, UTF-8, neither",
    "REMOTE_ADDR": "the client's address",
    "headers": "two of one name, joined in the request (bjoern puts nothing between; nginx before 1.23 tells uWSGI the "
    "last alone) and apart in the answer",
    "HEAD, 304": "no body, and the connection serves on",
    "100-continue": "a client that waits for it before its body",
    "smuggling": "of a request with another one hidden in it, it gets what nginx has seen",
    "wsgiref.validate": "finds nothing",
    "exception": "500, a traceback in the log, no process dies",
    "logs": "stdout, stderr, `logging` and `wsgi.errors` are in `wsgi.logs`; rotated with no line lost",
    "workers": "as many requests at once as asked",
    "threads": "of each worker, the same",
    "killed": "a killed worker and a killed master come back, with no orphans",
    "reboot": "serves again",
    "graceful stop": "a change lets a slow request finish",
    "request_timeout": "a request that sleeps or spins is ended, and its worker replaced",
    "memory_limit": "a worker that leaks is replaced with nothing lost",
    "max_requests": "workers are replaced under load with nothing lost",
    "mount": "the app finds the path that it is under in SCRIPT_NAME, and the rest in PATH_INFO",
    "switch": "changes from it and to it, each with another server at the other end, with nothing lost under load",
    "ZeroMQ": "an app that no fork and no thread may touch, 400 questions of 8 clients to 4 workers",
    "ASGI": "an ASGI app: scope, lifespan, bodies, streaming, exceptions, logs, a change under load",
    "WebSockets": "pass both ways",
}
# Columns that depend on the process manager; the others are tested once per server.
OF_PAIRS = {"serves", "exception", "logs", "workers", "killed", "reboot", "graceful stop"}
# Columns that not every row has: not every server supports these, and the tour has each server once.
OPTIONAL = {"ASGI", "WebSockets", "switch"}
WORST_LAST = ("✓", "refused", "✗")


def pytest_addoption(parser):
    parser.addoption("--write-results", action="store_true", help="write the contract suite's table into docs/")


def pytest_configure(config):
    config.addinivalue_line("markers", "column(name): the column of the table of results that a test speaks for")
    config.addinivalue_line("markers", "setting(name): asked only of servers that honour this setting")
    if not hasattr(config, "workerinput"):  # the process that all reports come to
        config.pluginmanager.register(Results(config))


def tells(report):
    """Return whether a report is that of the test itself, or of a failed fixture."""
    return report.when == "call" or report.failed


def fill(row, column, passed, report, worst_last):
    """Put a test's result into a cell of a row, unless a worse one is there; `passed` is what success is shown as."""
    row[column] = max(row.get(column, worst_last[0]), "✗" if report.failed else passed, key=worst_last.index)


class Results:
    """The tested cells: (server, process manager) -> column -> the worst result."""

    def __init__(self, config):
        self.config = config
        self.cells = {}
        self.said = []

    def pytest_runtest_logreport(self, report):
        cell = dict(report.user_properties).get("cell")
        if cell and tells(report):
            server, manager, column, passed = cell
            fill(self.cells.setdefault((server, manager), {}), column, passed, report, WORST_LAST)

    def pytest_sessionfinish(self, session):
        if not self.cells or self.config.getoption("platform") != PLATFORM:
            return
        before = PAGE.read_text()
        start, old, end = re.fullmatch(f"(?s)(.*{BEGIN}\n)(.*)({END}.*)", before).groups()
        after = start + self.table(self.cells if self.whole() else merged(read(old), self.cells)) + end
        if self.config.getoption("write_results"):
            PAGE.write_text(after)
        elif self.whole() and before != after:
            self.said.append(f"The table in {PAGE.relative_to(ROOT)} is not what was seen; --write-results writes it.")
            session.exitstatus = session.exitstatus or 1

    def pytest_terminal_summary(self, terminalreporter):
        for line in self.said:
            terminalreporter.write_line(line, red=True)

    def whole(self):
        """Return whether every pair in servers.yaml was tested completely."""
        from contract.fleet import once, pairs

        def asked(pair):
            return set(COLUMNS) - OPTIONAL if pair in once().items() else OF_PAIRS

        seen = set().union(*self.cells.values())
        return seen >= {"ASGI", "switch"} and all(asked(pair) <= set(self.cells.get(pair, ())) for pair in pairs())

    @staticmethod
    def table(cells):
        from contract.fleet import pairs

        rows = [["server", "process manager", *COLUMNS]]
        rows.append(["---"] * len(rows[0]))
        for pair in filter(cells.__contains__, dict.fromkeys([*pairs(), *cells])):
            rows.append([*pair, *(cells[pair].get(column, "–") for column in COLUMNS)])
        table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
        words = "".join(f"- *{column}*: {meaning}\n" for column, meaning in COLUMNS.items())
        refused = "*refused*: `wsgi.validate` says so"
        once = "–: not asked of it, as what the process manager has no part in, which each server is asked once"
        return f"{table}\nSeen on {PLATFORM}. {refused}; {once}.\n\n{words}"


def read(table):
    """Return the cells of a table as `Results.table` writes it."""
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return {(server, manager): dict(zip(rows[0][2:], results)) for server, manager, *results in rows[2:]}


def merged(old, new):
    """Return old cells with those of the new ones that there are."""
    return {pair: {**old.get(pair, {}), **new.get(pair, {})} for pair in {**old, **new}}
