"""Steps: commands that end with all processes that they started, and whose failures show no secret."""

import multiprocessing
import os
import subprocess
import time

import pytest
from wsgi_formula import process, step
from wsgi_formula.errors import WsgiError
from wsgi_formula.step import MARK

# Other workers of pytest run tests of this file at the same time.
STEP = f"unit-test-{os.getpid()}"
SECONDS = 4322 + os.getpid()

ME = {"uid": os.getuid(), "gid": os.getgid()}


def shell(command, name=STEP, **options):
    return step.run(["sh", "-c", command], name, **ME, **options)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_step_returns_its_output():
    assert shell("echo out; echo err >&2") == "out\nerr\n"


def test_step_gets_only_its_own_environment_variables(monkeypatch):
    monkeypatch.setenv("SALT_SECRET", "hunter2")
    monkeypatch.setenv("PIP_INDEX_URL", "https://pypi.example.com")
    seen = dict(line.split("=", 1) for line in shell("env", env={"A": "1"}).splitlines())
    given = {"A": "1", "PIP_INDEX_URL": "https://pypi.example.com", "WSGI_STEP": step.mark(STEP)}
    assert given.items() <= seen.items()
    assert "SALT_SECRET" not in seen


def test_failed_step_shows_its_last_lines_without_secrets():
    with pytest.raises(WsgiError) as raised:
        shell(
            "for i in $(seq 30); do echo line $i; done; echo hunter2 https://me:hunter3@example.com; exit 3",
            label="it",
            secrets=["hunter2"],
        )
    assert str(raised.value).startswith("it failed:\n  line 17\n")
    assert str(raised.value).endswith("\n  *** https://me:***@example.com")


def test_step_that_exceeds_its_timeout_is_killed_with_its_children():
    with pytest.raises(WsgiError, match="it did not end within 3 s:\n  begun"):
        shell(f"setsid sleep {SECONDS} & echo begun; sleep {SECONDS}", label="it", timeout=3)
    assert step.kill_steps(STEP) == []
    assert (
        f"sleep {SECONDS}"
        not in subprocess.run(["ps", "-eo", "args"], check=False, stdout=subprocess.PIPE, text=True).stdout
    )


def test_processes_that_a_step_leaves_are_killed_and_no_others():
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
    """The PID on this machine of a marked process in a PID namespace of its own."""
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


def test_marked_process_of_a_container_is_left_alone(contained):
    assert os.getpid() in process.pids()
    assert contained not in process.pids()
    assert step.kill_steps(STEP) == []
    assert alive(contained)


def test_container_in_the_pid_namespace_of_the_host_has_other_marks(tmp_path):
    """Such a container has another root directory."""

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


def test_process_between_fork_and_exec_is_read_again(monkeypatch):
    """It has no environment at that moment."""
    looks, look = {}, step._environ

    def at_first_none(pid):
        looks[pid] = looks.get(pid, 0) + 1
        return look(pid) if looks[pid] > 2 else b""

    monkeypatch.setattr(step, "_environ", at_first_none)
    pid = int(shell("setsid sleep 4324 > /dev/null 2>&1 & echo $!"))
    assert not alive(pid)


def test_process_with_an_empty_environment_is_not_waited_for():
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
        ("kill -KILL $$", "it was ended by SIGKILL"),
        ("kill -40 $$", "it was ended by signal 40"),
    ],
)
def test_silent_failure_reports_the_exit_status(command, said):
    with pytest.raises(WsgiError) as raised:
        shell(command, label="it")
    assert str(raised.value) == f"it failed:\n  it printed nothing, and {said}"


def test_missing_program_raises_file_not_found():
    with pytest.raises(FileNotFoundError):
        step.run(["/nowhere/program"], STEP, **ME)
