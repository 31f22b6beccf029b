"""What is written down of an app, and which way back it leads."""

import json
from pathlib import Path

import pytest
from unit.conftest import host_of
from wsgi_formula import files
from wsgi_formula.app import history
from wsgi_formula.app import release as releases
from wsgi_formula.app.history import REASON
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
    """Generations of the shop that went live one after the other; all of them are kept."""
    for id in ids:
        history.add(host, "shop", "rollback" if back_to else "live", generation=id, to=back_to)
        with open(f"{history.HISTORY}/shop/{id}.json", "w") as file:
            json.dump({"release": f"release-of-{id}", "settings": {}}, file)


def test_a_damaged_release_is_known_by_what_the_history_tells_of_it(host, tmp_path, monkeypatch):
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


def test_the_way_back_leads_to_the_one_before(host):
    went(host, "a", "b", "c")
    assert history.rollback_target("shop", "c") == "b"
    assert history.rollback_target("shop", "a") is None


def test_after_a_way_back_the_next_one_leads_further_and_not_forward(host):
    went(host, "a", "b", "c")
    went(host, "b", back_to="b")
    assert history.rollback_target("shop", "b") == "a"


def test_a_generation_gone_back_to_may_have_another_id(host):
    went(host, "a", "b", "c")
    went(host, "b2", back_to="b")
    assert history.rollback_target("shop", "b2") == "a"


def test_one_that_went_live_again_is_the_last_one_again(host):
    went(host, "a", "b", "c", "a")
    assert history.rollback_target("shop", "a") == "c"


def test_an_equal_one_is_no_way_back(host):
    went(host, "a", "b", "b-2", "b-3")
    assert history.rollback_target("shop", "b-3") == "a"


def test_what_failed_or_is_not_kept_is_no_way_back(host):
    went(host, "a", "b", "c")
    history.add(host, "shop", "failed", release="r", error="no")
    files.remove(f"{history.HISTORY}/shop/b.json")
    assert history.rollback_target("shop", "c") == "a"


def test_a_failure_that_comes_again_is_counted(host):
    for second in range(3):
        history.add(host, "shop", "failed", release="r", error=f"did not start\nat second {second}")
    history.add(host, "shop", "failed", release="other", error="did not start")
    assert [(entry["release"], entry.get("times")) for entry in history.entries("shop")] == [
        ("r", 3),
        ("other", None),
    ]


def test_no_more_is_kept_than_so_many_entries_and_characters(host, monkeypatch):
    monkeypatch.setattr(history, "KEEP_ENTRIES", 3)
    for number in range(5):
        history.add(host, "shop", "failed", error=f"{number}\n" + "x" * 10_000 + "why")
    found = history.entries("shop")
    assert [entry["error"].split("\n")[0] for entry in found] == ["2", "3", "4"]
    assert all(entry["error"].endswith("xxwhy") for entry in found)
    assert max(len(entry["error"]) for entry in found) == len("2\n") + REASON


def test_the_settings_of_a_release_that_is_gone_are_forgotten(host):
    went(host, "a", "b", "c")
    history.forget_settings("shop", {"release-of-b"}, 3, "c")
    assert [id for id in "abc" if history.kept_settings("shop", id)] == ["b", "c"]


def kept_after(host, count, *needed, releases=None):
    ids = {entry["generation"] for entry in history.entries("shop")}
    history.forget_settings("shop", releases or {f"release-of-{id}" for id in ids}, count, *needed)
    return sorted(path.stem for path in Path(f"{history.HISTORY}/shop").glob("*.json*"))


def keep(id, release):
    Path(f"{history.HISTORY}/shop/{id}.json").write_text(json.dumps({"release": release, "settings": {}}))


def test_settings_are_kept_of_so_many_generations_as_releases_and_of_the_last_of_each_release(host):
    went(host, "a", "b", "c", "d", "e", "f")
    for id in "def":
        keep(id, "release-of-d")
    # b's release is gone, and of d's, which three have run, two may come back.
    there = {"release-of-a", "release-of-c", "release-of-d"}
    assert kept_after(host, 2, "f", releases=there) == ["a", "c", "e", "f"]
    assert kept_after(host, 1, "f", releases={"release-of-d"}) == ["f"]


def test_what_went_live_again_is_the_last_to_be_forgotten(host):
    went(host, "a", "b", "c")
    went(host, "a-2", back_to="a")
    keep("a-2", "release-of-a")
    keep("c", "release-of-b")
    assert kept_after(host, 2, "a-2") == ["a", "a-2", "c"]


def test_settings_of_what_never_went_live_are_forgotten_and_those_that_are_needed_never(host):
    went(host, "a", "b")
    keep("x", "release-of-a")
    keep("pinned", "release-of-a")
    assert kept_after(host, 3, "b", "pinned") == ["a", "b", "pinned"]


def test_damaged_settings_are_no_way_back_and_go(host):
    went(host, "a", "b", "c")
    for contents in ("", "[]", '{"release": "release-of-b"}'):
        Path(f"{history.HISTORY}/shop/b.json").write_text(contents)
        assert history.rollback_target("shop", "c") == "a"
    assert kept_after(host, 3, "c") == ["a", "c"]


@pytest.mark.parametrize("line", [b"", b"{", b"\xff", b"[]", b"{}", b'{"event": "live", "at": 1}', b"[" * 100_000])
def test_a_line_of_the_history_that_is_no_entry_is_left_out(host, line):
    went(host, "a", "b")
    log = Path(f"{history.HISTORY}/shop/log")
    first, second = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(first + line + b"\n" + second)
    assert [entry["generation"] for entry in history.entries("shop")] == ["a", "b"]
    assert files.take_damage_reports()[0].startswith(f"{log} is damaged (line 2): the other entries are kept")
    went(host, "c")
    assert [entry["generation"] for entry in history.entries("shop")] == ["a", "b", "c"]


def test_a_change_that_is_taken_back_again_and_again_is_counted(host):
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


def test_the_entry_of_a_killed_change_is_there_and_is_written_down_once(host, monkeypatch):
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
