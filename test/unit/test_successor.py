"""Replacement of workers under gunicorn and uWSGI: the successor starts first."""

import os
import signal
import types
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "wsgi/common/wsgi_successor.py"


@pytest.fixture
def successor(load_program):
    """A fresh module of the successor; its `killed` records what it would kill."""
    return load_program("wsgi_successor")


class Master:
    """The part of gunicorn's arbiter that the hooks use."""

    def __init__(self, module, workers):
        self.module = module
        self.cfg = types.SimpleNamespace(workers=workers)
        self.WORKERS = {}
        self.age = 0
        self.num_workers = workers
        self.manage()

    @property
    def num_workers(self):
        return self._num_workers

    @num_workers.setter
    def num_workers(self, number):
        self._num_workers = number
        self.module.nworkers_changed(self, number, None)

    def manage(self):
        assert len(self.WORKERS) <= self.num_workers  # it would end the oldest
        while len(self.WORKERS) < self.num_workers:
            self.age += 1
            worker = types.SimpleNamespace(age=self.age, pid=1000 + self.age, ppid=4711, booted=False)
            self.module.pre_fork(self, worker)
            worker.guard = self.module.of_this_process()
            self.WORKERS[worker.pid] = worker

    def ttin(self):
        self.num_workers += 1
        self.manage()

    def ended(self, age):
        self.module.child_exit(self, self.WORKERS.pop(1000 + age))
        self.manage()

    def loaded(self, age):
        self.module.post_worker_init(self.WORKERS[1000 + age])

    @property
    def ages(self):
        return [worker.age for worker in self.WORKERS.values()]

    def worn(self, age):
        self.WORKERS[1000 + age].guard.ask()

    def relieved(self, age):
        return self.WORKERS[1000 + age].guard.relieved()


def test_worker_at_max_requests_ends_after_its_successor_has_loaded_the_app(successor):
    master = Master(successor, 1)
    master.worn(1)
    master.worn(1)  # as it does every second
    assert successor.killed == [(4711, signal.SIGTTIN)]
    master.ttin()
    assert (master.ages, master.relieved(1)) == ([1, 2], False)
    master.loaded(2)
    assert master.relieved(1)
    master.ended(1)
    assert (master.ages, master.num_workers) == ([2], 1)


def test_simultaneous_replacements_get_a_successor_each(successor):
    """A process gets only one of equal signals that arrive at once."""
    master = Master(successor, 3)
    master.worn(1)
    master.worn(3)
    master.ttin()
    assert master.ages == [1, 2, 3, 4, 5]
    master.loaded(5)
    assert [master.relieved(age) for age in (1, 2, 3)] == [False, False, True]
    master.ended(3)
    master.loaded(4)
    master.ended(1)
    assert (master.ages, master.num_workers) == ([2, 4, 5], 3)


def test_failed_successor_does_not_end_the_master_and_is_retried(successor):
    master = Master(successor, 1)
    assert not master.WORKERS[1001].booted  # where nobody serves, the process manager is to hear of it
    master.worn(1)
    master.ttin()
    assert master.WORKERS[1002].booted
    master.ended(2)
    assert (master.ages, master.num_workers, master.relieved(1)) == ([1], 1, False)
    master.worn(1)
    master.ttin()
    master.loaded(3)
    assert master.relieved(1)


@pytest.mark.parametrize("moment", ["before it was heard", "while its successor loads"])
def test_worker_that_dies_before_its_replacement_leaves_the_right_number(successor, moment):
    master = Master(successor, 2)
    master.worn(1)
    if moment == "before it was heard":
        master.ended(1)
        master.ttin()
    else:
        master.ttin()
        master.ended(1)
    master.loaded(3)
    assert (master.ages, master.num_workers) == ([2, 3], 2)


class Place(dict):
    """A worker as in uwsgi.workers()."""

    def __init__(self, pid, status="idle", apps=1):
        super().__init__(pid=pid, status=status, apps=[{}] * apps)


@pytest.fixture
def uwsgi(successor, tmp_path, monkeypatch):
    """uWSGI's module in one of two workers with a spare slot; `heard` returns what its master got."""
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(successor.time, "monotonic", lambda: clock.now)
    os.mkfifo(tmp_path / "fifo")
    module = types.SimpleNamespace(
        opt={"master-fifo": str(tmp_path / "fifo").encode(), "cheaper": b"2"},
        places=[Place(os.getpid()), Place(os.getpid()), Place(0, "cheap")],
        workers=lambda: module.places,
        clock=clock,
    )
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    module.heard = lambda: os.read(reader, 100)
    yield module
    os.close(reader)


def test_uwsgi_starts_a_successor_in_its_spare_slot(successor, uwsgi):
    worker = successor.Uwsgi(uwsgi)
    worker.ask()
    assert uwsgi.heard() == b"+"
    uwsgi.places[2] = Place(os.getpid(), apps=0)  # it loads
    worker.ask()
    assert not worker.relieved()
    uwsgi.places[2] = Place(os.getpid())
    worker.ask()
    uwsgi.clock.now += 2
    assert worker.relieved()
    worker.leave()
    worker.leave()
    assert successor.killed == [(os.getpid(), signal.SIGHUP)]


def test_dead_worker_that_uwsgi_has_not_noticed_is_not_a_successor(successor, uwsgi):
    uwsgi.places[2] = Place(2**22 + 1)  # no process has that number
    worker = successor.Uwsgi(uwsgi)
    worker.ask()
    uwsgi.clock.now += 2
    worker.ask()
    assert (uwsgi.heard(), worker.relieved()) == (b"++", False)


def test_uwsgi_without_a_spare_slot_starts_the_successor_later(successor, uwsgi):
    del uwsgi.opt["master-fifo"]
    successor.Uwsgi(uwsgi).ask()
    assert successor.killed == [(os.getpid(), signal.SIGHUP)]
