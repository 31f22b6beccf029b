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
    "serves": "the app answers through nginx, and its environment variables reach it",
    "streams": "the client gets each part of a response before the app makes the next one",
    "bodies": "10 MiB in both directions, with a length or chunked",
    "environ": "scheme, host, query and path arrive as they were sent: percent-encoded, UTF-8 or neither",
    "REMOTE_ADDR": "the address of the client",
    "headers": "two of one name are joined in the request (bjoern puts nothing between; nginx before 1.23 gives uWSGI only "
    "the last) and stay apart in the response",
    "HEAD, 304": "the response has no body, and the connection stays usable",
    "100-continue": "a client may wait for it before it sends the body",
    "smuggling": "a request that is hidden in another reaches the app only if nginx has seen it as a request",
    "wsgiref.validate": "reports no error",
    "exception": "the status is 500, the traceback is logged, and no process ends",
    "logs": "stdout, stderr, `logging` and `wsgi.errors` are in `wsgi.logs`, and rotation loses no line",
    "workers": "as many requests run at once as there are workers",
    "threads": "the same for the threads of each worker",
    "killed": "a killed worker and a killed master are restarted, without orphans",
    "reboot": "the app serves again",
    "graceful stop": "a slow request is finished during a change",
    "request_timeout": "a request that sleeps or spins is ended, and its worker replaced",
    "memory_limit": "a worker that leaks memory is replaced, and no request is lost",
    "max_requests": "workers are replaced under load, and no request is lost",
    "mount": "the app finds its mount in SCRIPT_NAME and the rest of the path in PATH_INFO",
    "switch": "switches from it and to it, each with another server at the other end, lose no request under load",
    "ZeroMQ": "an app that must cross neither a fork nor a thread answers 400 questions of 8 clients with 4 workers",
    "ASGI": "an ASGI app: scope, lifespan, bodies, streaming, exceptions, logs, a change under load",
    "WebSockets": "messages pass in both directions",
}
# Columns that depend on the process manager; the others are tested once per server.
OF_PAIRS = {"serves", "exception", "logs", "workers", "killed", "reboot", "graceful stop"}
# Columns that not every row has: not every server supports these, and the tour has each server once.
OPTIONAL = {"ASGI", "WebSockets", "switch"}
WORST_LAST = ("✓", "refused", "✗")


def pytest_addoption(parser):
    parser.addoption("--write-results", action="store_true", help="write the contract suite's table into docs/")


def pytest_configure(config):
    config.addinivalue_line("markers", "column(name): the column of the table of results that a test fills")
    config.addinivalue_line("markers", "setting(name): run only for servers that support this setting")
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
        self.errors = []

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
            self.errors.append(
                f"The table in {PAGE.relative_to(ROOT)} differs from the results; --write-results writes it."
            )
            session.exitstatus = session.exitstatus or 1

    def pytest_terminal_summary(self, terminalreporter):
        for line in self.errors:
            terminalreporter.write_line(line, red=True)

    def whole(self):
        """Return whether every pair in servers.yaml was tested completely."""
        from contract.fleet import pairs

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
        legend = "".join(f"- *{column}*: {meaning}\n" for column, meaning in COLUMNS.items())
        refused = "*refused*: `wsgi.validate` refuses the setting"
        untested = "–: not tested, or tested once per server since it does not depend on the process manager"
        return f"{table}\nTested on {PLATFORM}. {refused}; {untested}.\n\n{legend}"


def asked(pair):
    """Return the columns that every table has for a server and a process manager."""
    from contract.fleet import once

    return set(COLUMNS) - OPTIONAL if pair in once().items() else OF_PAIRS


def read(table):
    """Return the cells of a table as `Results.table` writes it."""
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return {(server, manager): dict(zip(rows[0][2:], results)) for server, manager, *results in rows[2:]}


def merged(old, new):
    """Return old cells with those of the new ones that there are."""
    return {pair: {**old.get(pair, {}), **new.get(pair, {})} for pair in {**old, **new}}
