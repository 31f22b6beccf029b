"""Generations: what runs for them, and how it is started, judged and stopped."""

import threading
from pathlib import Path

import pytest
from pillars import BESIDE
from wsgi_formula.run import generation
from wsgi_formula.run.generation import Generation
from wsgi_formula.run.jobs import Job
from wsgi_formula.run.managers.base import Program
from wsgi_formula.run.managers.circus import Circus
from wsgi_formula.run.managers.emperor import Emperor
from wsgi_formula.run.managers.supervisor import Supervisor
from wsgi_formula.run.managers.systemd import Systemd
from wsgi_formula.run.programs import ProgramFailed, check_running


class Manager:
    """A process manager in which nothing runs; ``failing`` is the unit that fails."""

    def __init__(self, failing=None, down=()):
        self.failing = failing
        self.down = down

    def failure_reason(self, unit):
        return "it ended" if unit == self.failing else None

    def pid(self, unit):
        return None if unit in self.down else 1


@pytest.fixture
def logged(make_generation, monkeypatch, tmp_path):
    """logged(bytes, …) returns a generation whose log has these parts, and had the first part when it started."""
    monkeypatch.setattr(generation, "LOG", str(tmp_path))
    monkeypatch.setattr(generation, "_values", lambda text: ["hunter2"])
    (tmp_path / "shop").mkdir()

    def generation_of(before, *since):
        generation = make_generation({})
        Path(generation.log).write_bytes(b"".join([before, *since]))
        generation.log_offsets[generation.log] = len(before)
        return generation

    return generation_of


def test_failure_shows_the_log_of_its_own_generation_without_secrets(logged):
    generation = logged("an equal one, of yesterday, ends in dépit\n".encode(), b"ImportError: hunter2\n")
    assert generation.failure(generation.log) == "  ImportError: ***"
    assert generation.log_tail() == "  an equal one, of yesterday, ends in dépit\n  ImportError: ***"


def test_log_may_be_undecodable(logged):
    assert logged(b"caf\xe9").log_tail() == "  caf\ufffd"


def test_server_comes_first_and_then_each_process_count_times(make_generation):
    programs = make_generation(BESIDE).programs
    assert [program.unit for program in programs] == [
        "shop.0123456789",
        "shop.0123456789.worker.1",
        "shop.0123456789.worker.2",
    ]
    assert [program.log.rpartition("/")[2] for program in programs] == [
        "0123456789.log",
        "0123456789.worker.log",
        "0123456789.worker.log",
    ]
    assert programs[1].command == ["celery", "worker", "--name", '100% "it"']


def test_process_has_its_own_graceful_timeout_or_that_of_its_app(make_generation):
    own = {"processes": {"one": {**BESIDE["processes"]["worker"], "count": 1}, "two": {"command": "two"}}}
    server, one, two = make_generation(own).programs
    assert (one.stop_timeout, two.stop_timeout) == (7, 20)
    # The server keeps graceful_timeout itself.
    assert server.stop_timeout > 20


def test_generation_of_an_older_formula_has_only_its_server(make_generation):
    generation = make_generation(BESIDE, "processes", "schedule")
    assert [part.unit for part in generation.parts] == ["shop.0123456789"]
    assert generation.program_status() == {}


def test_hooks_of_a_record_of_before_version_1_0_are_pending(make_generation):
    shop = make_generation({})
    record = Generation(shop.host, shop.name, shop.id, {**shop.record, "owed": ["after_live"]}).record
    assert record["pending_hooks"] == ["after_live"]
    assert "owed" not in record


@pytest.mark.parametrize(
    ("own", "manager", "others"),
    [
        ({"server": "uwsgi"}, Emperor, Systemd),
        ({"process_manager": "supervisor"}, Supervisor, Supervisor),
        ({"process_manager": "circus"}, Circus, Circus),
    ],
)
def test_processes_run_under_the_manager_of_the_app_or_systemd_for_the_emperor(make_generation, own, manager, others):
    server, *workers = make_generation({**BESIDE, **own}).programs
    assert type(server.manager) is manager
    assert {type(worker.manager) for worker in workers} == {others}


def test_failed_process_is_reported_with_its_own_log(make_generation):
    generation = make_generation(BESIDE)
    for program in generation.programs:
        program.manager = Manager(failing="shop.0123456789.worker.2")
    with pytest.raises(ProgramFailed, match="wsgi:apps:shop:processes:worker: number 2 ") as failed:
        check_running(generation.programs)
    assert failed.value.log == "/var/log/wsgi/shop/0123456789.worker.log"


def test_process_without_a_pid_is_not_up(make_generation, monkeypatch):
    monkeypatch.setattr(generation, "MIN_UPTIME", 0.01)
    monkeypatch.setattr(generation, "BOOT_TIME", 0)
    shop = make_generation(BESIDE)
    for program in shop.programs:
        program.manager = Manager(down=["shop.0123456789.worker.1"])
    with pytest.raises(ProgramFailed, match="number 1 .* does not keep running"):
        shop.wait_for_processes()
    shop.programs[1].manager.down = shop.programs[2].manager.down = ()
    shop.wait_for_processes()


def test_programs_of_a_generation_are_stopped_in_parallel(make_generation, monkeypatch):
    generation = make_generation(BESIDE)
    # It breaks if one program waits for another to end.
    together = threading.Barrier(len(generation.parts), timeout=20)
    for kind in (Program, Job):
        monkeypatch.setattr(kind, "stop", lambda part: together.wait())
    generation.stop()


def test_old_schedule_stops_before_the_new_one_starts(make_generation, monkeypatch):
    seen = []
    monkeypatch.setattr(Job, "pause", lambda job: seen.append(("pauses", job.generation.id)))
    monkeypatch.setattr(Job, "start", lambda job: seen.append(("starts", job.generation.id)))
    old, new = make_generation(BESIDE), make_generation(BESIDE)
    old.id = "9876543210"
    new.take_over_schedule([])
    new.take_over_schedule([old])
    assert seen == [("starts", new.id), ("pauses", old.id), ("starts", new.id)]
