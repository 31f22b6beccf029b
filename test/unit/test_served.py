"""Served files: one request to the master covers all files of the formula, and only files of the manifest are used."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from container import ROOT
from wsgi_formula import served
from wsgi_formula.errors import WsgiError
from wsgi_formula.host import Host
from wsgi_formula.served import MANIFEST, WRONG_SUM

NEW = b"of a new version"


class Minion:
    """A minion's file cache and a master whose file root is a folder; `requests` has the requested files."""

    hash = "sha256"  # the master's hash_type

    def __init__(self, folder):
        self.root, self.cache, self.requests = folder / "root", folder / "cache", []
        for path in ("wsgi/a.jinja", "wsgi/examples/app/app.py", "_utils/wsgi_formula/b.py", "_modules/wsgi.py"):
            self.edit(path, path.encode())
        self.edit("shop/shop.py", b"shop")
        self.write_manifest()
        self.sync()

    def edit(self, path, content):
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_bytes(content)

    def write_manifest(self):
        own = sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*.*"))
        lines = [
            f"{hashlib.sha256((self.root / path).read_bytes()).hexdigest()}  {path}\n"
            for path in own
            if not path.startswith("shop/")
        ]
        self.edit(MANIFEST, "".join(lines).encode())

    def sync(self):
        for kind in ("modules", "utils"):
            shutil.copytree(self.root / f"_{kind}", self.cache / "extmods" / kind, dirs_exist_ok=True)

    def cache_file(self, url, saltenv):
        path = url[len("salt://") :]
        self.requests.append(path)
        if not (self.root / path).is_file():
            return ""
        cached = self.cache / "files" / saltenv / path
        cached.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.root / path, cached)
        return str(cached)

    def hash_file(self, url, saltenv):
        path = url[len("salt://") :]
        self.requests.append(path)
        content = (self.root / path).read_bytes() if (self.root / path).is_file() else None
        return "" if content is None else {"hash_type": self.hash, "hsum": hashlib.new(self.hash, content).hexdigest()}

    def list_master(self, saltenv, prefix=""):
        self.requests.append(prefix)
        return [str(path.relative_to(self.root)) for path in (self.root / prefix).rglob("*.*")]

    def run(self, file_client="remote"):
        """Return the Served of a new run without any request yet."""
        self.requests.clear()
        opts = {
            "file_client": file_client,
            "cachedir": str(self.cache),
            "extension_modules": str(self.cache / "extmods"),
        }
        salt = {"cp.cache_file": self.cache_file, "cp.hash_file": self.hash_file, "cp.list_master": self.list_master}
        return Host(salt, {}, {}, "base", opts).served


@pytest.fixture
def minion(tmp_path, monkeypatch):
    monkeypatch.setattr(served, "_loaded", {})
    return Minion(tmp_path)


def test_manifest_has_the_sum_of_each_file_of_the_formula():
    check = ["sha256sum", "--check", "--strict", "--quiet", MANIFEST]
    done = subprocess.run(check, cwd=ROOT, check=False, capture_output=True, text=True)
    listed = [line.split("  ", 1)[1] for line in (ROOT / MANIFEST).read_text().splitlines()]
    folders = ("wsgi", "_modules", "_states", "_utils")
    files = (str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    own = sorted(path for path in files if not path.endswith(".pyc") and path != MANIFEST)
    assert (done.returncode, listed) == (0, own), f"run test/manifest\n{done.stdout}{done.stderr}"


def test_second_run_requests_only_the_manifest(minion):
    for asked in ([MANIFEST, "wsgi/a.jinja", "wsgi/examples/app/app.py"], [MANIFEST]):
        served = minion.run()
        assert Path(served.file("salt://wsgi/a.jinja")).read_text() == "wsgi/a.jinja"
        assert list(served.folder("salt://wsgi/examples/app")[0]) == ["app.py"]
        assert served.stale == ([], [])
        assert minion.requests == asked


def test_file_outside_of_the_formula_is_requested(minion):
    served = minion.run()
    assert list(served.folder("salt://shop")[1]) == ["shop.py"]
    assert served.file("salt://wsgi/nothing") == ""
    assert minion.requests == [MANIFEST, "shop", "shop/shop.py", "wsgi/nothing"]


def test_updated_file_is_fetched(minion):
    minion.run().file("salt://wsgi/a.jinja")
    minion.edit("wsgi/a.jinja", NEW)
    minion.write_manifest()
    assert Path(minion.run().file("salt://wsgi/a.jinja")).read_bytes() == NEW


def test_file_that_differs_from_the_manifest_is_not_used(minion):
    minion.edit("wsgi/a.jinja", NEW)
    with pytest.raises(WsgiError, match=r"salt://wsgi/a\.jinja does not have the sum .* run test/manifest there"):
        minion.run().file("salt://wsgi/a.jinja")


@pytest.mark.parametrize("hash_type", ["sha256", "md5"])
def test_served_file_is_compared_without_being_fetched(minion, monkeypatch, hash_type):
    monkeypatch.setattr(minion, "hash", hash_type)
    assert minion.run().differing() == []
    minion.run().file("salt://wsgi/a.jinja")
    minion.edit("wsgi/a.jinja", NEW)
    assert minion.run().differing() == [WRONG_SUM.format("wsgi/a.jinja")]
    assert Path(minion.run().file("salt://wsgi/a.jinja")).read_text() == "wsgi/a.jinja"


def test_module_outside_of_the_manifest_needs_no_sync(minion):
    minion.edit("_modules/wsgi.py", NEW)
    minion.sync()
    with pytest.raises(WsgiError, match=r"salt://_modules/wsgi\.py does not have the sum"):
        _ = minion.run().stale


def test_missing_manifest_is_reported_with_the_remedy(minion):
    (minion.root / MANIFEST).unlink()
    with pytest.raises(WsgiError, match=r"salt://wsgi/SHA256SUMS is not served in saltenv base: the formula"):
        minion.run().file("salt://wsgi/a.jinja")


def test_masterless_files_are_read_directly(minion):
    minion.edit("wsgi/a.jinja", NEW)
    served = minion.run("local")
    assert Path(served.file("salt://wsgi/a.jinja")).read_bytes() == NEW
    assert served.differing() == []
    assert MANIFEST not in minion.requests


@pytest.mark.parametrize("file_client", ["remote", "local"])
def test_stale_modules_on_disk_and_in_memory_are_found(minion, file_client):
    synced = str(minion.cache / "extmods/modules/wsgi.py")
    served.note_loaded("_modules/wsgi.py", synced)
    assert minion.run(file_client).stale == ([], [])
    minion.edit("_modules/wsgi.py", NEW)
    minion.write_manifest()
    assert minion.run(file_client).stale == (["_modules/wsgi.py"], [])
    minion.sync()
    assert minion.run(file_client).stale == ([], ["_modules/wsgi.py"])
    served.note_loaded("_modules/wsgi.py", synced)
    assert minion.run(file_client).stale == ([], [])


def test_module_counts_as_it_was_when_it_was_first_imported(minion, tmp_path, monkeypatch):
    """Salt imports its own modules again after a sync, but Python imports no module twice."""
    (tmp_path / "wsgi_formula").mkdir()
    util = tmp_path / "wsgi_formula/b.py"
    loaded = {"wsgi_formula.b": type("module", (), {"__file__": str(util)})}
    for text in ("old", "new"):
        util.write_text(text)
        with monkeypatch.context() as process:
            process.setattr(served, "__file__", str(tmp_path / "wsgi_formula/served.py"))
            process.setattr(sys, "modules", loaded)
            served.note_loaded("_modules/wsgi.py", str(util))
    sums = {text: hashlib.sha256(text.encode()).hexdigest() for text in ("old", "new")}
    assert served._loaded == {"_utils/wsgi_formula/b.py": sums["old"], "_modules/wsgi.py": sums["new"]}
