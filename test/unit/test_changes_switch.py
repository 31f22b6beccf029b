"""
The switch without programs: each step that fails leaves the old generation live, and a run that is killed at any
operation on a file leaves records that are true. Nothing runs here; test/integration/test_records.py kills real runs.
"""

import os
import pwd
import re
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from unit.conftest import host_of
from wsgi_formula import files, lock
from wsgi_formula.app import history, override, release
from wsgi_formula.app.desired import desired_app, desired_settings
from wsgi_formula.app.override import active_override, deploy_override
from wsgi_formula.app.release import Release
from wsgi_formula.changes import recovery, retirement, switch
from wsgi_formula.changes.switch import Switch, finish
from wsgi_formula.edge import maintenance, static
from wsgi_formula.edge.nginx import Nginx
from wsgi_formula.errors import WsgiError
from wsgi_formula.run import generation, record
from wsgi_formula.run.generation import Generation, generation_ids, live_generation

ROOT = Path(__file__).resolve().parents[2]
SHOP = {"source": "/srv/shop", "application": "shop:app", "env": {"PASSWORD": "hunter2"}}
OPERATIONS = ("rename", "symlink", "unlink", "mkdir", "rmdir", "fsync")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with its files below tmp_path, on which no program runs."""
    places = {name: str(tmp_path / name) for name in ("ETC", "LIB", "LOG", "RUN", "SRV", "TMPFILES")}
    for path in places.values():
        os.mkdir(path)
    for module in (
        files,
        generation,
        record,
        history,
        override,
        maintenance,
        lock,
        release,
        recovery,
        retirement,
        switch,
    ):
        for name, path in places.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, path)
    monkeypatch.setattr(history, "HISTORY", f"{places['LIB']}/history")
    monkeypatch.setattr(maintenance, "FOLDER", f"{places['LIB']}/maintenance")
    monkeypatch.setattr(maintenance, "FAST_PATHS", f"{places['LIB']}/shortcuts")
    monkeypatch.setattr(pwd, "getpwnam", lambda name: SimpleNamespace(pw_uid=os.getuid(), pw_gid=os.getgid()))
    for name in ("chown", "fchown"):
        monkeypatch.setattr(os, name, lambda *_, **__: None)
    for module, names in {
        Nginx: ["check"],
        switch: ["check_schedule", "wait_until_healthy", "drain"],
        retirement: ["drain"],
        Generation: ["start", "wait_for_processes", "stop"],
        static: ["check", "build", "publish", "prune"],
    }.items():
        for name in names:
            monkeypatch.setattr(module, name, lambda *_, **__: None)
    monkeypatch.setattr(retirement, "program_folders", lambda host: {})
    monkeypatch.setattr(Generation, "take_over_schedule", lambda new, _: (tmp_path / "schedule").write_text(new.id))
    monkeypatch.setattr(switch, "prepare_generation", prepare)

    def hooks(generation, app, moment, outcome):
        assert app.name == "shop"
        with open(tmp_path / moment, "a") as file:
            file.write(f"{generation.id}\n")
        if (moment, generation.id) == ("after_live", "bad"):
            raise WsgiError("after_live failed")

    for module in (retirement, switch):
        monkeypatch.setattr(module, "run_generation_hooks", hooks)
    first = host_of({"apps": {"shop": SHOP}})
    known = {name: getattr(first, name) for name in ("settings", "servers", "family")}

    def host():
        made = host_of({})
        vars(made).update(known)
        return made

    return SimpleNamespace(path=tmp_path, host=host)


def prepare(host, name, app, release, id):
    record = {
        **{key: app[key] for key in ("server", "process_manager", "user")},
        "protocol": "http",
        "release": release.id,
        "environment": "e",
        "files": {},
        "env": {},
        "settings": {"graceful_timeout": 1},
        "pending_hooks": ["after_live"],
    }
    new = Generation(host, name, id, record)
    os.makedirs(new.config_dir)
    os.makedirs(new.runtime_dir)
    new.write_record()
    return new


def deploy_on(machine, id):
    """Make a change with an override, as `wsgi.deploy` does."""
    host = machine.host()
    recovery.recover(host, "shop")
    app = desired_app(host, "shop").replace(rollback_on_failure=True)
    release = SimpleNamespace(id=f"release-of-{id}", record={})
    os.makedirs(Release("shop", release.id).path, exist_ok=True)
    said = deploy_override(host, "shop", f"/srv/{id}", None)
    return Switch(host, "shop", app, release, id, override=lambda _: said).run()


def killed(machine, id, number):
    """Kill a deploy at its operation of this number; return whether it got that far."""
    pid = os.fork()
    if pid == 0:
        done = 0

        def counted(real):
            def operation(*arguments, **named):
                nonlocal done
                done += 1
                if done == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **named)

            return operation

        try:
            for name in OPERATIONS:
                setattr(os, name, counted(getattr(os, name)))
            deploy_on(machine, id)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def next_run(machine):
    """Do what the state wsgi.generation_live does; return the live and the desired generation before it."""
    host = machine.host()
    said = active_override(host, "shop").get("source"), [each["generation"] for each in went(machine)]
    current = recovery.recover(host, "shop")
    current.record.pop("pending_hooks", None)  # these commands are not what is tested
    assert finish(host, "shop", desired_settings(host, "shop"), current).failures == []
    return said


def went(machine):
    return [entry for entry in history.entries("shop") if entry["event"] != "failed"]


def lines(machine, name):
    path = machine.path / name
    return path.read_text().split() if path.exists() else []


def staged(machine):
    return [name for _, folders, files in os.walk(machine.path) for name in folders + files if "staged" in name]


@pytest.mark.parametrize("id", ["good", "bad"])
def test_records_are_true_when_a_switch_is_killed_at_any_file_operation(machine, monkeypatch, id):
    """The bad generation is live for a moment, until rollback_on_failure undoes it."""
    monkeypatch.setattr(history, "_without_repeated_failure", lambda found: found)
    deploy_on(machine, "old")
    seen, number = set(), 0
    while True:
        number += 1
        before = len(went(machine)), len(lines(machine, "before_retire"))
        stopped = killed(machine, id, number)
        live = history.live_id("shop")
        said = next_run(machine)
        entries = [each["generation"] for each in went(machine)][before[0] :]
        retired = {*lines(machine, "before_retire")[before[1] :]}
        assert said == (f"/srv/{live}", [each["generation"] for each in went(machine)])
        assert history.live_id("shop") == live
        assert active_override(machine.host(), "shop")["source"] == f"/srv/{live}"
        assert entries in ([["good"]] if live == "good" else [["bad"]] if live == "bad" else [[], ["bad", "old"]])
        # The hook runs again if it was killed, and never for a generation without traffic.
        assert retired == ({"old"} if live != "old" else {"bad"} if entries else set())
        assert lines(machine, "schedule") == [live]
        assert generation_ids("shop") == [live]
        assert staged(machine) == []
        assert "going_live" not in live_generation(machine.host(), "shop").record
        seen.add((live, bool(entries)))
        if not stopped:
            break
        if live != "old":
            deploy_on(machine, "old")
    assert seen == (
        {("old", False), ("good", True)} if id == "good" else {("old", False), ("bad", True), ("old", True)}
    )
    assert number > 20


def test_record_that_cannot_be_written_does_not_fail_the_live_generation(machine, monkeypatch):
    deploy_on(machine, "old")
    real, full = history.settle, OSError(28, "No space left on device")

    def fails(name):
        raise full

    monkeypatch.setattr(history, "settle", fails)
    outcome = deploy_on(machine, "good")
    assert (outcome.generation.id, history.live_id("shop")) == ("good", "good")
    assert outcome.failures == [str(full)]
    monkeypatch.setattr(history, "settle", real)
    next_run(machine)
    assert [each["generation"] for each in went(machine)] == ["old", "good"]


def test_link_of_a_killed_older_formula_is_removed(machine):
    deploy_on(machine, "old")
    stale = f"{recovery.LIB}/live/shop.new"
    os.symlink("/run/wsgi/shop/gone", stale)
    shortcut = maintenance.fast_paths("shop.new")["http"]
    os.makedirs(os.path.dirname(shortcut), exist_ok=True)
    with open(shortcut, "w"):
        next_run(machine)
    assert not os.path.lexists(stale)
    assert not os.path.exists(shortcut)


def test_log_that_a_killed_run_was_writing_is_removed(machine):
    deploy_on(machine, "old")
    folder = machine.path / "LOG/shop"
    folder.mkdir(exist_ok=True)
    (folder / f"{files.STAGED}4194305-1-0a").touch()  # no process has such a PID
    next_run(machine)
    assert staged(machine) == []


def test_dry_run_settles_nothing_but_reports_the_settled_state(machine, monkeypatch):
    deploy_on(machine, "old")
    number = 1
    while killed(machine, "good", number) and history.live_id("shop") == "old":
        next_run(machine)
        number += 1
    record = f"{generation.ETC}/shop/good/generation.json"
    before = os.stat(record).st_mtime_ns, time.time()
    host = machine.host()
    host.opts = {"test": True}
    assert recovery.recover(host, "shop").id == "good"
    assert active_override(host, "shop")["source"] == "/srv/good"
    assert [each["generation"] for each in went(machine)] == ["old", "good"]
    assert os.stat(record).st_mtime_ns == before[0]


STEPS = {
    "validate": (Nginx, "check"),
    "build": (switch, "prepare_generation"),
    "start": (Generation, "start"),
    "ready": (switch, "wait_until_healthy"),
    "live": (files, "replace_symlink"),
}


@pytest.mark.parametrize("step", STEPS)
def test_step_that_fails_before_the_traffic_moves_leaves_the_old_generation_live(machine, monkeypatch, step):
    deploy_on(machine, "old")

    def fails(*_, **__):
        raise WsgiError(f"{step} failed")

    monkeypatch.setattr(*STEPS[step], fails)
    with pytest.raises(WsgiError, match=f"{step} failed"):
        deploy_on(machine, "good")
    assert history.live_id("shop") == "old"
    assert generation_ids("shop") == ["old"]
    assert [entry["event"] for entry in history.entries("shop")] == ["live", "failed"]
    assert active_override(machine.host(), "shop")["source"] == "/srv/old"
    assert lines(machine, "before_retire") == []


@pytest.mark.parametrize("step", ["settle", "drain", "retire"])
def test_step_that_fails_after_the_traffic_has_moved_is_reported_and_finished_by_the_next_run(
    machine, monkeypatch, step
):
    deploy_on(machine, "old")
    module, name = {
        "settle": (Generation, "take_over_schedule"),
        "drain": (retirement, "drain"),
        "retire": (retirement, "retire_generation"),
    }[step]
    with monkeypatch.context() as failing:

        def fails(*_, **__):
            raise WsgiError(f"{step} failed")

        failing.setattr(module, name, fails)
        outcome = deploy_on(machine, "good")
    assert outcome.failures == [f"{step} failed"]
    assert (outcome.generation.id, history.live_id("shop")) == ("good", "good")
    assert history.entries("shop")[-1]["error"] == f"{step} failed"
    next_run(machine)
    assert generation_ids("shop") == ["good"]
    assert lines(machine, "schedule") == ["good"]


def test_steps_of_a_switch_come_in_the_order_of_the_readme(machine, monkeypatch):
    steps = ["validate", "build", "start", "ready", "live", "drain", "retire"]
    done = []
    for step in steps:
        real = getattr(Switch, step)
        monkeypatch.setattr(Switch, step, lambda self, real=real, step=step: (done.append(step), real(self)))
    deploy_on(machine, "good")
    assert done == steps
    readme = (ROOT / "README.md").read_text()
    assert re.findall(r"^\d\. \*(\w+)\*", readme, re.MULTILINE) == steps
