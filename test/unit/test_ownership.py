"""Trees change hands without root touching anything that is not in them, whatever their makers did."""

import os
import signal
import socket
import stat
import struct
import subprocess

import pytest
from wsgi_formula import files, process, step
from wsgi_formula.app.release import undamaged_release
from wsgi_formula.build import ownership
from wsgi_formula.errors import WsgiError

BUILDER, APP, OTHER = 54321, 54322, 54323
pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root may give files away")
# An access control list by which anybody may do anything: see linux/posix_acl_xattr.h.
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
    """Have all of it be the build user's."""
    for parent, folders, names in os.walk(tree):
        for name in [".", *folders, *names]:
            os.chown(f"{parent}/{name}", BUILDER, BUILDER, follow_symlinks=False)
    return tree


def take(tree):
    ownership.take_tree(str(tree), BUILDER, APP)


def found(tree):
    """What is in a tree and itself, each with its owner, its group and its permission bits."""
    stats = {path: path.lstat() for path in [tree, *tree.rglob("*")]}
    return {
        str(path.relative_to(tree)): (
            each.st_uid,
            each.st_gid,
            None if path.is_symlink() else stat.S_IMODE(each.st_mode),
        )
        for path, each in stats.items()
    }


def test_a_tree_that_is_taken_over_is_root_s_and_nobody_else_may_write_to_it(tree):
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


def test_access_control_lists_and_capabilities_go(tree):
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


def test_a_file_with_another_name_is_copied_and_the_other_one_left(tree, tmp_path):
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


def test_a_file_of_root_s_is_neither_given_nor_copied(tree, tmp_path):
    """As by a hard link where the kernel does not forbid that."""
    build(tree)
    secret = tmp_path / "shadow"
    secret.write_text("secret")
    secret.chmod(0o600)
    os.link(secret, tree / "inner/shadow")
    with pytest.raises(WsgiError, match=r"inner/shadow belongs to the user with the id 0, not to 54321"):
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
def test_what_is_no_file_folder_or_link_is_refused_and_not_opened(tree, make, kind):
    make(tree / "inner/odd")
    build(tree)
    with pytest.raises(WsgiError, match=f"{tree}/inner/odd is {kind}; only files, folders and symbolic links"):
        take(tree)


def test_a_file_that_somebody_goes_on_writing_to_is_refused(tree):
    """Whoever got it handed over, in whatever namespace they are."""
    build(tree)
    with open(tree / "top.py", "a"), pytest.raises(WsgiError, match=f"{tree}/top.py is open to be written to"):
        take(tree)
    build(tree)
    take(tree)


def test_folders_in_each_other_are_taken_over_and_removed_however_many_they_are(tree):
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


def test_what_is_named_is_removed(tree):
    """Else a build could say itself that it is finished."""
    (tree / ".complete").mkdir()
    (tree / ".complete/more").touch()
    build(tree)
    ownership.take_tree(str(tree), BUILDER, APP, without=[".complete", "not-there"])
    assert sorted(found(tree)) == [".", "inner", "inner/low.py", "top.py"]


def test_a_tree_that_is_given_away_follows_no_link_and_gives_nothing_of_another_user(tree, tmp_path):
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


def test_folders_in_each_other_without_end_are_refused(tree):
    os.makedirs(str(tree) + "/d" * 300)
    with pytest.raises(WsgiError, match="has more than 200 folders in each other"):
        ownership.give_tree(str(tree), APP, APP, {0})


def test_a_folder_that_another_may_write_to_is_not_root_s(tree):
    assert ownership.is_roots(str(tree))
    assert not ownership.is_roots(str(tree / "nowhere"))
    assert not ownership.is_roots(str(tree / "top.py"))
    os.symlink(tree, tree / "link")
    assert not ownership.is_roots(str(tree / "link"))
    for change in (lambda: tree.chmod(0o777), lambda: tree.chmod(0o770), lambda: os.chown(tree, APP, 0)):
        tree.chmod(0o755)
        change()
        assert not ownership.is_roots(str(tree))


class Account:
    pw_name, pw_uid = "wsgibuild-unit-test", BUILDER


def started(*command):
    """A process of the build user, which has begun."""
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
    """The build user's processes, in whatever namespace."""
    found = {pid: process.status_of(pid) for pid in process.every_pid()}
    return [
        pid
        for pid, status in found.items()
        if str(BUILDER).encode() in status.get(b"Uid", b"").split() and b"Z" not in status[b"State"]
    ]


@pytest.mark.parametrize(
    "command", [[], ["unshare", "--user", "--map-root-user", "--pid", "--fork"]], ids=["", "hidden"]
)
def test_every_process_of_the_build_user_is_ended_wherever_it_hides(command):
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


def test_a_container_s_process_with_the_build_user_s_id_is_left_alone():
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


def test_a_process_that_can_not_be_ended_is_told(monkeypatch):
    monkeypatch.setattr(process, "kill", lambda pid, is_meant: None)
    running = started()
    try:
        with pytest.raises(WsgiError, match=f"of the user wsgibuild-unit-test can't be ended: {running.pid}"):
            step.kill_user_processes(Account, patience=0.1)
    finally:
        running.kill()
        running.wait()
        running.stdout.close()


@pytest.fixture
def releases(tmp_path, monkeypatch):
    """The folder of the shop's releases, and of its environments, where all belongs to root."""
    for module in ("app.release", "build.environment"):
        monkeypatch.setattr(f"wsgi_formula.{module}.SRV", str(tmp_path))
    environment = tmp_path / "shop/environments/e"
    environment.mkdir(parents=True)
    (environment / ".complete").touch()
    return tmp_path / "shop/releases"


def make_release(releases, id):
    (releases / id / "code").mkdir(parents=True)
    (releases / id / "release.json").write_text('{"environment": "e"}')


def undamaged(releases):
    return undamaged_release("shop", "abc").id


def test_a_damaged_release_is_built_beside_it_under_the_next_number(releases):
    assert undamaged(releases) == "abc"
    make_release(releases, "abc")
    assert undamaged(releases) == "abc"
    (releases / "abc/code").chmod(0o777)
    assert undamaged(releases) == "abc-2"
    # As a killed build leaves it.
    (releases / "abc-2/code").mkdir(parents=True)
    assert undamaged(releases) == "abc-2"
    make_release(releases, "abc-3")
    assert undamaged(releases) == "abc-3"
    (releases / "abc/release.json").unlink()
    assert undamaged(releases) == "abc-3"
    (releases / "abc-3/code").rmdir()
    assert undamaged(releases) == "abc"


def test_a_release_whose_environment_is_damaged_is_not_whole(releases):
    make_release(releases, "abc")
    os.chown(releases.parent / "environments/e", OTHER, OTHER)
    assert undamaged(releases) == "abc-2"
