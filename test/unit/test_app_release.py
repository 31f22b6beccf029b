"""A damaged release is rebuilt beside it."""

import os

import pytest
from wsgi_formula.app.release import undamaged_release

OTHER = 54323
pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root may give files away")


@pytest.fixture
def releases(tmp_path, monkeypatch):
    """The folder of the shop's releases, beside one finished environment; all belongs to root."""
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


def test_damaged_release_is_rebuilt_under_the_next_number(releases):
    assert undamaged(releases) == "abc"
    make_release(releases, "abc")
    assert undamaged(releases) == "abc"
    (releases / "abc/code").chmod(0o777)
    assert undamaged(releases) == "abc-2"
    # A killed build leaves it without a record.
    (releases / "abc-2/code").mkdir(parents=True)
    assert undamaged(releases) == "abc-2"
    make_release(releases, "abc-3")
    assert undamaged(releases) == "abc-3"
    (releases / "abc/release.json").unlink()
    assert undamaged(releases) == "abc-3"
    (releases / "abc-3/code").rmdir()
    assert undamaged(releases) == "abc"


def test_release_with_a_damaged_environment_is_damaged(releases):
    make_release(releases, "abc")
    os.chown(releases.parent / "environments/e", OTHER, OTHER)
    assert undamaged(releases) == "abc-2"
