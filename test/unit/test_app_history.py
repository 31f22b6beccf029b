"""The history of an app: its entries, the settings that it keeps, and where a rollback leads."""

import json
from pathlib import Path

import pytest
from unit.conftest import host_of
from wsgi_formula import files
from wsgi_formula.app import history
from wsgi_formula.app import release as releases
from wsgi_formula.app.history import ERROR_LENGTH
from wsgi_formula.app.release import Release


@pytest.fixture
def host(tmp_path, monkeypatch):
    monkeypatch.setattr(history, "LIB", str(tmp_path))
    monkeypatch.setattr(history, "HISTORY", str(tmp_path / "history"))
    monkeypatch.setattr(files, "ensure_dir", lambda path, mode: Path(path).mkdir(exist_ok=True))
    monkeypatch.setattr(files, "write", lambda path, text, mode: Path(path).write_text(text))
    monkeypatch.setattr(files.logger, "disabled", True)
    files.damaged_records.clear()
    files.take_damage_reports()
    return host_of({"apps": {}})


def went(host, *ids, back_to=None):
    """Record that generations of the shop went live one after the other, and keep all of them."""
    for id in ids:
        history.add(host, "shop", "rollback" if back_to else "live", generation=id, to=back_to)
        with open(f"{history.HISTORY}/shop/{id}.json", "w") as file:
            json.dump({"release": f"release-of-{id}", "settings": {}}, file)


def test_facts_of_a_damaged_release_are_restored_from_the_history(host, tmp_path, monkeypatch):
    monkeypatch.setattr(releases, "SRV", str(tmp_path))
    facts = {"source": "git+https://h/s.git@v1", "revision": {"commit": "0f1e", "ref": "v1"}}
    history.add(host, "shop", "live", generation="a", release="r", **facts)
    live_at = history.entries("shop")[0]["at"]
    history.add(host, "shop", "failed", release="r", error="no")
    history.add(host, "shop", "live", generation="b", release="other", source="salt://x")
    release = Release("shop", "r")
    Path(release.path).mkdir(parents=True)
    Path(release.path, "environment").symlink_to("../../environments/e")
    Path(release.path, "release.json").write_text("{")
    assert release.record == {"environment": "e", "live": live_at, **facts}


def test_rollback_leads_to_the_previous_generation(host):
    went(host, "a", "b", "c")
    assert history.rollback_target("shop", "c") == "b"
    assert history.rollback_target("shop", "a") is None


def test_second_rollback_leads_further_back(host):
    went(host, "a", "b", "c")
    went(host, "b", back_to="b")
    assert history.rollback_target("shop", "b") == "a"


def test_rollback_may_give_a_generation_another_id(host):
    went(host, "a", "b", "c")
    went(host, "b2", back_to="b")
    assert history.rollback_target("shop", "b2") == "a"


def test_generation_that_went_live_again_counts_as_the_last(host):
    went(host, "a", "b", "c", "a")
    assert history.rollback_target("shop", "a") == "c"


def test_equal_generation_is_skipped_by_a_rollback(host):
    went(host, "a", "b", "b-2", "b-3")
    assert history.rollback_target("shop", "b-3") == "a"


def test_failed_or_removed_generation_is_skipped_by_a_rollback(host):
    went(host, "a", "b", "c")
    history.add(host, "shop", "failed", release="r", error="no")
    files.remove(f"{history.HISTORY}/shop/b.json")
    assert history.rollback_target("shop", "c") == "a"


def test_repeated_failure_is_counted_in_one_entry(host):
    for second in range(3):
        history.add(host, "shop", "failed", release="r", error=f"did not start\nat second {second}")
    history.add(host, "shop", "failed", release="other", error="did not start")
    assert [(entry["release"], entry.get("times")) for entry in history.entries("shop")] == [
        ("r", 3),
        ("other", None),
    ]


def test_number_and_length_of_entries_are_limited(host, monkeypatch):
    monkeypatch.setattr(history, "KEEP_ENTRIES", 3)
    for number in range(5):
        history.add(host, "shop", "failed", error=f"{number}\n" + "x" * 10_000 + "why")
    found = history.entries("shop")
    assert [entry["error"].split("\n")[0] for entry in found] == ["2", "3", "4"]
    assert all(entry["error"].endswith("xxwhy") for entry in found)
    assert max(len(entry["error"]) for entry in found) == len("2\n") + ERROR_LENGTH


def test_settings_of_a_removed_release_are_deleted(host):
    went(host, "a", "b", "c")
    history.forget_settings("shop", {"release-of-b"}, 3, "c")
    assert [id for id in "abc" if history.kept_settings("shop", id)] == ["b", "c"]


def kept_after(host, count, *needed, releases=None):
    ids = {entry["generation"] for entry in history.entries("shop")}
    history.forget_settings("shop", releases or {f"release-of-{id}" for id in ids}, count, *needed)
    return sorted(path.stem for path in Path(f"{history.HISTORY}/shop").glob("*.json*"))


def keep(id, release):
    Path(f"{history.HISTORY}/shop/{id}.json").write_text(json.dumps({"release": release, "settings": {}}))


def test_settings_are_kept_for_the_last_generations_and_the_last_of_each_release(host):
    went(host, "a", "b", "c", "d", "e", "f")
    for id in "def":
        keep(id, "release-of-d")
    # b's release is gone, and of d's, which three have run, two may come back.
    there = {"release-of-a", "release-of-c", "release-of-d"}
    assert kept_after(host, 2, "f", releases=there) == ["a", "c", "e", "f"]
    assert kept_after(host, 1, "f", releases={"release-of-d"}) == ["f"]


def test_settings_that_went_live_again_are_deleted_last(host):
    went(host, "a", "b", "c")
    went(host, "a-2", back_to="a")
    keep("a-2", "release-of-a")
    keep("c", "release-of-b")
    assert kept_after(host, 2, "a-2") == ["a", "a-2", "c"]


def test_settings_that_never_went_live_are_deleted_unless_they_are_needed(host):
    went(host, "a", "b")
    keep("x", "release-of-a")
    keep("pinned", "release-of-a")
    assert kept_after(host, 3, "b", "pinned") == ["a", "b", "pinned"]


def test_damaged_settings_are_skipped_by_a_rollback_and_deleted(host):
    went(host, "a", "b", "c")
    for contents in ("", "[]", '{"release": "release-of-b"}'):
        Path(f"{history.HISTORY}/shop/b.json").write_text(contents)
        assert history.rollback_target("shop", "c") == "a"
    assert kept_after(host, 3, "c") == ["a", "c"]


@pytest.mark.parametrize("line", [b"", b"{", b"\xff", b"[]", b"{}", b'{"event": "live", "at": 1}', b"[" * 100_000])
def test_damaged_line_of_the_history_is_omitted(host, line):
    went(host, "a", "b")
    log = Path(f"{history.HISTORY}/shop/log")
    first, second = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(first + line + b"\n" + second)
    assert [entry["generation"] for entry in history.entries("shop")] == ["a", "b"]
    assert files.take_damage_reports()[0].startswith(f"{log} is damaged (line 2): the other entries are kept")
    went(host, "c")
    assert [entry["generation"] for entry in history.entries("shop")] == ["a", "b", "c"]


def test_repeatedly_rolled_back_change_is_counted_in_one_entry(host):
    went(host, "a")
    for second in range(3):
        history.add(host, "shop", "live", generation="b", change=f"live {second}")
        why = f"after_live failed\nat second {second}"
        history.add(host, "shop", "rollback", generation="a", to="a", change=f"back {second}", error=why)
    assert [(entry["generation"], entry.get("times")) for entry in history.entries("shop")] == [
        ("a", None),
        ("b", None),
        ("a", 3),
    ]


def test_entry_of_a_killed_change_is_written_once(host, monkeypatch):
    went(host, "a")
    entry = history.entry(host, "live", generation="b", change="1f")
    monkeypatch.setattr(history, "going_live", lambda name: {"entry": entry})
    for _ in range(2):
        assert [each["generation"] for each in history.entries("shop")] == ["a", "b"]
        history.settle("shop")
    monkeypatch.setattr(history, "going_live", lambda name: {})
    assert history.entries("shop")[1:] == [entry]
    history.add_error("shop", "1f", "after_live failed")
    assert [each.get("error") for each in history.entries("shop")] == [None, "after_live failed"]
