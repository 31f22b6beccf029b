"""Overrides: a deployed source or a pin replaces the source of pillar, until pillar changes."""

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


def deploy(host, source, rev=None):
    set_override(host, "shop", deploy_override(host, "shop", source, rev))


def test_deployed_revision_stays_until_pillar_changes(host):
    deploy(host(), "git+https://git.example.com/shop.git@v2", "v2")
    assert desired_app(host(), "shop")["source"].endswith("@v2")
    assert describe_override(host(workers=3), "shop").startswith("v2 was deployed at ")
    other = host(source="git+https://git.example.com/shop.git@v3")
    assert desired_app(other, "shop")["source"].endswith("@v3")
    assert describe_override(other, "shop") == ""


@pytest.mark.parametrize(
    ("more", "ref"), [({"ref": "v2"}, "v2"), ({"rev": "v2"}, "v2"), ({"rev": "v2", "ref": None}, None)]
)
def test_deployed_revision_has_its_branch_or_tag(host, more, ref):
    first = host()
    said = deploy_override(first, "shop", f"git+https://git.example.com/shop.git@{40 * '0'}")
    set_override(first, "shop", {**said, **more})
    assert desired_app(host(), "shop")["ref"] == ref


def test_description_of_an_override_has_no_credentials(host):
    deploy(host(), "https://me:hunter2@example.com/shop.zip#sha256=" + 64 * "0")
    assert "https://me:***@example.com/shop.zip" in describe_override(host(), "shop")


def test_run_stops_if_another_run_changed_the_override(host):
    first, second = host(), host()
    for each in (first, second):
        assert active_override(each, "shop") == {}
    deploy(second, "/srv/shop")
    check_override_unchanged(second, "shop")
    with pytest.raises(WsgiError, match="another run deployed, pinned or unpinned shop meanwhile"):
        check_override_unchanged(first, "shop")


def test_dry_run_does_not_store_the_override(host):
    trying = host()
    set_override(trying, "shop", deploy_override(trying, "shop", "/srv/shop"), write=False)
    assert desired_app(trying, "shop")["source"] == "/srv/shop"
    assert active_override(host(), "shop") == {}
