"""An idle run, which has nothing to change, does next to nothing, and no more of it for more apps.

Times depend on the machine (test/bench/idle.py measures them), so these tests count.
"""

from collections import Counter

import pytest
from container import ROOT
from pillars import HELLO

FEW, MANY = 3, 6  # one app of each kind, and two
# Such a run loads about 20 of some 270. Whatever makes Salt look for a function that it
# doesn't know, such as `unless`, makes it load them all.
FEW_MODULES = 60
# States for packages, services and files, once per machine.
CONSTANT_STATES = 25
STATES_PER_APP = 3


def apps(count):
    """Return a pillar of so many apps, of each kind in turn."""
    kinds = (
        {"server": "uwsgi", "process_manager": "emperor"},
        {"server": "uwsgi", "process_manager": "supervisor"},
        {"server": "gunicorn", "tls": "self_signed"},
    )
    app = {**HELLO, "workers": 1}
    return {
        "apps": {
            f"app-{number}": {**app, **kinds[number % len(kinds)], "domains": [f"app-{number}.example.com"]}
            for number in range(count)
        }
    }


@pytest.fixture(scope="module")
def runs(machine):
    """Observations of an idle run with few apps and of one with many, by the number of apps."""
    found = {}
    for count in (FEW, MANY):
        machine.pillar(apps(count))
        machine.apply()
        machine.apply(sls="wsgi")  # Salt's first run after a change of pillar fills its caches.
        found[count] = machine.observe_idle_run()
        # Files that only a slow run reads again are not in both.
        read = Counter(found[count]["opened"]) & Counter(machine.observe_idle_run()["opened"])
        found[count]["opened"] = list(read.elements())
    return found


def test_more_apps_start_no_more_processes(runs):
    few, many = (Counter(runs[count]["started"]) for count in (FEW, MANY))
    assert many - few == Counter()


def test_more_apps_make_no_file_be_read_more_often(runs):
    """Handling one app reads no file of the others."""
    # Salt reads the metadata of packages again after half a second.
    few, many = (Counter(path for path in runs[count]["opened"] if ".dist-info" not in path) for count in (FEW, MANY))
    assert {path: many[path] - times for path, times in few.items() if many[path] > times} == {}


def test_each_app_adds_three_states_at_most(runs):
    few, many = (len(runs[count]["returned"]) for count in (FEW, MANY))
    assert many - few <= STATES_PER_APP * (MANY - FEW)
    assert few <= CONSTANT_STATES + STATES_PER_APP * FEW


def test_salt_loads_few_of_its_modules(runs):
    assert len(runs[MANY]["modules"]) <= FEW_MODULES, sorted(runs[MANY]["modules"])


def test_more_apps_load_no_more_modules(runs):
    assert sorted(runs[MANY]["modules"]) == sorted(runs[FEW]["modules"])


@pytest.mark.parametrize("count", [FEW, MANY])
def test_no_template_is_compiled_more_than_once(runs, count):
    own = {path.read_text() for path in (ROOT / "wsgi").rglob("*") if path.suffix in (".jinja", ".sls")}
    times = Counter(text for text in runs[count]["compiled"] if text in own)
    assert times
    assert {text.splitlines()[0]: number for text, number in times.items() if number > 1} == {}


# The observation sees what it is there for.


def test_observation_counts_a_process_per_state(machine):
    states = "".join(f"state-{number}:\n  cmd.run:\n    - name: 'true'\n    - onlyif: 'false'\n" for number in range(3))
    machine.put("/srv/salt-top/processes.sls", states)
    started = [command for command in machine.observe_idle_run("processes")["started"] if "false" in command]
    assert len(started) == 3


def test_observation_shows_that_unless_loads_all_modules(machine):
    machine.put("/srv/salt-top/unless.sls", "state:\n  test.nop:\n    - unless: 'false'\n")
    assert len(machine.observe_idle_run("unless")["modules"]) > 2 * FEW_MODULES


def test_observation_counts_each_compilation_of_a_template(machine):
    template = "{{ 'rendered' }}\n"
    machine.put("/srv/salt-top/rendered.jinja", template)
    states = "".join(
        f"/root/rendered-{number}:\n  file.managed:\n    - source: salt://rendered.jinja\n    - template: jinja\n"
        for number in range(3)
    )
    machine.put("/srv/salt-top/rendered.sls", states)
    machine.apply(sls="rendered")
    assert machine.observe_idle_run("rendered")["compiled"].count(template) == 3
