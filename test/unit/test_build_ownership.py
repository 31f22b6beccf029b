"""Trees change owners without root touching anything outside of them."""

import os
import socket
import stat
import struct
import subprocess

import pytest
from wsgi_formula import files
from wsgi_formula.build import ownership
from wsgi_formula.errors import WsgiError

BUILDER, APP, OTHER = 54321, 54322, 54323
pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root may give files away")
# An access control list that permits everything to everybody: linux/posix_acl_xattr.h
OPEN_TO_ALL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, 7, id)
    for tag, id in ((1, 2**32 - 1), (2, OTHER), (4, 2**32 - 1), (16, 2**32 - 1), (32, 2**32 - 1))
)


@pytest.fixture
def tree(tmp_path):
    """A folder with a file and a folder with another file in it."""
    (tmp_path / "tree/inner").mkdir(parents=True)
    (tmp_path / "tree/top.py").write_text("top")
    (tmp_path / "tree/inner/low.py").write_text("low")
    return tmp_path / "tree"


def build(tree):
    """Give the whole tree to the build user."""
    for parent, folders, names in os.walk(tree):
        for name in [".", *folders, *names]:
            os.chown(f"{parent}/{name}", BUILDER, BUILDER, follow_symlinks=False)
    return tree


def take(tree):
    ownership.take_tree(str(tree), BUILDER, APP)


def found(tree):
    """Return owner, group and permission bits of a tree and of all in it, by path."""
    stats = {path: path.lstat() for path in [tree, *tree.rglob("*")]}
    return {
        str(path.relative_to(tree)): (
            each.st_uid,
            each.st_gid,
            None if path.is_symlink() else stat.S_IMODE(each.st_mode),
        )
        for path, each in stats.items()
    }


def test_taken_tree_belongs_to_root_and_only_root_may_write(tree):
    build(tree)
    for path in (tree, tree / "inner", tree / "inner/low.py"):
        path.chmod(0o7777)
    os.symlink("/etc/hostname", tree / "link")
    os.chown(tree / "link", BUILDER, BUILDER, follow_symlinks=False)
    outside = os.lstat("/etc/hostname")
    take(tree)
    assert found(tree) == {
        ".": (0, APP, 0o755),
        "inner": (0, APP, 0o755),
        "inner/low.py": (0, APP, 0o755),
        "top.py": (0, APP, 0o644),
        "link": (0, APP, None),
    }
    assert os.lstat("/etc/hostname") == outside


def test_access_control_lists_and_capabilities_are_removed(tree):
    capability = bytes.fromhex("0100000202000000000000000000000000000000")
    attributes = {"top.py": ("security.capability", capability), "inner": ("system.posix_acl_default", OPEN_TO_ALL)}
    attributes["inner/low.py"] = attributes["."] = ("system.posix_acl_access", OPEN_TO_ALL)
    build(tree)
    try:
        for path, (name, value) in attributes.items():
            os.setxattr(tree / path, name, value)
    except OSError as error:
        pytest.skip(f"not on this file system: {error}")
    take(tree)
    for path in attributes:
        assert not [name for name in os.listxattr(tree / path) if not name.startswith(("user.", "trusted."))]
    assert {mode & 0o7022 for _, _, mode in found(tree).values()} == {0}


def test_hard_linked_file_is_copied_and_the_other_name_left_alone(tree, tmp_path):
    build(tree)
    outside = tmp_path / "cache.py"
    os.link(tree / "top.py", outside)
    os.link(tree / "inner/low.py", tree / "twice.py")
    os.utime(tree / "top.py", ns=(1, 2))
    take(tree)
    assert outside.stat().st_uid == BUILDER
    for name, text in (("top.py", "top"), ("inner/low.py", "low"), ("twice.py", "low")):
        assert (tree / name).read_text() == text
        assert (tree / name).stat().st_nlink == 1
        assert found(tree)[name] == (0, APP, 0o644)
    assert (tree / "top.py").stat().st_mtime_ns == 2
    assert len(found(tree)) == 5


def test_file_of_root_is_neither_given_away_nor_copied(tree, tmp_path):
    """A hard link brings such a file in where the kernel permits it."""
    build(tree)
    secret = tmp_path / "shadow"
    secret.write_text("secret")
    secret.chmod(0o600)
    os.link(secret, tree / "inner/shadow")
    with pytest.raises(
        WsgiError, match=r"inner/shadow belongs to the user with the UID 0; a build may leave only files of UID 54321"
    ):
        take(tree)
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert secret.stat().st_gid == 0


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (os.mkfifo, "a named pipe"),
        (make_socket, "a socket"),
        (lambda path: os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3)), "a character device"),
    ],
)
def test_special_file_is_refused_and_not_opened(tree, make, kind):
    make(tree / "inner/odd")
    build(tree)
    with pytest.raises(
        WsgiError, match=f"{tree}/inner/odd is {kind}; a build may leave only files, folders and symbolic links"
    ):
        take(tree)


def test_file_that_is_open_for_writing_is_refused(tree):
    """The process that has it open may be in any namespace."""
    build(tree)
    with open(tree / "top.py", "a"), pytest.raises(WsgiError, match=f"{tree}/top.py is open for writing"):
        take(tree)
    build(tree)
    take(tree)


def test_deeply_nested_folders_are_taken_and_removed(tree):
    build(tree)
    before = os.getcwd()
    os.chdir(tree)
    try:
        for _ in range(1500):
            os.mkdir("d")
            os.chown("d", BUILDER, BUILDER)
            os.chdir("d")
        os.chdir(before)
        take(tree)
        assert os.stat(str(tree) + "/d" * 1500).st_uid == 0
        files.remove(str(tree))
        assert not tree.exists()
    finally:
        os.chdir(before)
        # pytest could not.
        subprocess.run(["rm", "-rf", tree], check=True, cwd="/")


def test_named_paths_are_removed(tree):
    """Otherwise a build could mark itself as finished."""
    (tree / ".complete").mkdir()
    (tree / ".complete/more").touch()
    build(tree)
    ownership.take_tree(str(tree), BUILDER, APP, without=[".complete", "not-there"])
    assert sorted(found(tree)) == [".", "inner", "inner/low.py", "top.py"]


def test_giving_a_tree_follows_no_link_and_skips_files_of_other_users(tree, tmp_path):
    build(tree)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "passwd").touch()
    os.symlink(outside, tree / "link")
    os.symlink(outside, tree / "theirs")
    os.chown(tree / "theirs", BUILDER, BUILDER, follow_symlinks=False)
    os.link(outside / "passwd", tree / "inner/passwd")
    os.mkfifo(tree / "pipe")
    os.chown(tree / "pipe", BUILDER, BUILDER)
    os.chown(tree / "inner", OTHER, OTHER)
    ownership.give_tree(str(tree), APP, APP, {BUILDER})
    owners = {path: (uid, gid) for path, (uid, gid, _) in found(tree).items()}
    given, kept = (APP, APP), (0, 0)
    assert owners == {
        ".": given,
        "top.py": given,
        "inner": (OTHER, OTHER),
        "inner/low.py": given,
        "inner/passwd": kept,
        "pipe": given,
        "link": kept,
        "theirs": given,
    }
    assert (outside.stat().st_uid, (outside / "passwd").stat().st_uid) == kept


def test_too_deeply_nested_folders_are_refused(tree):
    os.makedirs(str(tree) + "/d" * 300)
    with pytest.raises(WsgiError, match="has more than 200 nested folders"):
        ownership.give_tree(str(tree), APP, APP, {0})


def test_folder_that_others_may_write_to_does_not_count_as_owned_by_root(tree):
    assert ownership.is_roots(str(tree))
    assert not ownership.is_roots(str(tree / "nowhere"))
    assert not ownership.is_roots(str(tree / "top.py"))
    os.symlink(tree, tree / "link")
    assert not ownership.is_roots(str(tree / "link"))
    for change in (lambda: tree.chmod(0o777), lambda: tree.chmod(0o770), lambda: os.chown(tree, APP, 0)):
        tree.chmod(0o755)
        change()
        assert not ownership.is_roots(str(tree))
