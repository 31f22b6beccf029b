"""The programs of a generation and what they have in common, beside stubs of the servers."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FIELDS = re.findall(r"^    (\w+): \S", (ROOT / "wsgi/common/wsgi_worker.py").read_text(), re.MULTILINE)
# As much of each server as its program looks at before it serves.
STUBS = {
    "bjoern": {"bjoern.py": ""},
    "cheroot": {
        "cheroot/server.py": "",
        "cheroot/wsgi.py": "class Server:\n    def __init__(self, bind_addr, timeout=10): pass\n",
    },
    "hypercorn": {
        "hypercorn/asyncio.py": "serve = None\n",
        "hypercorn/config.py": "class Config:\n    backlog = 100\n    def from_mapping(self): pass\n",
    },
    "uvicorn": {"uvicorn.py": "class Config:\n    def __init__(self, app, backlog=2048): pass\n"},
}


@pytest.fixture
def run_program(tmp_path):
    """run_program(server, name, {key: value, …}) runs a program with these settings; returns the finished process."""

    def run(server, name, **settings):
        for stub, text in STUBS.get(server, {}).items():
            path = tmp_path / "stubs" / stub
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        for program in ("common/wsgi_worker.py", "common/wsgi_application.py", f"{server}/{name}"):
            shutil.copy(ROOT / "wsgi" / program, tmp_path)
        known = {**dict.fromkeys(FIELDS), "app": "shop", "server": server, "server_options": {}, **settings}
        (tmp_path / "settings.json").write_text(json.dumps(known))
        return subprocess.run(
            [sys.executable, tmp_path / name, tmp_path / "http.sock"],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path / "stubs")},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_each_program_that_refuses_unknown_options_has_a_stub():
    programs = (ROOT / "wsgi").glob("*/*_worker.py")
    refusing = {path.parent.name for path in programs if "refuse_unknown_options(" in path.read_text()}
    assert sorted(refusing - {"common", *STUBS}) == [], "add as much of it as its program looks at to STUBS"


@pytest.mark.parametrize("server", sorted(STUBS))
def test_unknown_option_of_a_server_ends_the_worker(run_program, server):
    ended = run_program(server, f"{server}_worker.py", server_options={"wrong": 1, "from_mapping": 2})
    key = f"wsgi:apps:shop:server_options:{server}"
    assert ended.stderr == f"{key}: {server} has no such settings: from_mapping, wrong\n"
    assert ended.returncode == 1


def test_granian_gets_the_settings_as_its_own_options(run_program, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/granian").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "bin/granian").chmod(0o755)
    own = {"environment": str(tmp_path), "option_words": ["--backlog", "64"], "threads": 3}
    words = run_program("granian", "granian_worker.py", interface="wsgi", **own).stdout.splitlines()
    assert words[:3] == ["--backlog", "64", f"--uds={tmp_path}/http.sock"]
    assert {"--interface=wsgi", "--workers=1", "--blocking-threads=3"} <= {*words}
    assert words[-1] == f"{tmp_path}/wsgi_application.py:application"
    words = run_program("granian", "granian_worker.py", interface="asgi", **own).stdout.splitlines()
    assert not [word for word in words if "threads" in word]


def test_unknown_setting_of_a_program_is_an_error(run_program):
    ended = run_program("granian", "granian_worker.py", unknown=1)
    assert "unexpected keyword argument 'unknown'" in ended.stderr
