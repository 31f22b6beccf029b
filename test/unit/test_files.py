"""Files are replaced atomically, staged files of killed runs are removed, and damaged records are reported."""

import json
import os
import subprocess
import sys
import time

import pytest
from wsgi_formula import files
from wsgi_formula.files import STAGED


@pytest.fixture(autouse=True)
def nothing_damaged(monkeypatch):
    monkeypatch.setattr(files.logger, "disabled", True)
    files.damaged_records.clear()
    files.take_damage_reports()


def owner():
    return os.getuid(), os.getgid()


def write(path, text="new"):
    files.write(str(path), text, 0o640, *owner())


def test_file_is_replaced_atomically(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    write(path)
    assert (path.read_text(), path.stat().st_mode & 0o777, os.listdir(tmp_path)) == ("new", 0o640, ["file"])


def test_file_and_folder_are_synced_to_disk(tmp_path, monkeypatch):
    done, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append(os.readlink(f"/proc/self/fd/{handle}")), real(handle)))
    write(tmp_path / "file")
    assert os.path.dirname(done[0]) == str(tmp_path)
    assert done[1:] == [str(tmp_path)]
    files.replace_symlink("elsewhere", str(tmp_path / "link"), *owner())
    assert done[2:] == [str(tmp_path)]


def test_failed_write_leaves_the_file_unchanged(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(path)
    assert (path.read_text(), os.listdir(tmp_path)) == ("old", ["file"])


@pytest.mark.parametrize("what", ["write(path, 'new', 0o600, *owner)", "replace_symlink('elsewhere', path, *owner)"])
def test_staged_files_of_killed_runs_are_removed_and_those_of_running_ones_kept(tmp_path, what):
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
def test_damaged_record_counts_as_missing_and_is_reported_once(tmp_path, contents):
    path = tmp_path / "record.json"
    path.write_bytes(contents)
    for _ in range(2):
        assert files.read_json(str(path), {"key": str}, "it is gone") is None
    (told,) = files.take_damage_reports()
    assert told.startswith(f"{path} is damaged (")
    assert told.endswith("): it is gone.")
    assert files.take_damage_reports() == []
    assert path.read_bytes() == contents


def test_damaged_record_is_set_aside_when_it_is_replaced(tmp_path):
    path = tmp_path / "record.json"
    for contents in ("{", "["):
        path.write_text(contents)
        files.read_json(str(path))
        write(path, json.dumps({"key": time.time()}))
        assert "key" in files.read_json(str(path))
        assert (tmp_path / "record.json.damaged").read_text() == contents
        write(path, "{}")
    assert (tmp_path / "record.json.damaged").read_text() == "["


def test_missing_record_is_none_without_a_warning(tmp_path):
    assert files.read_json(str(tmp_path / "record.json"), {"key": str}) is None
    assert files.take_damage_reports() == []
