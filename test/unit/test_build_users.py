"""The processes of a build user are killed, wherever they hide."""

import os
import signal
import subprocess

import pytest
from wsgi_formula import process, step
from wsgi_formula.errors import WsgiError

BUILDER = 54321
pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root may give files away")


class Account:
    pw_name, pw_uid = "wsgibuild-unit-test", BUILDER


def started(*command):
    """Start a process of the build user, and return it once it runs."""
    process = subprocess.Popen(
        [*command, "sh", "-c", "echo; exec sleep 60"],
        user=BUILDER,
        group=BUILDER,
        env={},
        stdout=subprocess.PIPE,
    )
    process.stdout.readline()
    return process


def running():
    """Return the PIDs of the build user's processes in all namespaces."""
    found = {pid: process.status_of(pid) for pid in process.every_pid()}
    return [
        pid
        for pid, status in found.items()
        if str(BUILDER).encode() in status.get(b"Uid", b"").split() and b"Z" not in status[b"State"]
    ]


@pytest.mark.parametrize(
    "command", [[], ["unshare", "--user", "--map-root-user", "--pid", "--fork"]], ids=["", "hidden"]
)
def test_every_process_of_the_build_user_is_killed(command):
    process = started(*command)
    try:
        assert running()
        step.kill_user_processes(Account)
        assert running() == []
    finally:
        for pid in running():
            os.kill(pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def test_process_of_a_container_with_the_same_user_id_is_left_alone():
    contained = ["setpriv", "--reuid", str(BUILDER), "--clear-groups", "sh", "-c", "echo; exec sleep 60"]
    outer = subprocess.Popen(["unshare", "--pid", "--fork", *contained], stdout=subprocess.PIPE)
    try:
        outer.stdout.readline()
        (pid,) = running()
        step.kill_user_processes(Account)
        assert running() == [pid]
    finally:
        for pid in running():
            os.kill(pid, signal.SIGKILL)
        outer.wait()
        outer.stdout.close()


def test_process_that_cannot_be_killed_is_reported(monkeypatch):
    monkeypatch.setattr(process, "kill", lambda pid, is_meant: None)
    running = started()
    try:
        with pytest.raises(WsgiError, match=f"of the user wsgibuild-unit-test could not be killed: {running.pid}"):
            step.kill_user_processes(Account, patience=0.1)
    finally:
        running.kill()
        running.wait()
        running.stdout.close()
