"""
The order in which a change is written down: killed at any operation on a file, what is said is true, and the next run
settles the rest. Nothing runs here; test/integration/test_records.py kills real ones.
"""

import os
import signal
import time
from types import SimpleNamespace

import pytest
from unit.conftest import host_of
from wsgi_formula import files, lock
from wsgi_formula.app import history, override, release
from wsgi_formula.app.desired import desired_app, desired_settings
from wsgi_formula.app.override import active_override, deploy_override
from wsgi_formula.app.release import Release
from wsgi_formula.changes import switch
from wsgi_formula.changes.switch import Change
from wsgi_formula.edge import maintenance, nginx, static
from wsgi_formula.errors import Problem
from wsgi_formula.run import generation
from wsgi_formula.run.generation import Generation, generation_ids, live_generation, write_record

SHOP = {"source": "/srv/shop", "application": "shop:app", "env": {"PASSWORD": "hunter2"}}
OPERATIONS = ("rename", "symlink", "unlink", "mkdir", "rmdir", "fsync")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine whose files lie below tmp_path, and on which no program runs."""
    places = {name: str(tmp_path / name) for name in ("ETC", "LIB", "LOG", "RUN", "SRV", "TMPFILES")}
    for path in places.values():
        os.mkdir(path)
    for module in (files, generation, history, override, maintenance, lock, release, switch):
        for name, path in places.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, path)
    monkeypatch.setattr(maintenance, "FOLDER", f"{places['LIB']}/maintenance")
    for module in (history, switch):
        monkeypatch.setattr(module, "HISTORY", f"{places['LIB']}/history")
    for module in (maintenance, switch):
        monkeypatch.setattr(module, "FAST_PATHS", f"{places['LIB']}/shortcuts")
    for name in ("chown", "fchown"):
        monkeypatch.setattr(os, name, lambda *_, **__: None)
    for module, names in {
        nginx: ["check"],
        switch: ["check_programs", "start_programs", "_before_live", "_ready", "_drain"],
        generation: ["stop_programs"],
        static: ["check", "build", "publish", "prune"],
    }.items():
        for name in names:
            monkeypatch.setattr(module, name, lambda *_, **__: None)
    monkeypatch.setattr(switch, "program_folders", lambda host: {})
    monkeypatch.setattr(switch, "hand_over_schedule", lambda old, new: (tmp_path / "schedule").write_text(new.id))
    monkeypatch.setattr(switch, "prepare_generation", prepare)

    def hooks(generation, app, moment, release, done):
        with open(tmp_path / moment, "a") as file:
            file.write(f"{generation.id}\n")
        if (moment, generation.id) == ("after_live", "bad"):
            raise Problem("after_live failed")

    monkeypatch.setattr(switch, "_run_hooks", hooks)
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
    write_record(new)
    return new


def deploy_on(machine, id):
    """As deploy does: a change that brings an override of its own."""
    host = machine.host()
    switch.recover(host, "shop")
    app = {**desired_app(host, "shop"), "rollback_on_failure": True}
    release = SimpleNamespace(id=f"release-of-{id}", record={})
    os.makedirs(Release("shop", release.id).path, exist_ok=True)
    said = deploy_override(host, "shop", f"/srv/{id}", None)
    return switch.change(host, "shop", app, release, id, override=lambda _: said)


def killed(machine, id, number):
    """Whether a deploy came so far as to be killed at its operation of this number."""
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
    """As the state wsgi.generation_live does where what is wanted is live; returns what was live and wanted before it."""
    host = machine.host()
    said = active_override(host, "shop").get("source"), [each["generation"] for each in went(machine)]
    current = switch.recover(host, "shop")
    done = Change(current)
    switch.finish_retiring(host, "shop", desired_settings(host, "shop"), done)
    assert done.failures == []
    return said


def went(machine):
    return [entry for entry in history.entries("shop") if entry["event"] != "failed"]


def lines(machine, name):
    path = machine.path / name
    return path.read_text().split() if path.exists() else []


def staged(machine):
    return [name for _, folders, files in os.walk(machine.path) for name in folders + files if "staged" in name]


@pytest.mark.parametrize("id", ["good", "bad"])
def test_killed_at_any_operation_what_is_written_down_is_true(machine, monkeypatch, id):
    """The bad one is live for a moment, and then rollback_on_failure takes it back."""
    monkeypatch.setattr(history, "_counted", lambda found: found)
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
        # It runs again where it was killed in it, and never for what had no traffic.
        assert retired == ({"old"} if live != "old" else {"bad"} if entries else set())
        assert lines(machine, "schedule") == [live]
        assert generation_ids(None, "shop") == [live]
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


def test_a_record_that_cant_be_written_does_not_fail_what_is_live(machine, monkeypatch):
    deploy_on(machine, "old")
    real, full = history.settle, OSError(28, "No space left on device")

    def fails(name):
        raise full

    monkeypatch.setattr(history, "settle", fails)
    done = deploy_on(machine, "good")
    assert (done.generation.id, history.live_id("shop")) == ("good", "good")
    assert done.failures == [str(full)]
    monkeypatch.setattr(history, "settle", real)
    next_run(machine)
    assert [each["generation"] for each in went(machine)] == ["old", "good"]


def test_what_an_older_formula_was_linking_is_taken_away(machine):
    deploy_on(machine, "old")
    stale = machine.path / "LIB/live/shop.new"
    os.symlink("/run/wsgi/shop/gone", stale)
    shortcut = maintenance.fast_paths("shop.new")["http"]
    os.makedirs(os.path.dirname(shortcut), exist_ok=True)
    with open(shortcut, "w"):
        next_run(machine)
    assert not os.path.lexists(stale)
    assert not os.path.exists(shortcut)


def test_a_dry_run_settles_nothing_and_tells_as_if_it_were_settled(machine, monkeypatch):
    deploy_on(machine, "old")
    number = 1
    while killed(machine, "good", number) and history.live_id("shop") == "old":
        next_run(machine)
        number += 1
    record = machine.path / "ETC/shop/good/generation.json"
    before = os.stat(record).st_mtime_ns, time.time()
    host = machine.host()
    host.opts = {"test": True}
    assert switch.recover(host, "shop").id == "good"
    assert active_override(host, "shop")["source"] == "/srv/good"
    assert [each["generation"] for each in went(machine)] == ["old", "good"]
    assert os.stat(record).st_mtime_ns == before[0]
