"""The lock of an app: reentrant, named after its run, and taken over from a killed one."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
from wsgi_formula import lock, step
from wsgi_formula.errors import WsgiError
from wsgi_formula.lock import app_lock


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "RUN", str(tmp_path))
    return tmp_path


def holder(pipe):
    with app_lock("shop", "wsgi.deploy"):
        pipe.send("held")
        pipe.poll(30)


@pytest.fixture
def another(run):
    """Another run that holds the lock of the shop, and the pipe that ends it."""
    context = multiprocessing.get_context("fork")
    mine, its = context.Pipe()
    process = context.Process(target=holder, args=(its,))
    process.start()
    assert mine.poll(10)
    yield process, mine
    process.kill()
    process.join(10)


def test_lock_is_reentrant_within_a_run(run):
    with app_lock("shop", "a change"), app_lock("shop", "a build", patience=0):
        pass
    with app_lock("shop", "again", patience=0):
        pass


def test_second_run_is_refused_with_the_name_of_the_first(another):
    process, _ = another
    refused = rf"shop is being changed by wsgi.deploy \(PID {process.pid}, since [\d:]+\)"
    with pytest.raises(WsgiError, match=refused), app_lock("shop", "wsgi.rollback", patience=0):
        pass
    with app_lock("other", "wsgi.rollback", patience=0):
        pass


def test_second_run_waits_for_the_first(another):
    process, pipe = another
    pipe.send("enough")
    with app_lock("shop", "wsgi.rollback", patience=10):
        process.join(10)


def test_lock_of_a_killed_run_is_taken_over_and_its_processes_killed(another):
    process, _ = another
    left = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"],
        env={"WSGI_STEP": step.mark("shop")},
        start_new_session=True,
    )
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    with app_lock("shop", "wsgi.rollback", patience=5):
        assert left.wait(5) == -signal.SIGKILL


def test_finished_run_leaves_nothing_to_take_over(run, monkeypatch):
    with app_lock("shop", "a change"):
        pass
    monkeypatch.setattr(step, "kill_steps", lambda name: pytest.fail("nobody died"))
    with app_lock("shop", "a change"):
        pass
