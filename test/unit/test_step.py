"""Steps end with all that they started, tell no secret, and one run at a time takes them."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
from wsgi_formula import lock, process, step
from wsgi_formula.errors import WsgiError
from wsgi_formula.lock import app_lock
from wsgi_formula.redact import failure_excerpt, redact
from wsgi_formula.step import MARK

# Other workers of pytest run tests of this file at the same time.
STEP = f"unit-test-{os.getpid()}"
SECONDS = 4322 + os.getpid()

ME = {"uid": os.getuid(), "gid": os.getgid()}
pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root may give a step another user")


def shell(command, name=STEP, **options):
    return step.run(["sh", "-c", command], name, **ME, **options)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_step_returns_what_it_printed():
    assert shell("echo out; echo err >&2") == "out\nerr\n"


def test_a_step_sees_what_it_is_given_and_no_more(monkeypatch):
    monkeypatch.setenv("SALT_SECRET", "hunter2")
    monkeypatch.setenv("PIP_INDEX_URL", "https://pypi.example.com")
    seen = dict(line.split("=", 1) for line in shell("env", env={"A": "1"}).splitlines())
    given = {"A": "1", "PIP_INDEX_URL": "https://pypi.example.com", "WSGI_STEP": step.mark(STEP)}
    assert given.items() <= seen.items()
    assert "SALT_SECRET" not in seen


def test_a_step_that_fails_tells_the_last_lines_without_secrets():
    with pytest.raises(WsgiError) as raised:
        shell(
            "for i in $(seq 30); do echo line $i; done; echo hunter2 https://me:hunter3@example.com; exit 3",
            what="it",
            secrets=["hunter2"],
        )
    assert str(raised.value).startswith("it failed:\n  line 17\n")
    assert str(raised.value).endswith("\n  *** https://me:***@example.com")


def test_a_short_value_is_no_secret():
    assert redact("a 1 b", ["1"]) == "a 1 b"


def test_the_longer_of_two_secrets_goes_first():
    assert redact("hunter2-and-more", ["hunter2", "hunter2-and-more"]) == "***"


def test_a_step_that_takes_too_long_ends_with_all_that_it_started():
    with pytest.raises(WsgiError, match="it did not end within 3 s:\n  begun"):
        shell(f"setsid sleep {SECONDS} & echo begun; sleep {SECONDS}", what="it", timeout=3)
    assert step.kill_steps(STEP) == []
    assert (
        f"sleep {SECONDS}"
        not in subprocess.run(["ps", "-eo", "args"], check=False, stdout=subprocess.PIPE, text=True).stdout
    )


def test_what_a_step_leaves_running_ends_with_it_and_nothing_else_does():
    other = subprocess.Popen(["sleep", "60"], env={"WSGI_STEP": step.mark(f"{STEP}-of-another")})
    try:
        pid = int(shell("setsid sleep 4323 > /dev/null 2>&1 & echo $!"))
        assert not alive(pid)
        assert alive(other.pid)
    finally:
        other.kill()
        other.wait()


@pytest.fixture
def contained():
    """The PID, as this machine sees it, of a marked process in a PID namespace of its own."""
    variable = f"{MARK}={step.mark(STEP)}"
    outer = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", "env", variable, "sh", "-c", "echo; exec sleep 60"],
        stdout=subprocess.PIPE,
    )
    outer.stdout.readline()
    with open(f"/proc/{outer.pid}/task/{outer.pid}/children") as children:
        yield int(children.read())
    outer.kill()
    outer.wait()
    outer.stdout.close()


def test_a_marked_process_of_a_container_is_another_machine_s(contained):
    assert os.getpid() in process.pids()
    assert contained not in process.pids()
    assert step.kill_steps(STEP) == []
    assert alive(contained)


def test_a_container_that_shares_the_host_s_pid_namespace_has_other_marks(tmp_path):
    """What it does not share is its root directory."""

    def tell(pipe):
        os.chroot(tmp_path)
        pipe.send(step.mark(STEP))

    context = multiprocessing.get_context("fork")
    mine, its = context.Pipe()
    process = context.Process(target=tell, args=(its,))
    process.start()
    assert mine.poll(10)
    assert mine.recv() != step.mark(STEP)
    process.join(10)


def test_a_process_that_is_about_to_run_another_program_is_looked_at_again(monkeypatch):
    """It shows no environment at that moment."""
    looks, look = {}, step._environ

    def at_first_none(pid):
        looks[pid] = looks.get(pid, 0) + 1
        return look(pid) if looks[pid] > 2 else b""

    monkeypatch.setattr(step, "_environ", at_first_none)
    pid = int(shell("setsid sleep 4324 > /dev/null 2>&1 & echo $!"))
    assert not alive(pid)


def test_a_process_without_any_environment_is_not_waited_for():
    bare = subprocess.Popen(["sleep", "60"], env={})
    try:
        # It is there a moment before its program is.
        deadline = time.monotonic() + 10
        while step._between_programs(bare.pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not step._between_programs(bare.pid)
    finally:
        bare.kill()
        bare.wait()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("exit 3", "its exit status is 3"),
        ("kill -KILL $$", "was ended by SIGKILL"),
        ("kill -40 $$", "was ended by signal 40"),
    ],
)
def test_a_step_that_fails_in_silence_tells_how_it_ended(command, said):
    with pytest.raises(WsgiError) as raised:
        shell(command, what="it")
    assert str(raised.value) == f"it failed:\n  it printed nothing, and {said}"


BANNER = [f"banner {number}" for number in range(100)]
FIRST = ["Traceback (most recent call last):", '  File "shop.py", line 1, in <module>', "ImportError: this is why"]
INTERRUPTED = ["Traceback (most recent call last):", '  File "shop.py", line 0, in <module>', "KeyboardInterrupt"]


def cause(*said):
    return [line[2:] for line in failure_excerpt("\n".join([*BANNER, *said]), 60).splitlines()]


def test_the_cause_is_the_first_traceback_whatever_came_after_it():
    told = cause(*FIRST, *INTERRUPTED * 30, "goodbye")
    assert told[:4] == [*FIRST, INTERRUPTED[0]]
    assert told[59:62] == [INTERRUPTED[2], "…", INTERRUPTED[1]]
    assert told[-1] == "goodbye"
    assert len(told) == 60 + 1 + 15


def test_nothing_is_left_out_between_the_first_traceback_and_an_end_that_is_near():
    said = [*FIRST, *INTERRUPTED * 23, "goodbye"]
    assert cause(*said) == said


@pytest.mark.parametrize("said", [["goodbye"], [*FIRST, *INTERRUPTED, "goodbye"]])
def test_the_cause_is_the_end_of_what_was_said_where_nothing_came_after_it(said):
    assert cause(*said) == [*BANNER, *said][-60:]


def test_a_program_that_is_not_there_is_told_as_such():
    with pytest.raises(FileNotFoundError):
        step.run(["/nowhere/program"], STEP, **ME)


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
    """Another run that holds the shop, and the pipe that ends it."""
    context = multiprocessing.get_context("fork")
    mine, its = context.Pipe()
    process = context.Process(target=holder, args=(its,))
    process.start()
    assert mine.poll(10)
    yield process, mine
    process.kill()
    process.join(10)


def test_who_holds_an_app_may_do_so_again(run):
    with app_lock("shop", "a change"), app_lock("shop", "a build", patience=0):
        pass
    with app_lock("shop", "again", patience=0):
        pass


def test_another_run_is_refused_and_told_by_whom(another):
    process, _ = another
    refused = rf"shop is being changed by wsgi.deploy \(PID {process.pid}, since [\d:]+\)"
    with pytest.raises(WsgiError, match=refused), app_lock("shop", "wsgi.rollback", patience=0):
        pass
    with app_lock("other", "wsgi.rollback", patience=0):
        pass


def test_another_run_waits_its_patience(another):
    process, pipe = another
    pipe.send("enough")
    with app_lock("shop", "wsgi.rollback", patience=10):
        process.join(10)


def test_the_lock_of_a_run_that_died_is_taken_over_and_what_it_left_running_ended(another):
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


def test_a_run_that_came_to_its_end_leaves_nothing_to_take_over(run, monkeypatch):
    with app_lock("shop", "a change"):
        pass
    monkeypatch.setattr(step, "kill_steps", lambda name: pytest.fail("nobody died"))
    with app_lock("shop", "a change"):
        pass
