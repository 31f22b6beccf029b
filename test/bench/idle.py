"""Measure a run that has nothing to do: `salt-call state.apply wsgi` for 1, 10 and 100 apps, as a ratio to a run of
one state, test.nop, with the same pillar. Prints a table in Markdown.

~/.cache/wsgi-formula/venv/bin/python test/bench/idle.py [--apps 1 10 100] [--runs 15] [--keep]

(The virtual environment is test/run's.) The two kinds of run take turns on one machine. Exits with 1 when a goal is
missed: a ratio of 1.2 for 1 app and of 1.5 for 100. The first run with 100 apps builds as many environments, which
takes some minutes.
"""

import json
import statistics
import sys

from machine import arguments, booted, where

GOALS = {1: 1.2, 100: 1.5}
HEAD = "| apps | test.nop | wsgi | ratio | goal | |\n| --- | --- | --- | --- | --- | --- |"

# This runs in the machine, so that Docker's own time is not measured.
TAKE_TURNS = """
import json, subprocess, sys, time
seconds = {"wsgi": [], "nothing": []}
for run in range(int(sys.argv[1]) + 1):
    for sls, taken in seconds.items():
        begun = time.monotonic()
        out = subprocess.check_output(["salt-call", "--out=json", "state.apply", sls])
        taken.append(time.monotonic() - begun)
        states = json.loads(out)["local"].values()
        assert all(state["result"] and not state["changes"] for state in states), out.decode()
print(json.dumps({sls: taken[1:] for sls, taken in seconds.items()}))  # the first warms up
"""


def pillar(count):
    """Return a pillar with minimal apps: no requirement, one worker, half of them under each process manager."""
    app = {"source": "salt://wsgi/examples/hello", "application": "hello:application", "workers": 1}
    return {
        "defaults": app,
        "apps": {
            f"app-{number}": {
                "domains": [f"app-{number}.example.com"],
                "server": "uwsgi",
                "process_manager": "supervisor" if number % 2 else "emperor",
            }
            for number in range(count)
        },
    }


def measure(machine, count, runs):
    """Return the seconds of each run with this number of apps, and of each run of test.nop."""
    machine.pillar(pillar(count))
    machine.apply()
    report = machine.exec(["python3", "-c", TAKE_TURNS, runs])
    return json.loads(report.stdout)


def row(count, seconds):
    """Return a line of the table, and whether the goal is met."""
    wsgi, nothing = (statistics.median(seconds[sls]) for sls in ("wsgi", "nothing"))
    ratio = wsgi / nothing
    goal = GOALS.get(count)
    met = goal is None or ratio <= goal
    cells = (count, f"{nothing:.2f} s", f"{wsgi:.2f} s", f"{ratio:.2f}", goal or "", "" if met else "missed")
    return f"| {' | '.join(map(str, cells))} |", met


def main():
    parser = arguments(__doc__, runs=15)
    parser.add_argument("--apps", type=int, nargs="+", default=[1, 10, 100])
    options = parser.parse_args()
    with booted(options) as machine:
        machine.put("/srv/salt-top/nothing.sls", "nothing:\n  test.nop\n")
        print(where(machine), "", HEAD, sep="\n")
        missed = False
        for count in options.apps:
            line, met = row(count, measure(machine, count, options.runs))
            print(line, flush=True)
            missed = missed or not met
        return missed


if __name__ == "__main__":
    sys.exit(main())
