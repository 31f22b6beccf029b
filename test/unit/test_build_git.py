"""Git: references, credentials, and which submodules are allowed."""

import os
import subprocess

import pytest
from wsgi_formula.build import git
from wsgi_formula.build.git import Refused, Repository

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
def test_reference_is_resolved(revision, commit):
    assert git.find_commit(REFERENCES, revision) == commit * 40


@pytest.mark.parametrize(
    ("revision", "told"),
    [
        ("both", "'both' is both a branch and a tag; write @refs/heads/both or @refs/tags/both"),
        ("v1.4", "the repository has no branch and no tag 'v1.4'; did you mean 'v1.5'?"),
        ("refs/tags/v1.4", "the repository has no reference 'refs/tags/v1.4'; did you mean 'refs/tags/v1.5'"),
        ("0f1e2d3", "the repository has no branch and no tag '0f1e2d3'; a commit must be whole, 40 or 64"),
        ("zzz", "the repository has no branch and no tag 'zzz'"),
    ],
)
def test_unknown_reference_is_refused(revision, told):
    with pytest.raises(Refused) as error:
        git.find_commit(REFERENCES, revision)
    assert str(error.value).startswith(told)


def test_credentials_are_removed_from_the_url(monkeypatch):
    repository = Repository("https://me:s%40cret@h:44/s.git")
    assert repository.url == "https://h:44/s.git"
    assert repository.mirror == Repository("https://other@h:44/s.git").mirror
    environment = repository._environment("/home")
    assert (environment["WSGI_GIT_USERNAME"], environment["WSGI_GIT_PASSWORD"]) == ("me", "s@cret")
    assert "cret" not in repository._configuration()


def test_credential_helper_answers_only_for_its_host(tmp_path):
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


def test_certificate_authorities_of_the_environment_reach_git(monkeypatch):
    monkeypatch.delenv("GIT_SSL_CAINFO", raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", "/etc/own.pem")
    assert Repository("https://h/s.git")._environment("/home")["GIT_SSL_CAINFO"] == "/etc/own.pem"


@pytest.mark.parametrize(
    ("url", "file"), [("https://h/s.git", False), ("ssh://h/s.git", False), ("file:///s.git", True)]
)
def test_local_repositories_are_allowed_only_for_a_local_source(url, file):
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
def test_relative_url_of_a_submodule_is_resolved(url, relative, absolute):
    assert git.submodule_url(url, relative) == absolute


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
def test_submodule_may_use_only_the_schemes_of_its_repository(main, url, schemes):
    repository = Repository(main)
    if repository.scheme in schemes:
        assert repository._submodule("lib", url, (7, 7)).scheme in ("https", "ssh", "file")
    else:
        with pytest.raises(Refused, match="^submodule 'lib' is at '.*'; allowed are https://, ssh://"):
            repository._submodule("lib", url, (7, 7))


def test_submodule_gets_only_the_credentials_of_its_own_host():
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
