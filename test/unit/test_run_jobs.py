"""Scheduled commands: their timers and services."""

import pytest
from conftest import files_of, unit_options
from pillars import BESIDE, HELLO
from wsgi_formula.errors import WsgiError
from wsgi_formula.run import jobs
from wsgi_formula.run.jobs import check_schedule

ETC = "/etc/systemd/system/wsgi-shop.0123456789"


def test_scheduled_command_is_a_timer_and_a_service(make_generation):
    files = files_of(make_generation(BESIDE))
    assert unit_options(files[f"{ETC}.cleanup.timer"])["OnCalendar"] == "Mon..Fri 04:30"
    unit = unit_options(files[f"{ETC}.cleanup.service"])
    assert (unit["Type"], unit["User"], unit["TimeoutStartSec"]) == ("oneshot", "wsgi-shop", "60")
    assert unit["ExecStart"].endswith('/with-environment" "/etc/wsgi/shop/0123456789" "clean" "50%%" "$$HOME"')
    assert unit["StandardOutput"] == "append:/var/log/wsgi/shop/0123456789.cleanup.log"


def test_invalid_calendar_is_named(monkeypatch, load, tmp_path):
    analyze = tmp_path / "systemd-analyze"
    analyze.write_text("#!/bin/sh\n[ \"$1 $2 $3\" = 'calendar -- daily' ] || { echo Failed to parse; exit 1; }\n")
    analyze.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    jobs = {"one": {"command": "a", "calendar": "daily"}, "two": {"command": "b", "calendar": "dayly"}}
    app = load({"apps": {"shop": {**HELLO, "schedule": jobs}}}).apps["shop"]
    with pytest.raises(WsgiError) as problem:
        check_schedule("shop", app)
    assert str(problem.value).startswith("wsgi:apps:shop:schedule:two:calendar: systemd does not accept 'dayly'; ")
    assert "schedule:one" not in str(problem.value)


def test_times_of_systemd_are_converted():
    assert jobs._time("Mon 2026-11-23 06:10:00 UTC") == "2026-11-23 06:10:00"
    assert jobs._time("n/a") is None
    assert jobs._time("") is None
