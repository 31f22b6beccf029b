"""Processes and sockets with any names are listed."""

import os
import subprocess
import sys

import pytest
from container import ROOT
from wsgi_formula import files, process, step


@pytest.fixture(autouse=True)
def nothing_damaged(monkeypatch):
    monkeypatch.setattr(files.logger, "disabled", True)
    files.damaged_records.clear()
    files.take_damage_reports()


@pytest.fixture
def odd_process(tmp_path):
    """A process and a socket whose names are not UTF-8, which any user of the machine may have."""
    code = """
import ctypes, os, socket, sys, time
ctypes.CDLL(None).prctl(15, b"\\xff\\xfe) R 1")
os.chdir(sys.argv[1])
sock = socket.socket(socket.AF_UNIX)
sock.bind(b"\\xff\\xfe.sock")
sock.listen()
print("ready", flush=True)
time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    yield process.pid
    process.kill()
    process.wait()


def test_process_and_socket_with_undecodable_names_are_listed(odd_process):
    assert any("\udcff\udcfe.sock" in path for path, _ in process.unix_sockets())
    assert odd_process in process.pids()
    assert process.start_ticks(odd_process)
    assert odd_process in process.descendants(os.getpid())
    step._between_programs(odd_process)


def test_spawn_lists_sockets_with_undecodable_paths(odd_process):
    path = str(ROOT / "wsgi/common")
    code = "from wsgi_process import unix_sockets; print(any('sock' in path for path, _ in unix_sockets()))"
    done = subprocess.run([sys.executable, "-B", "-c", code], cwd=path, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
