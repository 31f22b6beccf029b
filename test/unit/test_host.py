"""Files come to be whole or not at all, what a killed run was writing is known as such, and no record makes a traceback."""

import json
import os
import subprocess
import sys
import time

import pytest
import salt.exceptions
from container import ROOT
from wsgi_formula import files, process, step
from wsgi_formula.errors import WsgiError
from wsgi_formula.files import STAGED
from wsgi_formula.host import Host


@pytest.fixture(autouse=True)
def nothing_damaged(monkeypatch):
    monkeypatch.setattr(files.logger, "disabled", True)
    files.damaged_records.clear()
    files.take_damage_reports()


def owner():
    return os.getuid(), os.getgid()


def write(path, text="new"):
    files.write(str(path), text, 0o640, *owner())


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    write(path)
    assert (path.read_text(), path.stat().st_mode & 0o777, os.listdir(tmp_path)) == ("new", 0o640, ["file"])


def test_file_and_folder_are_on_the_disk_when_it_is_written(tmp_path, monkeypatch):
    done, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append(os.readlink(f"/proc/self/fd/{handle}")), real(handle)))
    write(tmp_path / "file")
    assert os.path.dirname(done[0]) == str(tmp_path)
    assert done[1:] == [str(tmp_path)]
    files.replace_symlink("elsewhere", str(tmp_path / "link"), *owner())
    assert done[2:] == [str(tmp_path)]


def test_what_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(path)
    assert (path.read_text(), os.listdir(tmp_path)) == ("old", ["file"])


@pytest.mark.parametrize("what", ["write(path, 'new', 0o600, *owner)", "replace_symlink('elsewhere', path, *owner)"])
def test_what_a_killed_run_was_writing_is_swept_away_and_what_another_one_is_writing_is_not(tmp_path, what):
    program = (
        "import os, signal, sys, time; sys.path.insert(0, sys.argv[1]); from wsgi_formula import files\n"
        "os.rename = lambda *_: (print('written', flush=True), time.sleep(60))\n"
        "path, owner = sys.argv[2], (os.getuid(), os.getgid())\n"
        f"files.{what}"
    )
    folder = os.path.dirname(os.path.dirname(files.__file__))
    run = subprocess.Popen([sys.executable, "-c", program, folder, tmp_path / "file"], stdout=subprocess.PIPE)
    try:
        assert run.stdout.readline() == b"written\n"
        (staged,) = os.listdir(tmp_path)
        assert staged.startswith(STAGED)
        files.remove_staged(str(tmp_path))
        assert os.listdir(tmp_path) == [staged]
    finally:
        run.kill()
        run.communicate()
    files.remove_staged(str(tmp_path), str(tmp_path / "is not there"))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "contents",
    [b"", b"{", b"\xff\xfe", b"[1]", b"null", b'"text"', b"{}", b'{"key": 1}', b"[" * 100_000, b"\0" * 4096],
    ids=lambda contents: repr(contents[:9]),
)
def test_a_damaged_record_counts_as_none_and_is_told_once(tmp_path, contents):
    path = tmp_path / "record.json"
    path.write_bytes(contents)
    for _ in range(2):
        assert files.read_json(str(path), {"key": str}, "it is gone") is None
    (told,) = files.take_damage_reports()
    assert told.startswith(f"{path} is damaged (")
    assert told.endswith("): it is gone.")
    assert files.take_damage_reports() == []
    assert path.read_bytes() == contents


def test_a_damaged_record_is_set_aside_by_the_one_that_takes_its_place(tmp_path):
    path = tmp_path / "record.json"
    for contents in ("{", "["):
        path.write_text(contents)
        files.read_json(str(path))
        write(path, json.dumps({"key": time.time()}))
        assert "key" in files.read_json(str(path))
        assert (tmp_path / "record.json.damaged").read_text() == contents
        write(path, "{}")
    assert (tmp_path / "record.json.damaged").read_text() == "["


def test_a_record_that_is_not_there_is_none(tmp_path):
    assert files.read_json(str(tmp_path / "record.json"), {"key": str}) is None
    assert files.take_damage_reports() == []


@pytest.fixture
def odd_process(tmp_path):
    """A process and a socket, both with names that are no UTF-8, as any user of the machine may have them."""
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


def test_a_process_may_have_any_name_and_its_socket_any_path(odd_process):
    assert any("\udcff\udcfe.sock" in path for path, _ in process.unix_sockets())
    assert odd_process in process.pids()
    assert process.start_ticks(odd_process)
    assert odd_process in process.descendants(os.getpid())
    step._between_programs(odd_process)


def test_spawn_bears_a_process_of_any_name_and_a_socket_of_any_path(odd_process):
    path = str(ROOT / "wsgi/common")
    code = "from wsgi_process import unix_sockets; print(any('sock' in path for path, _ in unix_sockets()))"
    done = subprocess.run([sys.executable, "-B", "-c", code], cwd=path, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


@pytest.mark.parametrize(
    ("served", "told"),
    [
        (
            ["top.sls", "formulas/wsgi-formula/wsgi/defaults.yaml"],
            "; it is in salt://formulas/wsgi-formula of another one",
        ),
        (["top.sls", "nowsgi/defaults.yaml"], ""),
    ],
)
def test_a_formula_that_is_no_file_root_of_its_own_is_told_so(served, told):
    salt = {"cp.cache_file": lambda url, saltenv: "", "cp.list_master": lambda saltenv: served}
    host = Host(salt, pillar={}, grains={"os_family": "Debian"}, saltenv="dev")
    with pytest.raises(WsgiError) as problem:
        host.settings  # noqa: B018
    assert str(problem.value) == (
        "salt://wsgi/defaults.yaml is not served in saltenv dev: the formula's checkout has to be a file root of its own, "
        f"in file_roots or gitfs_remotes{told}"
    )


def test_a_problem_is_what_salt_tells_without_a_traceback():
    assert issubclass(WsgiError, salt.exceptions.CommandExecutionError)


def test_as_another_user_than_root_nothing_is_tried(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(WsgiError, match="wsgi must run as root, and this is the user with the UID 1000"):
        Host.of_run({}, {}, {}, {}, {}, "base")
