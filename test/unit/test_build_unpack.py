"""Archives: what is unpacked of them, and which are refused."""

import inspect
import io
import os
import stat
import subprocess
import sys
import tarfile
import zipfile

import pytest
from wsgi_formula.build import unpack


def tar(path, *entries):
    with tarfile.open(path, "w") as archive:
        for name, settings in entries:
            entry = tarfile.TarInfo(name)
            text = settings.pop("text", "")
            entry.size = len(text)
            for key, value in settings.items():
                setattr(entry, key, value)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return path


def unpacked(archive, folder, subdirectory="", size="10m", files=1000, depth=20):
    folder.mkdir()
    program = [sys.executable, "-I", "-c", inspect.getsource(unpack)]
    limits = ["wsgi:apps:shop:source_limits", str(size), str(files), str(depth)]
    return subprocess.run(
        [*program, str(archive), str(folder), subdirectory, *limits],
        capture_output=True,
        text=True,
        check=False,
        umask=0o022,
    )


LINK, HARD, FOLDER, DEVICE, PIPE = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE


def test_tar_archive_is_unpacked_without_owners_and_special_bits(tmp_path):
    archive = tar(
        tmp_path / "a.tar",
        ("./shop", {"type": FOLDER, "mode": 0o7777}),
        ("./shop/tool", {"text": "tool", "mode": 0o7755, "uid": 7}),
        ("./shop/plain", {"text": "plain", "mode": 0o666}),
        ("./shop/deep/file", {"text": "file"}),
        ("./shop/deep/up", {"type": LINK, "linkname": "../tool"}),
        ("./shop/hard", {"type": HARD, "linkname": "./shop/plain"}),
        ("./other", {"text": "other"}),
    )
    done = unpacked(archive, tmp_path / "out", "shop")
    assert (done.returncode, done.stderr) == (0, "")
    out = tmp_path / "out"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in out.iterdir() if path.is_file()}
    assert modes == {"tool": 0o755, "plain": 0o644, "hard": 0o644}
    assert (out / "deep/up").read_text() == "tool"
    assert (out / "hard").read_text() == "plain"
    assert {path.stat().st_uid for path in out.iterdir()} == {os.getuid()}


def test_zip_archive_is_unpacked_with_executable_bits_and_links(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, mode, text in (("tool", 0o100755, "tool"), ("link", 0o120777, "tool"), ("sub/x", 0o100644, "x")):
            entry = zipfile.ZipInfo(name)
            entry.external_attr = mode << 16
            archive.writestr(entry, text)
    done = unpacked(tmp_path / "a.zip", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert os.readlink(tmp_path / "out/link") == "tool"
    assert os.access(tmp_path / "out/tool", os.X_OK)
    assert not os.access(tmp_path / "out/sub/x", os.X_OK) or os.getuid() == 0
    assert stat.S_IMODE((tmp_path / "out/sub/x").stat().st_mode) == 0o644


def test_tar_archive_that_ends_in_a_zip_is_a_tar(tmp_path):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("wrong", "wrong")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        entry = tarfile.TarInfo("right")
        entry.size = len(inner.getvalue())
        archive.addfile(entry, io.BytesIO(inner.getvalue()))
    assert zipfile.is_zipfile(tmp_path / "a.tar")
    assert unpacked(tmp_path / "a.tar", tmp_path / "out").returncode == 0
    assert os.listdir(tmp_path / "out") == ["right"]


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ([("/escaped", {})], "'/escaped' leads out of the archive"),
        ([("../escaped", {})], "'../escaped' leads out of the archive"),
        ([("a/../../escaped", {})], "'a/../../escaped' leads out of the archive"),
        ([("a", {"type": LINK, "linkname": "/etc"})], "'a' is a link that leads out of the archive: '/etc'"),
        ([("a", {"type": LINK, "linkname": ".."})], "'a' is a link that leads out of the archive: '..'"),
        ([("x/a", {"type": LINK, "linkname": "../../y"})], "'x/a' is a link that leads out of the archive: '../../y'"),
        # Each link alone stays inside, but both together lead out.
        (
            [("x/a", {"type": LINK, "linkname": ".."}), ("b", {"type": LINK, "linkname": "x/a/../escaped"})],
            "'b' is a link that leads out of the archive: 'x/a/../escaped'",
        ),
        ([("x", {"type": FOLDER}), ("a", {"type": LINK, "linkname": "x"}), ("a/b", {})], "'a/b' leads through a link"),
        (
            [("a", {"type": HARD, "linkname": "../escaped"})],
            "'a' is a link to '../escaped', which is not a file in the archive",
        ),
        ([("a", {"type": DEVICE})], "'a' is a device or a pipe; "),
        ([("a", {"type": PIPE})], "'a' is a device or a pipe; "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_hostile_entry_of_a_tar_is_refused(tmp_path, entries, told):
    (tmp_path / "escaped").write_text("as it was")
    archive = tar(tmp_path / "a.tar", *((name, dict(settings)) for name, settings in entries))
    done = unpacked(archive, tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith(told)
    assert (tmp_path / "escaped").read_text() == "as it was"


@pytest.mark.parametrize("name", ["../escaped", "/escaped", "a/../../escaped"])
def test_hostile_entry_of_a_zip_is_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(name, "x")
    assert "leads out of the archive" in unpacked(tmp_path / "a.zip", tmp_path / "out").stderr
    assert not (tmp_path / "escaped").exists()


def bomb(path, *entries, mode="w:gz"):
    """Return an archive of files with so many zeros."""
    with tarfile.open(path, mode) as archive:
        for name, size in entries:
            entry = tarfile.TarInfo(name)
            entry.size = size
            archive.addfile(entry, Zeros(size))
    return path


class Zeros(io.RawIOBase):
    """A file of zeros."""

    def __init__(self, size):
        self.left = size

    def read(self, count=-1):
        count = min(self.left, count)
        self.left -= count
        return bytes(count)


def zip_bomb(path, *entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, size in entries:
            with archive.open(name, "w") as file:
                file.write(bytes(size))
    # A header with a smaller size than the content.
    path.write_bytes(path.read_bytes().replace((20 * 2**20).to_bytes(4, "little"), (1).to_bytes(4, "little")))
    return path


KEY = "wsgi:apps:shop:source_limits"
BOMBS = {
    "tar.gz": (lambda path: bomb(path, ("zeros", 20 * 2**20)), f"{KEY}:size: the source holds more than 10m; 'zeros'"),
    "tar.bz2": (lambda path: bomb(path, ("zeros", 20 * 2**20), mode="w:bz2"), f"{KEY}:size: "),
    "tar.xz": (lambda path: bomb(path, ("zeros", 20 * 2**20), mode="w:xz"), f"{KEY}:size: "),
    "two of a tar": (lambda path: bomb(path, ("one", 6 * 2**20), ("two", 6 * 2**20)), f"{KEY}:size: "),
    "outside the folder": (lambda path: bomb(path, ("x/zeros", 20 * 2**20), ("shop/x", 0)), f"{KEY}:size: "),
    "zip": (lambda path: zip_bomb(path, ("a", 6 * 2**20), ("b", 6 * 2**20)), f"{KEY}:size: "),
    "a zip that lies": (lambda path: zip_bomb(path, ("zeros", 20 * 2**20)), ""),
    "many": (lambda path: bomb(path, *((f"{number}", 0) for number in range(1001))), f"{KEY}:files: "),
    "many of a zip": (lambda path: zip_bomb(path, *((f"{number}", 0) for number in range(1001))), f"{KEY}:files: "),
    "one many times": (lambda path: bomb(path, *[("one", 0)] * 1001), f"{KEY}:files: "),
    "folders of files": (
        lambda path: bomb(path, *((f"{number}/a/b/c/d/e/f/g/h/i/j", 0) for number in range(100))),
        f"{KEY}:files: ",
    ),
    "deep": (lambda path: bomb(path, ("a/" * 10_000 + "a", 0)), f"{KEY}:depth: "),
    "deep of a zip": (lambda path: zip_bomb(path, ("a/" * 10_000 + "a", 0)), f"{KEY}:depth: "),
    "a long name": (lambda path: bomb(path, ("a" * 300, 0)), f"{KEY}:depth: "),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_archive_bomb_is_refused_with_its_limit(tmp_path, kind):
    make, told = BOMBS[kind]
    done = unpacked(make(tmp_path / "a"), tmp_path / "out", "shop" if kind.startswith("outside") else "")
    assert done.returncode == 1
    assert done.stderr.startswith(told), done.stderr
    assert done.stderr.count("\n") == 1
    written = [path.lstat() for path in (tmp_path / "out").rglob("*")]
    assert sum(found.st_size for found in written if stat.S_ISREG(found.st_mode)) <= 10 * 2**20
    assert len(written) <= 1000


def test_header_that_would_take_all_memory_is_refused(tmp_path):
    """tarfile reads the header of a long name in one piece."""
    entry = tarfile.TarInfo("././@LongLink")
    entry.type, entry.size = tarfile.GNUTYPE_LONGNAME, 2**40
    (tmp_path / "a.tar").write_bytes(entry.tobuf(tarfile.GNU_FORMAT) + bytes(2**16))
    done = unpacked(tmp_path / "a.tar", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith(f"{KEY}:files: the archive takes more than 1025 MiB of memory to unpack")


def test_missing_folder_is_reported_with_the_existing_ones(tmp_path):
    done = unpacked(tar(tmp_path / "a.tar", ("shop-1/x", {}), ("docs/x", {})), tmp_path / "out", "shop")
    assert done.stderr.strip() == "the archive has no folder 'shop'; at its top are: docs, shop-1"


def test_file_that_is_not_an_archive_is_refused(tmp_path):
    (tmp_path / "a.tar").write_text("nothing of that kind")
    assert unpacked(tmp_path / "a.tar", tmp_path / "out").stderr.strip() == "File is not a zip file"
