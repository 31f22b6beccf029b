"""Programs: their commands, their process managers, and those that are found without a record."""

import pytest
from pillars import BESIDE, HELLO
from wsgi_formula.run import programs
from wsgi_formula.run.managers import MANAGERS
from wsgi_formula.run.programs import known_programs, managers_of


def test_process_managers_of_an_app_are_known(load):
    def managers(**own):
        return managers_of(load({"apps": {"shop": {**HELLO, **own}}}).apps["shop"])

    assert managers() == ["supervisor"]
    assert managers(processes=BESIDE["processes"]) == ["supervisor"]
    assert managers(schedule=BESIDE["schedule"]) == ["supervisor", "systemd"]
    assert managers(server="uwsgi", processes=BESIDE["processes"]) == ["emperor", "systemd"]


@pytest.mark.parametrize("command", ["it's", "", " ", "one\ntwo", [], "''\0"])
def test_ambiguous_command_is_refused(load, command):
    problems = load({"apps": {"shop": {**HELLO, "processes": {"worker": {"command": command}}}}}).messages
    assert len(problems) == 1
    assert problems[0].startswith("wsgi:apps:shop:processes:worker:command: ")


@pytest.mark.parametrize(
    ("files", "known"),
    [
        (["emperor/shop.ab.ini"], ("emperor", {}, [])),
        (["emperor/shop.ab.ini", "systemd/wsgi-shop.ab.mail.2.service"], ("emperor", {"mail": 2}, [])),
        (
            ["supervisor/wsgi-shop.ab.conf", *(f"supervisor/wsgi-shop.ab.mail.{number}.conf" for number in (1, 2, 10))],
            ("supervisor", {"mail": 10}, []),
        ),
        (
            ["systemd/wsgi-shop.ab.service", "systemd/wsgi-shop.ab.log.service", "systemd/wsgi-shop.ab.often.timer"],
            ("systemd", {}, ["often"]),
        ),
        (["circus/shop.ab.ini"], ("circus", {}, [])),
        (["gaffer/shop.ab.mail.1.ini"], ("gaffer", {"mail": 1}, [])),
        (["circus/shop.ab-2.ini", "circus/other.ab.ini", "systemd/wsgi-shop.abc.service"], None),
    ],
)
def test_generation_is_found_under_every_process_manager(make_host, tmp_path, monkeypatch, files, known):
    folders = {name: tmp_path / name for name in MANAGERS}
    for folder in folders.values():
        folder.mkdir()
    for file in files:
        (tmp_path / file).touch()
    monkeypatch.setattr(programs, "program_folders", lambda host: folders)
    found = known_programs(make_host({"apps": {}}), "shop.ab")
    if known is None:
        assert found is None
    else:
        counts = {name: process["count"] for name, process in found["processes"].items()}
        assert (found["process_manager"], counts, [*found["schedule"]]) == known
