"""Sources without a machine: what their text may be, what they are, and what an archive may hold."""

import inspect
import io
import os
import stat
import subprocess
import sys
import tarfile
import zipfile

import pytest
from wsgi_formula.app.release import DesiredRelease
from wsgi_formula.build import git, unpack
from wsgi_formula.build import source as sources
from wsgi_formula.build.git import Refused, Repository
from wsgi_formula.build.source import with_revision
from wsgi_formula.errors import WsgiError
from wsgi_formula.pillar.source import SourceSpec, parse_source

COMMIT = "0f1e2d3c" * 5
HASH = "0f" * 32


# What pillar says


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("salt://shop/", SourceSpec("salt", "shop")),
        ("salt://shop#subdirectory=web", SourceSpec("salt", "shop", subdirectory="web")),
        ("git+https://git.example.com/shop.git@v1.5", SourceSpec("git", "https://git.example.com/shop.git", "v1.5")),
        ("git+https://u:t@h:44/s.git@a/b#subdirectory=x/y/", SourceSpec("git", "https://u:t@h:44/s.git", "a/b", "x/y")),
        (
            "git+ssh://git@h:2222/s.git@refs/pull/7/head",
            SourceSpec("git", "ssh://git@h:2222/s.git", "refs/pull/7/head"),
        ),
        (f"git+file:///srv/shop.git@{COMMIT}", SourceSpec("git", "file:///srv/shop.git", COMMIT)),
        (f"https://h/s.tar.gz#sha256={HASH}", SourceSpec("archive", "https://h/s.tar.gz", hash=("sha256", HASH))),
        (
            f"salt://s.zip#subdirectory=w&sha256={HASH.upper()}",
            SourceSpec("archive", "salt://s.zip", "", "w", ("sha256", HASH)),
        ),
        ("shop[web]==1.4", SourceSpec("requirement", "shop[web]==1.4")),
        ("/opt/shop/", SourceSpec("path", "/opt/shop")),
    ],
)
def test_a_source_is_read(text, source):
    assert parse_source(text) == source


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("srv/shop", "must be salt://folder, git+https"),
        ("shop>=1.4", "must be salt://folder, git+https"),
        ("salt://shop\n", "must be salt://folder, git+https"),
        ("git+https://h/s.git", "must end in @ and a branch, a tag or a commit"),
        ("git+https://me@h/s.git", "must end in @ and a branch, a tag or a commit"),
        ("git+https://h/s.git@v1?token=x", "must end in @ and a branch, a tag or a commit"),
        ("git+https://h/s.git@--upload-pack=x", "'--upload-pack=x' can't be a branch, a tag or a commit"),
        ("git+https://h/s.git@a..b", "'a..b' can't be a branch, a tag or a commit"),
        ("git+http://h/s.git@v1", "must be git+https://…, git+ssh://… or git+file://…"),
        ("git+ext::sh@v1", "must be git+https://…, git+ssh://… or git+file://…"),
        ("git+https:///s.git@v1", "must be git+https://…, git+ssh://… or git+file://…"),
        ("git+file://h/s.git@v1", "must be git+https://…, git+ssh://… or git+file://…"),
        ("git+ssh://git@h:org/s.git@v1", "must have a port behind its host's colon; host:path is written host/path"),
        (
            "git+ssh://git:x@h/s.git@v1",
            "must have no password, which ssh would show to all; a key goes into deploy_key",
        ),
        ("git+https://h/s.git@v1#egg=shop", "#egg is nothing that it can say (#subdirectory=)"),
        ("git+https://h/s.git@v1#subdirectory=../x", "its subdirectory '../x' leads out of it"),
        ("https://h/s.tar.gz", "is an archive; it must end in #sha256= and its hash, which `sha256sum` prints"),
        ("https://h/s.zip#sha256=0f", "its sha256 must be 64 hexadecimal digits"),
        ("/opt/../etc", "must be a folder's absolute path, without .."),
        ("/", "must be a folder's absolute path, without .."),
    ],
)
def test_what_is_no_source_is_told(text, told):
    with pytest.raises(ValueError) as error:
        parse_source(text)
    assert str(error.value).startswith(told)


@pytest.mark.parametrize(
    ("text", "revision", "other"),
    [
        ("git+https://u:t@h/s.git@v1#subdirectory=web", "v2", "git+https://u:t@h/s.git@v2#subdirectory=web"),
        ("git+ssh://git@h/s.git@main", COMMIT, f"git+ssh://git@h/s.git@{COMMIT}"),
        ("shop[web,db]==1.4", "1.5", "shop[web,db]==1.5"),
        (f"shop == 1.4 --hash=sha256:{HASH}", "1.5", "shop==1.5"),
    ],
)
def test_another_revision_keeps_all_else(text, revision, other):
    assert with_revision(text, revision) == other


@pytest.mark.parametrize(
    ("text", "revision", "told"),
    [
        ("salt://shop", "v2", "salt://shop has no revisions; another archive or folder is deployed with source="),
        ("/opt/shop", "v2", "/opt/shop has no revisions"),
        (f"https://u:secret@h/s.zip#sha256={HASH}", "v2", "https://u:***@h/s.zip"),
        ("git+https://u:secret@h/s.git@v1", "-x", "'-x' can't be a branch, a tag or a commit"),
        ("shop==1.4", "1.5; rm", "must be "),
    ],
)
def test_what_has_no_such_revision_is_told(text, revision, told):
    with pytest.raises(ValueError) as error:
        with_revision(text, revision)
    assert told in str(error.value)
    assert "secret" not in str(error.value)


# What a source is


@pytest.fixture
def source_of(make_host):
    """source_of(source, **settings) is the Source of an app that says so."""
    host = make_host({"apps": {}})

    def of(source, name="shop", **settings):
        defaults = host.settings.defaults
        return sources.source_of(host, name, {**defaults, "source": source, **settings})

    return of


def test_a_salt_folder_is_its_files(source_of):
    hello = source_of("salt://wsgi/examples/hello")
    assert hello.identity == source_of("salt://wsgi/examples#subdirectory=hello").identity
    assert hello.identity != source_of("salt://wsgi/examples/flask").identity
    assert "application" in hello.read("hello.py")
    assert hello.read("no.py") is None


def test_a_commit_is_what_it_is_wherever_it_comes_from(source_of):
    source = source_of(f"git+https://me:secret@h/s.git@{COMMIT}#subdirectory=web")
    assert source.identity == source_of(f"git+ssh://git@other/s.git@{COMMIT}#subdirectory=web").identity
    assert source.identity != source_of(f"git+ssh://git@other/s.git@{COMMIT}").identity
    assert source.revision == {"commit": COMMIT}
    assert source.text == f"git+https://me:***@h/s.git@{COMMIT}#subdirectory=web"
    assert source.read("requirements.txt") is None


def test_a_commit_that_a_deploy_found_by_a_branch_or_a_tag_is_told_with_it(source_of):
    source = f"git+https://h/s.git@{COMMIT}"
    # Pillar's own comes first, as it does in a run.
    assert source_of(source).revision == {"commit": COMMIT}
    assert source_of(source, ref="v1").revision == {"commit": COMMIT, "ref": "v1"}
    assert source_of(source, ref=COMMIT).revision == {"commit": COMMIT}
    assert source_of(source, ref="v1").identity == source_of(source).identity


def test_a_key_that_was_looked_up_is_not_taken_for_the_one_that_was_not(source_of):
    source = f"git+ssh://git@h/s.git@{COMMIT}"
    found, earlier = source_of(source, deploy_key="looked up"), source_of(source, deploy_key="sdb://keys/shop")
    assert found.app["deploy_key"] == "looked up"
    assert earlier.app["deploy_key"] == "sdb://keys/shop"
    assert source_of(source, deploy_key="looked up") is found


def test_an_archive_is_its_hash(source_of):
    source = source_of(f"https://me:secret@h/s.zip#sha256={HASH}")
    assert source.identity == source_of(f"salt://s.zip#sha256={HASH}").identity
    assert source.revision == {"sha256": HASH}


def test_a_requirement_is_all_that_is_required(source_of):
    assert source_of("shop==1.4").requirements == ["shop==1.4"]
    assert source_of("shop==1.4").identity != source_of("shop==1.5").identity


def test_a_folder_is_its_files_links_and_executable_bits(source_of, tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "shop.py").write_text("1")
    seen = []

    def changed():
        found = source_of(str(folder), name=f"shop-{len(seen)}").identity
        assert found not in seen
        seen.append(found)

    changed()
    (folder / "shop.py").write_text("2")
    changed()
    (folder / "shop.py").chmod(0o755)
    changed()
    (folder / "link").symlink_to("shop.py")
    changed()
    for skipped in (".git", "__pycache__"):
        (folder / skipped).mkdir()
        (folder / skipped / "file").write_text("x")
    os.mkfifo(folder / "pipe")
    assert source_of(str(folder), name="again").identity == seen[-1]
    copy = tmp_path / "copy"
    copy.mkdir()
    source_of(str(folder), name="again").fetch(str(copy), 0, 0)
    assert source_of(str(copy)).identity == seen[-1]
    assert (copy / "link").is_symlink()


@pytest.mark.parametrize("target", ["/etc/shadow", "../out", "sub/../../out", "sub/up", "missing/../../out"])
def test_a_link_that_leads_out_of_a_source_is_refused(source_of, tmp_path, target):
    folder = tmp_path / "shop"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "copy").mkdir()
    (folder / "sub/up").symlink_to("../..")
    if target != "sub/up":
        (folder / "sub/up").unlink()
        (folder / "link").symlink_to(target)
    told = "^wsgi:apps:shop:source: '(link|sub/up)' is a link that leads out of it: '.*'; remove it from the source"
    with pytest.raises(WsgiError, match=told):
        source_of(str(folder)).fetch(str(tmp_path / "copy"), 0, 0)


@pytest.mark.parametrize("target", ["sub", "sub/../file", "missing/file", "link", ".", "sub/top/sub"])
def test_a_link_that_stays_in_a_source_is_kept(source_of, tmp_path, target):
    folder = tmp_path / "shop"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "copy").mkdir()
    (folder / "link").symlink_to(target)
    (folder / "sub/top").symlink_to("..")
    source_of(str(folder)).fetch(str(tmp_path / "copy"), 0, 0)
    assert os.readlink(tmp_path / "copy/link") == target


LIMITS = {"size": "1k", "files": 5, "depth": 3}


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"big": 1025}, "size: the source holds more than 1k; 'big' does not fit in any more; raise the limit if"),
        ({"a": 512, "b": 513}, "size: the source holds more than 1k; 'b' does not"),
        ({str(number): 0 for number in range(6)}, "files: the source holds more than 5 files and folders; '5' is"),
        ({"a/b/c/d": 0}, "depth: 'a/b/c/d'… is more than 3 folders deep in the source"),
    ],
    ids=["a file", "files together", "many", "deep"],
)
def test_a_folder_beyond_a_limit_is_refused_before_it_is_read(source_of, tmp_path, files, told):
    for name, size in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    with pytest.raises(WsgiError) as problem:
        assert source_of(str(tmp_path), source_limits=LIMITS).identity
    assert str(problem.value).startswith(f"wsgi:apps:shop:source_limits:{told}")


def test_limits_are_no_part_of_what_a_source_is(source_of, make_host):
    assert (
        source_of("salt://wsgi/examples/hello").identity
        == source_of("salt://wsgi/examples/hello", name="other", source_limits=LIMITS).identity
    )
    one, other = (
        make_host({"apps": {"shop": {"source": "salt://wsgi/examples/hello", "application": "a:b", **more}}})
        for more in ({}, {"source_limits": {"files": 7}})
    )
    assert other.settings.apps["shop"]["source_limits"] == {"size": "2g", "files": 7, "depth": 64}
    ids = {DesiredRelease(host, "shop", host.settings.apps["shop"]).id for host in (one, other)}
    assert len(ids) == 1


def test_what_salt_serves_has_limits_too(source_of, tmp_path):
    with pytest.raises(WsgiError, match="^wsgi:apps:shop:source_limits:size: the source holds more than 1;"):
        source_of("salt://wsgi/examples/hello", source_limits={**LIMITS, "size": 1}).fetch(str(tmp_path), 0, 0)


def test_a_folder_that_changes_while_it_is_copied_is_no_release(source_of, tmp_path):
    (tmp_path / "shop.py").write_text("1")
    source = source_of(str(tmp_path))
    assert source.identity
    (tmp_path / "shop.py").write_text("2")
    (tmp_path / "copy").mkdir()
    with pytest.raises(WsgiError, match="^wsgi:apps:shop:source: .* was changed while it was copied"):
        source.fetch(str(tmp_path / "copy"), 0, 0)


# git


REFERENCES = {
    "refs/heads/main": "a" * 40,
    "refs/heads/both": "b" * 40,
    "refs/tags/both": "c" * 40,
    "refs/tags/v1.5": "d" * 40,
    "refs/tags/v1.5^{}": "e" * 40,
}


@pytest.mark.parametrize(
    ("revision", "commit"),
    [("main", "a"), ("v1.5", "e"), ("refs/tags/v1.5", "e"), ("refs/heads/both", "b"), ("refs/tags/both", "c")],
)
def test_a_reference_is_found(revision, commit):
    assert git.find(REFERENCES, revision) == commit * 40


@pytest.mark.parametrize(
    ("revision", "told"),
    [
        ("both", "'both' is a branch and a tag; say @refs/heads/both or @refs/tags/both"),
        ("v1.4", "'v1.4' is neither a branch nor a tag of it; did you mean 'v1.5'?"),
        ("refs/tags/v1.4", "'refs/tags/v1.4' is not in it; did you mean 'refs/tags/v1.5'"),
        ("0f1e2d3", "'0f1e2d3' is neither a branch nor a tag of it; a commit must be whole, 40 or 64"),
        ("zzz", "'zzz' is neither a branch nor a tag of it"),
    ],
)
def test_what_is_no_reference_is_told(revision, told):
    with pytest.raises(Refused) as error:
        git.find(REFERENCES, revision)
    assert str(error.value).startswith(told)


def test_credentials_leave_the_url(monkeypatch):
    repository = Repository("https://me:s%40cret@h:44/s.git")
    assert repository.url == "https://h:44/s.git"
    assert repository.mirror == Repository("https://other@h:44/s.git").mirror
    environment = repository._environment("/home")
    assert (environment["WSGI_GIT_USERNAME"], environment["WSGI_GIT_PASSWORD"]) == ("me", "s@cret")
    assert "cret" not in repository._configuration()


def test_the_helper_gives_git_the_credentials_of_its_host_alone(tmp_path):
    repository = Repository("https://me:s%25%5Cn'%22cret@h/s.git")
    (tmp_path / ".gitconfig").write_text(repository._configuration())
    environment = {"PATH": os.environ["PATH"], **repository._environment(str(tmp_path))}

    def asked(host):
        return subprocess.run(
            ["git", "credential", "fill"],
            input=f"protocol=https\nhost={host}\n\n",
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    assert "username=me\npassword=s%\\n'\"cret\n" in asked("h").stdout
    assert "cret" not in asked("elsewhere").stdout
    assert asked("elsewhere").returncode != 0


def test_authorities_of_salts_environment_reach_git(monkeypatch):
    monkeypatch.delenv("GIT_SSL_CAINFO", raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", "/etc/own.pem")
    assert Repository("https://h/s.git")._environment("/home")["GIT_SSL_CAINFO"] == "/etc/own.pem"


@pytest.mark.parametrize(
    ("url", "file"), [("https://h/s.git", False), ("ssh://h/s.git", False), ("file:///s.git", True)]
)
def test_a_local_repository_is_read_where_the_source_is_one_alone(url, file):
    repository = Repository(url)
    assert ("file" in repository._environment("/home")["GIT_ALLOW_PROTOCOL"].split(":")) is file
    assert ("safe" in repository._configuration()) is file


@pytest.mark.parametrize(
    ("url", "relative", "absolute"),
    [
        ("https://h/a/shop.git", "../shared.git", "https://h/a/shared.git"),
        ("https://h/a/shop.git/", "./../../b/shared.git", "https://h/b/shared.git"),
        ("file:///srv/git/shop.git", "./lib/", "file:///srv/git/shop.git/lib"),
        ("git@h:a/shop.git", "../shared.git", "git@h:a/shared.git"),
        ("git@h:shop.git", "../shared.git", "git@h:shared.git"),
        ("https://h/shop.git", "ssh://git@h/shared.git", "ssh://git@h/shared.git"),
    ],
)
def test_a_submodule_may_be_beside_its_repository(url, relative, absolute):
    assert git.beside(url, relative) == absolute


@pytest.mark.parametrize(
    "main", ["https://h/shop.git", "ssh://git@h/shop.git", "git@h:shop.git", "file:///srv/shop.git"]
)
@pytest.mark.parametrize(
    ("url", "schemes"),
    [
        ("https://h/lib.git", {"https", "ssh", "file"}),
        ("ssh://git@h:22/lib.git", {"https", "ssh", "file"}),
        ("git@h:lib.git", {"https", "ssh", "file"}),
        ("file:///srv/lib.git", {"file"}),
        ("/srv/lib.git", {"file"}),
        ("http://h/lib.git", set()),
        ("git://h/lib.git", set()),
        ("ext::sh -c id", set()),
        ("--upload-pack=id", set()),
        ("https:///lib.git", set()),
        ("https://[/lib.git", set()),
        ("https://h:x/lib.git", set()),
        ("ssh://-oProxyCommand=id/lib.git", set()),
        ("-oProxyCommand=id:lib.git", set()),
        ("file://h/lib.git", set()),
        ("lib.git", set()),
        ("", set()),
    ],
)
def test_a_submodule_comes_by_what_its_repository_may_come_by(main, url, schemes):
    repository = Repository(main)
    if repository.scheme in schemes:
        assert repository._submodule("lib", url, (7, 7)).scheme in ("https", "ssh", "file")
    else:
        with pytest.raises(Refused, match="^submodule 'lib' is at '.*'; it can be at https://, ssh://"):
            repository._submodule("lib", url, (7, 7))


def test_a_submodule_has_the_credentials_of_its_host_alone():
    repository = Repository("https://me:token@h:44/shop.git")
    found = {
        url: repository._submodule("lib", url, (7, 7))._credentials
        for url in ("https://h:44/lib.git", "https://h/lib.git", "https://you:other@h:44/lib.git", "git@h:lib.git")
    }
    assert found == {
        "https://h:44/lib.git": ("me", "token"),
        "https://h/lib.git": None,
        "https://you:other@h:44/lib.git": ("you", "other"),
        "git@h:lib.git": None,
    }


# Archives


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


def test_a_tar_is_unpacked_without_its_owners_and_other_bits(tmp_path):
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


def test_a_zip_is_unpacked_with_executable_bits_and_links(tmp_path):
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


def test_a_tar_that_ends_in_a_zip_is_a_tar(tmp_path):
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
        ([("/escaped", {})], "'/escaped' leads out of it"),
        ([("../escaped", {})], "'../escaped' leads out of it"),
        ([("a/../../escaped", {})], "'a/../../escaped' leads out of it"),
        ([("a", {"type": LINK, "linkname": "/etc"})], "'a' is a link that leads out of it: '/etc'"),
        ([("a", {"type": LINK, "linkname": ".."})], "'a' is a link that leads out of it: '..'"),
        ([("x/a", {"type": LINK, "linkname": "../../y"})], "'x/a' is a link that leads out of it: '../../y'"),
        # Each link would be inside by itself, and both together outside.
        (
            [("x/a", {"type": LINK, "linkname": ".."}), ("b", {"type": LINK, "linkname": "x/a/../escaped"})],
            "'b' is a link that leads out of it: 'x/a/../escaped'",
        ),
        ([("x", {"type": FOLDER}), ("a", {"type": LINK, "linkname": "x"}), ("a/b", {})], "'a/b' leads through a link"),
        ([("a", {"type": HARD, "linkname": "../escaped"})], "'a' is a link to what is no file in it: '../escaped'"),
        ([("a", {"type": DEVICE})], "'a' is a device or a pipe; "),
        ([("a", {"type": PIPE})], "'a' is a device or a pipe; "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_hostile_entry_is_refused(tmp_path, entries, told):
    (tmp_path / "escaped").write_text("as it was")
    archive = tar(tmp_path / "a.tar", *((name, dict(settings)) for name, settings in entries))
    done = unpacked(archive, tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith(told)
    assert (tmp_path / "escaped").read_text() == "as it was"


@pytest.mark.parametrize("name", ["../escaped", "/escaped", "a/../../escaped"])
def test_a_hostile_entry_of_a_zip_is_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(name, "x")
    assert "leads out of it" in unpacked(tmp_path / "a.zip", tmp_path / "out").stderr
    assert not (tmp_path / "escaped").exists()


def bomb(path, *entries, mode="w:gz"):
    """An archive of files that have so many zeros."""
    with tarfile.open(path, mode) as archive:
        for name, size in entries:
            entry = tarfile.TarInfo(name)
            entry.size = size
            archive.addfile(entry, Zeros(size))
    return path


class Zeros(io.RawIOBase):
    """A file of nothing but zeros."""

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
    # A header that says less than there is.
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
def test_a_bomb_is_refused_with_its_limit_before_it_fills_the_disk(tmp_path, kind):
    make, told = BOMBS[kind]
    done = unpacked(make(tmp_path / "a"), tmp_path / "out", "shop" if kind.startswith("outside") else "")
    assert done.returncode == 1
    assert done.stderr.startswith(told), done.stderr
    assert done.stderr.count("\n") == 1
    written = [path.lstat() for path in (tmp_path / "out").rglob("*")]
    assert sum(found.st_size for found in written if stat.S_ISREG(found.st_mode)) <= 10 * 2**20
    assert len(written) <= 1000


def test_a_header_that_would_take_all_memory_is_refused(tmp_path):
    """tarfile reads the header of a long name as a whole."""
    entry = tarfile.TarInfo("././@LongLink")
    entry.type, entry.size = tarfile.GNUTYPE_LONGNAME, 2**40
    (tmp_path / "a.tar").write_bytes(entry.tobuf(tarfile.GNU_FORMAT) + bytes(2**16))
    done = unpacked(tmp_path / "a.tar", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith(f"{KEY}:files: to unpack it takes more than 1025 MiB of memory")


def test_a_folder_that_is_not_there_is_told_with_those_that_are(tmp_path):
    done = unpacked(tar(tmp_path / "a.tar", ("shop-1/x", {}), ("docs/x", {})), tmp_path / "out", "shop")
    assert done.stderr.strip() == "there is no folder 'shop' in it; at its top are: docs, shop-1"


def test_what_is_no_archive_is_told(tmp_path):
    (tmp_path / "a.tar").write_text("nothing of that kind")
    assert unpacked(tmp_path / "a.tar", tmp_path / "out").stderr.strip() == "File is not a zip file"
