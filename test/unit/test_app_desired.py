"""The desired app: variables of files and pillar, and values from sdb."""

import pytest
from wsgi_formula import files
from wsgi_formula.app import override
from wsgi_formula.app.desired import desired_app
from wsgi_formula.errors import WsgiError

SHOP = {"source": "git+https://git.example.com/shop.git@v1", "application": "shop:app"}


@pytest.fixture
def host(make_host, tmp_path, monkeypatch):
    """host(**settings) returns a host with the app `shop` with these settings; each call is another run."""
    monkeypatch.setattr(override, "ETC", str(tmp_path))
    monkeypatch.setattr(files, "write", lambda path, text, mode: (tmp_path / "shop" / "override.json").write_text(text))
    (tmp_path / "shop").mkdir()

    def host_of(**own):
        made = make_host({"apps": {"shop": {**SHOP, **own}}})
        assert made.settings.messages == []
        made.salt = {**made.salt, "sdb.get": lambda uri, strict: {"sdb://vault/key": "found"}.get(uri)}
        return made

    return host_of


def test_variables_of_pillar_win_over_those_of_env_files(host, tmp_path):
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
        ("A=hunter2\0", "line 1 of '{path}' contains a character that no variable can hold, such as NUL"),
    ],
)
def test_invalid_line_of_an_env_file_is_reported_by_its_number(host, tmp_path, text, problem):
    path = tmp_path / "bad.env"
    path.write_text(text)
    with pytest.raises(WsgiError) as raised:
        desired_app(host(env_files=[str(path)]), "shop")
    assert str(raised.value) == f"wsgi:apps:shop:env_files: {problem.format(path=path)}"


@pytest.mark.parametrize(
    ("key", "own"),
    [("env:KEY", {"env": {"KEY": "sdb://vault/none"}}), ("deploy_key", {"deploy_key": "sdb://vault/none"})],
)
def test_missing_sdb_value_is_a_problem(host, key, own):
    with pytest.raises(WsgiError, match=f"wsgi:apps:shop:{key}: sdb has no value for sdb://vault/none"):
        desired_app(host(**own), "shop")


def test_deploy_key_may_come_from_sdb(host):
    assert desired_app(host(deploy_key="sdb://vault/key"), "shop")["deploy_key"] == "found"
