"""One app goes from every server to every other one, under load without a break, and loses nothing.

The tour makes each change of server once, and takes each server's process managers in turn.
"""

import itertools
import json
import time
from dataclasses import dataclass, field

import pytest
from fleet import ROWS, holders, honoured, pairs, pillar_of, row

SERVERS = [name for name in ROWS if "wsgi" in row(name)["interfaces"]]


@dataclass
class Change:
    """One change, and what was lost from its beginning to that of the next."""

    before: tuple  # server, process manager
    after: tuple
    began: float
    ended: float = 0.0
    error: str = ""
    lost: list = field(default_factory=list)

    def __str__(self):
        lost = [f"{lost['time'] - self.began:+.2f} s: {lost['mode']}: {lost['reason']}" for lost in self.lost]
        told = "\n".join([self.error, f"lost: {len(lost)}", *lost[:20]]).strip()
        return f"{'/'.join(self.before)} -> {'/'.join(self.after)} in {self.ended - self.began:.1f} s: {told}"

    @property
    def sound(self):
        return not self.lost and not self.error


def tour(nodes):
    """Each ordered pair of nodes once, one beginning where the other ended (Hierholzer's algorithm)."""
    left = {node: [other for other in nodes if other != node] for node in nodes}
    path, found = [nodes[0]], []
    while path:
        if left[path[-1]]:
            path.append(left[path[-1]].pop())
        else:
            found.append(path.pop())
    return found[::-1]


def change_to(machine, server, manager):
    settings = honoured(server, workers=2, graceful_timeout=10)
    app = {**pillar_of(server, manager, **settings), "domains": ["app.example.com"]}
    machine.pillar({"apps": {"app": app}})
    run = machine.apply(ok=False)
    return "" if run.ok else str(run)


@pytest.fixture(scope="module")
def changes(machine):
    """The tour, made under load: (server, server) -> Change."""
    managers = {name: itertools.cycle(holders(name)) for name in SERVERS}
    path = [(name, next(managers[name])) for name in tour(SERVERS)]
    error = change_to(machine, *path[0])
    assert not error, error
    made = []
    # The pause leaves some of the processors to the changes.
    with machine.load(clients=8, host="app.example.com", path="/?do=echo", pause=0.04, seconds=3600) as load:
        for before, after in zip(path, path[1:]):
            made.append(Change(before, after, time.time()))
            made[-1].error = change_to(machine, *after)
            made[-1].ended = time.time()
        time.sleep(1)
    for lost in load.report["failures"]:
        change = max((change for change in made if change.began <= lost["time"]), key=lambda change: change.began)
        change.lost.append(lost)
    print(json.dumps({**load.report, "failures": len(load.report["failures"])}))
    return {(change.before[0], change.after[0]): change for change in made}


@pytest.mark.parametrize(("before", "after"), list(itertools.permutations(SERVERS, 2)))
def test_a_change_of_server_loses_nothing(changes, before, after):
    change = changes[before, after]
    assert change.sound, str(change)


@pytest.mark.column("switch")
@pytest.mark.parametrize(("server", "manager"), [pair for pair in pairs() if pair[0] in SERVERS])
def test_all_changes_from_and_to_it_lose_nothing(changes, server, manager):
    about_it = [change for change in changes.values() if (server, manager) in (change.before, change.after)]
    assert about_it
    assert [str(change) for change in about_it if not change.sound] == []
