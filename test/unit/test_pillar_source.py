"""The text of a source in pillar, and its revision."""

import pytest
from wsgi_formula.build.source import with_revision
from wsgi_formula.pillar.source import SourceSpec, parse_source

COMMIT = "0f1e2d3c" * 5
HASH = "0f" * 32


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
def test_source_is_parsed(text, source):
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
        (
            "git+https://h/s.git@--upload-pack=x",
            "has the revision '--upload-pack=x', which is not a valid branch, tag or commit",
        ),
        ("git+https://h/s.git@a..b", "has the revision 'a..b', which is not a valid branch, tag or commit"),
        ("git+http://h/s.git@v1", "must be git+https://…, git+ssh://… or git+file://…"),
        ("git+ext::sh@v1", "must be git+https://…, git+ssh://… or git+file://…"),
        ("git+https:///s.git@v1", "must be git+https://…, git+ssh://… or git+file://…"),
        ("git+file://h/s.git@v1", "must be git+https://…, git+ssh://… or git+file://…"),
        (
            "git+ssh://git@h:org/s.git@v1",
            "must have a port number after the colon; write host/path instead of host:path",
        ),
        (
            "git+ssh://git:x@h/s.git@v1",
            "must have no password, which all users could see in the list of processes; use deploy_key",
        ),
        ("git+https://h/s.git@v1#egg=shop", "has an unknown option #egg (#subdirectory=)"),
        ("git+https://h/s.git@v1#subdirectory=../x", "has the subdirectory '../x', which is outside of the source"),
        ("https://h/s.tar.gz", "is an archive and must end in #sha256= and the hash that `sha256sum` prints"),
        ("https://h/s.zip#sha256=0f", "must have a sha256 of 64 hexadecimal digits"),
        ("/opt/../etc", "must be the absolute path of a folder, without .."),
        ("/", "must be the absolute path of a folder, without .."),
    ],
)
def test_invalid_source_is_refused(text, told):
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
def test_changing_the_revision_keeps_the_rest_of_the_source(text, revision, other):
    assert with_revision(text, revision) == other


@pytest.mark.parametrize(
    ("text", "revision", "told"),
    [
        ("salt://shop", "v2", "salt://shop has no revisions; deploy another archive or folder with source="),
        ("/opt/shop", "v2", "/opt/shop has no revisions"),
        (f"https://u:secret@h/s.zip#sha256={HASH}", "v2", "https://u:***@h/s.zip"),
        ("git+https://u:secret@h/s.git@v1", "-x", "has the revision '-x', which is not a valid branch, tag or commit"),
        ("shop==1.4", "1.5; rm", "must be "),
    ],
)
def test_source_without_revisions_refuses_one(text, revision, told):
    with pytest.raises(ValueError) as error:
        with_revision(text, revision)
    assert told in str(error.value)
    assert "secret" not in str(error.value)
