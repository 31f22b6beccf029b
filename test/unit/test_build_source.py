"""Sources: their identity, links within them, and their limits."""

import os

import pytest
from wsgi_formula.app.release import DesiredRelease
from wsgi_formula.build import source as sources
from wsgi_formula.errors import WsgiError
from wsgi_formula.pillar.app import App

COMMIT = "0f1e2d3c" * 5
HASH = "0f" * 32


@pytest.fixture
def source_of(make_host):
    """source_of(source, **settings) returns the Source of an app with these settings."""
    host = make_host({"apps": {}})

    def of(source, name="shop", **settings):
        app = App(name, {**host.settings.defaults, "source": source, **settings}, host.servers)
        return sources.source_of(host, app)

    return of


def test_identity_of_a_salt_folder_is_that_of_its_files(source_of):
    hello = source_of("salt://wsgi/examples/hello")
    assert hello.identity == source_of("salt://wsgi/examples#subdirectory=hello").identity
    assert hello.identity != source_of("salt://wsgi/examples/flask").identity
    assert "application" in hello.read("hello.py")
    assert hello.read("no.py") is None


def test_identity_of_a_commit_does_not_depend_on_its_url(source_of):
    source = source_of(f"git+https://me:secret@h/s.git@{COMMIT}#subdirectory=web")
    assert source.identity == source_of(f"git+ssh://git@other/s.git@{COMMIT}#subdirectory=web").identity
    assert source.identity != source_of(f"git+ssh://git@other/s.git@{COMMIT}").identity
    assert source.revision == {"commit": COMMIT}
    assert source.text == f"git+https://me:***@h/s.git@{COMMIT}#subdirectory=web"
    assert source.read("requirements.txt") is None


def test_revision_of_a_deploy_has_its_branch_or_tag(source_of):
    source = f"git+https://h/s.git@{COMMIT}"
    # The source of pillar comes first, as in a run.
    assert source_of(source).revision == {"commit": COMMIT}
    assert source_of(source, ref="v1").revision == {"commit": COMMIT, "ref": "v1"}
    assert source_of(source, ref=COMMIT).revision == {"commit": COMMIT}
    assert source_of(source, ref="v1").identity == source_of(source).identity


def test_sources_with_resolved_and_unresolved_keys_are_distinct(source_of):
    source = f"git+ssh://git@h/s.git@{COMMIT}"
    found, earlier = source_of(source, deploy_key="looked up"), source_of(source, deploy_key="sdb://keys/shop")
    assert found.app["deploy_key"] == "looked up"
    assert earlier.app["deploy_key"] == "sdb://keys/shop"
    assert source_of(source, deploy_key="looked up") is found


def test_identity_of_an_archive_is_its_hash(source_of):
    source = source_of(f"https://me:secret@h/s.zip#sha256={HASH}")
    assert source.identity == source_of(f"salt://s.zip#sha256={HASH}").identity
    assert source.revision == {"sha256": HASH}


def test_requirement_as_a_source_is_the_only_requirement(source_of):
    assert source_of("shop==1.4").requirements == ["shop==1.4"]
    assert source_of("shop==1.4").identity != source_of("shop==1.5").identity


def test_identity_of_a_folder_is_that_of_its_files_links_and_executable_bits(source_of, tmp_path):
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
def test_link_out_of_a_source_is_refused(source_of, tmp_path, target):
    folder = tmp_path / "shop"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "copy").mkdir()
    (folder / "sub/up").symlink_to("../..")
    if target != "sub/up":
        (folder / "sub/up").unlink()
        (folder / "link").symlink_to(target)
    told = "^wsgi:apps:shop:source: '(link|sub/up)' is a link that leads out of the folder: '.*'; remove it from the source"
    with pytest.raises(WsgiError, match=told):
        source_of(str(folder)).fetch(str(tmp_path / "copy"), 0, 0)


@pytest.mark.parametrize("target", ["sub", "sub/../file", "missing/file", "link", ".", "sub/top/sub"])
def test_link_within_a_source_is_kept(source_of, tmp_path, target):
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
        ({"big": 1025}, "size: the source holds more than 1k; 'big' does not fit; raise the limit if"),
        ({"a": 512, "b": 513}, "size: the source holds more than 1k; 'b' does not"),
        ({str(number): 0 for number in range(6)}, "files: the source holds more than 5 files and folders; '5' is"),
        ({"a/b/c/d": 0}, "depth: 'a/b/c/d'… is more than 3 folders deep in the source"),
    ],
    ids=["a file", "files together", "many", "deep"],
)
def test_folder_beyond_a_limit_is_refused_before_it_is_read(source_of, tmp_path, files, told):
    for name, size in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    with pytest.raises(WsgiError) as problem:
        assert source_of(str(tmp_path), source_limits=LIMITS).identity
    assert str(problem.value).startswith(f"wsgi:apps:shop:source_limits:{told}")


def test_limits_do_not_change_the_identity_of_a_source(source_of, make_host):
    assert (
        source_of("salt://wsgi/examples/hello").identity
        == source_of("salt://wsgi/examples/hello", name="other", source_limits=LIMITS).identity
    )
    one, other = (
        make_host({"apps": {"shop": {"source": "salt://wsgi/examples/hello", "application": "a:b", **more}}})
        for more in ({}, {"source_limits": {"files": 7}})
    )
    assert other.settings.apps["shop"]["source_limits"] == {"size": "2g", "files": 7, "depth": 64}
    ids = {DesiredRelease(host, host.settings.apps["shop"]).id for host in (one, other)}
    assert len(ids) == 1


def test_limits_apply_to_salt_folders_too(source_of, tmp_path):
    with pytest.raises(WsgiError, match="^wsgi:apps:shop:source_limits:size: the source holds more than 1;"):
        source_of("salt://wsgi/examples/hello", source_limits={**LIMITS, "size": 1}).fetch(str(tmp_path), 0, 0)


def test_folder_that_changes_while_it_is_copied_is_refused(source_of, tmp_path):
    (tmp_path / "shop.py").write_text("1")
    source = source_of(str(tmp_path))
    assert source.identity
    (tmp_path / "shop.py").write_text("2")
    (tmp_path / "copy").mkdir()
    with pytest.raises(WsgiError, match="^wsgi:apps:shop:source: .* was changed while it was copied"):
        source.fetch(str(tmp_path / "copy"), 0, 0)
