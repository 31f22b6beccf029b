"""What is wanted of an app: pillar's word, what a machine says instead, and what its values stand for."""

import pytest
from wsgi_formula import files
from wsgi_formula.app import override
from wsgi_formula.app.desired import desired_app
from wsgi_formula.app.override import (
    active_override,
    check_override_unchanged,
    deploy_override,
    describe_override,
    set_override,
)
from wsgi_formula.errors import WsgiError

SHOP = {"source": "git+https://git.example.com/shop.git@v1", "application": "shop:app"}


@pytest.fixture
def host(make_host, tmp_path, monkeypatch):
    """host({key: value, …}) is one with an app `shop` that says so; called again it is the next run."""
    monkeypatch.setattr(override, "ETC", str(tmp_path))
    monkeypatch.setattr(files, "write", lambda path, text, mode: (tmp_path / "shop" / "override.json").write_text(text))
    (tmp_path / "shop").mkdir()

    def host_of(**own):
        made = make_host({"apps": {"shop": {**SHOP, **own}}})
        assert made.settings.problems == []
        made.salt = {**made.salt, "sdb.get": lambda uri, strict: {"sdb://vault/key": "found"}.get(uri)}
        return made

    return host_of


def deploy(host, source, rev=None):
    set_override(host, "shop", deploy_override(host, "shop", source, rev))


def test_what_was_deployed_holds_until_pillar_says_something_else(host):
    deploy(host(), "git+https://git.example.com/shop.git@v2", "v2")
    assert desired_app(host(), "shop")["source"].endswith("@v2")
    assert describe_override(host(workers=3), "shop").startswith("v2 was deployed at ")
    other = host(source="git+https://git.example.com/shop.git@v3")
    assert desired_app(other, "shop")["source"].endswith("@v3")
    assert describe_override(other, "shop") == ""


@pytest.mark.parametrize(
    ("more", "ref"), [({"ref": "v2"}, "v2"), ({"rev": "v2"}, "v2"), ({"rev": "v2", "ref": None}, None)]
)
def test_a_deploy_tells_by_which_branch_or_tag_its_commit_was_found(host, more, ref):
    first = host()
    said = deploy_override(first, "shop", f"git+https://git.example.com/shop.git@{40 * '0'}")
    set_override(first, "shop", {**said, **more})
    assert desired_app(host(), "shop")["ref"] == ref


def test_a_sentence_tells_no_credentials(host):
    deploy(host(), "https://me:hunter2@example.com/shop.zip#sha256=" + 64 * "0")
    assert "https://me:***@example.com/shop.zip" in describe_override(host(), "shop")


def test_a_run_does_not_go_on_where_another_one_said_something_else(host):
    first, second = host(), host()
    for each in (first, second):
        assert active_override(each, "shop") == {}
    deploy(second, "/srv/shop")
    check_override_unchanged(second, "shop")
    with pytest.raises(WsgiError, match="another run changed what is wanted of shop meanwhile"):
        check_override_unchanged(first, "shop")


def test_what_is_only_tried_is_not_kept(host):
    trying = host()
    set_override(trying, "shop", deploy_override(trying, "shop", "/srv/shop"), write=False)
    assert desired_app(trying, "shop")["source"] == "/srv/shop"
    assert active_override(host(), "shop") == {}


def test_the_variables_of_files_come_first_and_those_of_pillar_last(host, tmp_path):
    one, two = tmp_path / "one.env", tmp_path / "two.env"
    one.write_text("# so\n\nA=1\nB=of one\nC=of one\n  export D = no name\n".replace("  export D = no name\n", ""))
    two.write_text("export B=of two\nQ='a # b'  # c\nE=\nH=x # y\nS=sdb://vault/key\n")
    app = desired_app(host(env_files=[str(one), str(two)], env={"C": "of pillar"}), "shop")
    assert app["env"] == {
        "A": "1", "B": "of two", "C": "of pillar", "Q": "a # b", "E": "", "H": "x # y", "S": "found",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("A=1\nhunter2", "line 2 of '{path}' is not NAME=value"),
        ("9A=hunter2", "line 1 of '{path}' is not NAME=value"),
        ("A ='hunter2'", "line 1 of '{path}' is not NAME=value"),
        ("A='hunter2", "line 1 of '{path}': its quotes don't match"),
        ("A='hunter2' 'more'", "line 1 of '{path}': its quotes don't match"),
        ("A=hunter2\0", "line 1 of '{path}' holds a character that no variable can, such as NUL"),
    ],
)
def test_a_line_that_says_nothing_is_told_by_its_number(host, tmp_path, text, problem):
    path = tmp_path / "bad.env"
    path.write_text(text)
    with pytest.raises(WsgiError) as raised:
        desired_app(host(env_files=[str(path)]), "shop")
    assert str(raised.value) == f"wsgi:apps:shop:env_files: {problem.format(path=path)}"


@pytest.mark.parametrize(
    ("key", "own"),
    [("env:KEY", {"env": {"KEY": "sdb://vault/none"}}), ("deploy_key", {"deploy_key": "sdb://vault/none"})],
)
def test_a_value_that_is_not_in_the_database_is_a_problem(host, key, own):
    with pytest.raises(WsgiError, match=f"wsgi:apps:shop:{key}: sdb://vault/none is not there"):
        desired_app(host(**own), "shop")


def test_a_deploy_key_may_stand_in_the_database(host):
    assert desired_app(host(deploy_key="sdb://vault/key"), "shop")["deploy_key"] == "found"
