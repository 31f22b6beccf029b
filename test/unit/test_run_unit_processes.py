"""The processes of a unit: how their log gets complete, and how they are killed."""

import os
import pwd
import signal
import subprocess
import uuid
from pathlib import Path

from wsgi_formula import process
from wsgi_formula.run import unit_processes
from wsgi_formula.run.unit_processes import MARK

ROOT = Path(__file__).resolve().parents[2]


def test_log_is_complete_once_its_writer_has_caught_up(monkeypatch, tmp_path):
    append, log = str(ROOT / "wsgi/common/append"), tmp_path / "log"
    monkeypatch.setattr(unit_processes, "APPEND", append)
    with subprocess.Popen(["/bin/sh", append, str(log)], stdin=subprocess.PIPE, text=True) as writer:
        try:
            # Its command line is there a moment after its start.
            assert process.wait_until(lambda: list(unit_processes._running(append, str(log))), 10)
            os.kill(writer.pid, signal.SIGSTOP)
            writer.stdin.write("one\ntwo\n")
            writer.stdin.flush()
            assert not unit_processes.wait_for_log(str(log), patience=0)
            os.kill(writer.pid, signal.SIGCONT)
            assert unit_processes.wait_for_log(str(log), patience=60)
            assert log.read_text() == "one\ntwo\n"
        finally:
            writer.kill()


def test_only_processes_of_the_unit_are_killed_whatever_their_parent():
    me, unit = pwd.getpwuid(os.geteuid()).pw_name, f"unit-test.{uuid.uuid4().hex}"
    environment = {"PATH": os.environ["PATH"], MARK: unit}
    orphan = subprocess.run(
        ["sh", "-c", "sleep 987 > /dev/null 2>&1 & echo $!"], env=environment, stdout=subprocess.PIPE, check=True
    )
    other = subprocess.Popen(["sleep", "987"], env={**environment, MARK: f"{unit}.worker.1"})
    try:
        assert process.is_alive(int(orphan.stdout))
        unit_processes.kill_unit(unit, me)
        assert not process.is_alive(int(orphan.stdout))
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
