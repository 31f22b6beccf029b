"""Minions of a master are served as a machine of its own is."""

import pytest
from integration.pillars import app


@pytest.fixture(scope="module")
def served(master):
    """The master, with one app on both minions."""
    master.pillar({"apps": {"hello": app("uwsgi")}})
    master.salt("*", "state.highstate")
    return master


def test_the_first_highstate_serves_an_app_on_fresh_minions(served):
    for minion in served.minions.values():
        assert minion.get("/").status == 200


def test_a_run_with_nothing_to_do_changes_nothing(served):
    runs = served.salt("*", "state.apply", "wsgi")
    assert {id: run.changed for id, run in runs.items()} == {"web1": set(), "web2": set()}
