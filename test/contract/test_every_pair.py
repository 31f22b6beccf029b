"""One app is switched through every server under every process manager, under continuous load, and loses no request.

A switch depends on how nginx speaks to the two servers, of which there are few kinds: on the tour, each kind follows
each other kind.
"""

import collections
import itertools
import json
import time
from dataclasses import dataclass, field

import pytest
from fleet import ROWS, chosen, honoured, pairs, pillar_of, row


@dataclass
class Change:
    """A switch, and the requests lost from its beginning to that of the next."""

    before: tuple  # server, process manager
    after: tuple
    began: float
    ended: float = 0.0
    error: str = ""
    lost: list = field(default_factory=list)

    def __str__(self):
        lost = [f"{lost['time'] - self.began:+.2f} s: {lost['mode']}: {lost['reason']}" for lost in self.lost]
        shown = "\n".join([self.error, f"lost: {len(lost)}", *lost[:20]]).strip()
        return f"{'/'.join(self.before)} -> {'/'.join(self.after)} in {self.ended - self.began:.1f} s: {shown}"

    @property
    def sound(self):
        return not self.lost and not self.error


def kind(pair):
    """Return how nginx speaks to a server: protocol, a socket per worker or not, kept connections or not."""
    known = row(pair[0])
    return known["protocol"], known.get("spawned", False), "wsgi" in known.get("keepalive", ())


def tour(nodes):
    """Return a path through all pairs and back to the first, on which each kind follows each other kind."""
    path, left = nodes[:1], nodes[1:]
    met = {(kind(node), kind(node)) for node in nodes}
    while left:
        here = path[-1]
        common = collections.Counter(map(kind, left))
        after = min(left, key=lambda there: ((kind(here), kind(there)) in met, -common[kind(there)]))
        met.add((kind(here), kind(after)))
        left.remove(after)
        path.append(after)
    return [*path, path[0]]


PAIRS = [pair for pair in pairs() if pair[0] in ROWS and "wsgi" in row(pair[0])["interfaces"]]
TOUR = tour(PAIRS)
CHANGES = list(zip(TOUR, TOUR[1:]))


def change_to(machine, server, manager):
    settings = honoured(server, workers=2, graceful_timeout=10)
    app = {**pillar_of(server, manager, **settings), "domains": ["app.example.com"]}
    machine.pillar({"apps": {"app": app}})
    run = machine.apply(ok=False)
    return "" if run.ok else str(run)


def route(request):
    """Return the pairs for the selected tests: TOUR, or a part of it."""
    asked = chosen(request)
    changes = {(each["before"], each["after"]) for each in asked if "before" in each}
    about = {(each["server"], each["manager"]) for each in asked if "server" in each}
    path = []
    for change in CHANGES:
        if change in changes or about & set(change):
            path += change if path[-1:] != [change[0]] else change[1:]
    return path


@pytest.fixture(scope="module")
def changes(machine, request):
    """The switches of the tour under load: (before, after) -> Change."""
    path = route(request)
    error = change_to(machine, *path[0])
    assert not error, error
    made = []
    # The pause leaves processor time to the changes.
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
    return {(change.before, change.after): change for change in made}


def test_tour_switches_from_each_kind_of_server_to_each_other_kind():
    every = set(itertools.permutations({kind(pair) for pair in PAIRS}, 2))
    assert {(kind(before), kind(after)) for before, after in CHANGES} >= every
    assert {before for before, _ in CHANGES} == {after for _, after in CHANGES} == set(PAIRS)


@pytest.mark.parametrize(("before", "after"), CHANGES, ids="/".join)
def test_switching_under_load_loses_no_request(changes, before, after):
    change = changes[before, after]
    assert change.sound, str(change)


@pytest.mark.column("switch")
@pytest.mark.parametrize(("server", "manager"), PAIRS)
def test_switching_to_and_from_a_server_loses_no_request(changes, server, manager):
    about_it = [change for change in changes.values() if (server, manager) in (change.before, change.after)]
    assert len(about_it) == 2
    assert [str(change) for change in about_it if not change.sound] == []
