"""What is written down of an app, and which way back it leads."""

import json
from pathlib import Path

import pytest
import wsgi_history
import wsgi_host


@pytest.fixture
def host(make_host, tmp_path, monkeypatch):
    monkeypatch.setattr(wsgi_history, "LIB", str(tmp_path))
    monkeypatch.setattr(wsgi_history, "HISTORY", str(tmp_path / "history"))
    monkeypatch.setattr(wsgi_host, "folder", lambda path, mode: Path(path).mkdir(exist_ok=True))
    monkeypatch.setattr(wsgi_host, "write", lambda path, text, mode: Path(path).write_text(text))
    return make_host({"apps": {}})


def went(host, *ids, back_to=None):
    """Generations of the shop that went live one after the other; all of them are kept."""
    for id in ids:
        wsgi_history.add(host, "shop", "rollback" if back_to else "live", generation=id, to=back_to)
        with open(f"{wsgi_history.HISTORY}/shop/{id}.json", "w") as file:
            json.dump({"release": f"release-of-{id}", "settings": {}}, file)


def test_the_way_back_leads_to_the_one_before(host):
    went(host, "a", "b", "c")
    assert wsgi_history.before("shop", "c") == "b"
    assert wsgi_history.before("shop", "a") is None


def test_after_a_way_back_the_next_one_leads_further_and_not_forward(host):
    went(host, "a", "b", "c")
    went(host, "b", back_to="b")
    assert wsgi_history.before("shop", "b") == "a"


def test_a_generation_gone_back_to_may_have_another_id(host):
    went(host, "a", "b", "c")
    went(host, "b2", back_to="b")
    assert wsgi_history.before("shop", "b2") == "a"


def test_one_that_went_live_again_is_the_last_one_again(host):
    went(host, "a", "b", "c", "a")
    assert wsgi_history.before("shop", "a") == "c"


def test_an_equal_one_is_no_way_back(host):
    went(host, "a", "b", "b-2", "b-3")
    assert wsgi_history.before("shop", "b-3") == "a"


def test_what_failed_or_is_not_kept_is_no_way_back(host):
    went(host, "a", "b", "c")
    wsgi_history.add(host, "shop", "failed", release="r", error="no")
    wsgi_host.remove(f"{wsgi_history.HISTORY}/shop/b.json")
    assert wsgi_history.before("shop", "c") == "a"


def test_a_failure_that_comes_again_is_counted(host):
    for second in range(3):
        wsgi_history.add(host, "shop", "failed", release="r", error=f"did not start\nat second {second}")
    wsgi_history.add(host, "shop", "failed", release="other", error="did not start")
    assert [(entry["release"], entry.get("times")) for entry in wsgi_history.entries("shop")] == [
        ("r", 3),
        ("other", None),
    ]


def test_no_more_is_kept_than_so_many_entries_and_characters(host, monkeypatch):
    monkeypatch.setattr(wsgi_history, "KEEP_ENTRIES", 3)
    for number in range(5):
        wsgi_history.add(host, "shop", "failed", error=f"{number}\n" + "x" * 10_000 + "why")
    found = wsgi_history.entries("shop")
    assert [entry["error"].split("\n")[0] for entry in found] == ["2", "3", "4"]
    assert all(entry["error"].endswith("xxwhy") for entry in found)
    assert max(len(entry["error"]) for entry in found) == len("2\n") + wsgi_history.REASON


def test_the_settings_of_a_release_that_is_gone_are_forgotten(host):
    went(host, "a", "b", "c")
    wsgi_history.forget("shop", {"release-of-b"}, 3, "c")
    assert [id for id in "abc" if wsgi_history.kept("shop", id)] == ["b", "c"]
