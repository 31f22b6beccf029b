"""Programs of a generation: the server, processes and scheduled commands; how they start, fail and stop."""

import configparser
import os
import pwd
import shlex
import signal
import subprocess
import threading
import uuid
from pathlib import Path

import pytest
from pillars import HELLO
from wsgi_formula import files, process
from wsgi_formula.errors import WsgiError
from wsgi_formula.run import generation, jobs, programs, unit_processes
from wsgi_formula.run.generation import Generation
from wsgi_formula.run.jobs import Job, check_schedule
from wsgi_formula.run.managers import MANAGERS, emperor
from wsgi_formula.run.managers.base import Program
from wsgi_formula.run.managers.circus import Circus
from wsgi_formula.run.managers.emperor import Emperor
from wsgi_formula.run.managers.gaffer import Gaffer
from wsgi_formula.run.managers.supervisor import Supervisor
from wsgi_formula.run.managers.systemd import Systemd
from wsgi_formula.run.programs import ProgramFailed, check_running, known_programs, managers_of
from wsgi_formula.run.record import LAYOUT, settings_record
from wsgi_formula.run.unit_processes import MARK

ROOT = Path(__file__).resolve().parents[2]
WORKER = {"command": "celery worker --name '100% \"it\"'", "count": 2, "graceful_timeout": 7}
CLEANUP = {"command": ["clean", "50%", "$HOME"], "calendar": "Mon..Fri 04:30", "timeout": 60}
BESIDE = {"processes": {"worker": WORKER}, "schedule": {"cleanup": CLEANUP}}
ETC = "/etc/systemd/system/wsgi-shop.0123456789"


@pytest.fixture
def make_generation(make_host, monkeypatch):
    """make_generation({key: value, …}, *forgotten) returns a generation of such an app, whose record lacks those settings."""
    nobody = pwd.struct_passwd(("nobody", "x", 65534, 65534, "", "/", "/bin/false"))
    monkeypatch.setattr(pwd, "getpwnam", lambda name: nobody)

    def generation_of(own, *forgotten):
        host = make_host({"apps": {"shop": {**HELLO, "graceful_timeout": 20, **own}}})
        assert host.settings.messages == []
        settings = settings_record(host.settings.apps["shop"])
        record = {
            "layout": LAYOUT,
            "server": settings["server"],
            "process_manager": settings["process_manager"],
            "protocol": "http",
            "user": "wsgi-shop",
            "release": "abcdef0123",
            "environment": "abcdef0123",
            "settings": {key: value for key, value in settings.items() if key not in forgotten},
        }
        return Generation(host, "shop", "0123456789", record)

    return generation_of


def files_of(generation):
    return {path: text for part in generation.parts for path, text in part.files().items()}


def options_of(text):
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and line[0] not in "#;")


class Manager:
    """A process manager in which nothing runs; ``failing`` is the unit that fails."""

    def __init__(self, failing=None, down=()):
        self.failing = failing
        self.down = down

    def failure_reason(self, unit):
        return "it ended" if unit == self.failing else None

    def pid(self, unit):
        return None if unit in self.down else 1


@pytest.fixture
def said(make_generation, monkeypatch, tmp_path):
    """said(bytes, …) returns a generation whose log has these parts, and had the first part when it started."""
    monkeypatch.setattr(generation, "LOG", str(tmp_path))
    monkeypatch.setattr(generation, "_values", lambda text: ["hunter2"])
    (tmp_path / "shop").mkdir()

    def generation_of(before, *since):
        generation = make_generation({})
        Path(generation.log).write_bytes(b"".join([before, *since]))
        generation.log_offsets[generation.log] = len(before)
        return generation

    return generation_of


def test_failure_shows_the_log_of_its_own_generation_without_secrets(said):
    generation = said("an equal one, of yesterday, ends in dépit\n".encode(), b"ImportError: hunter2\n")
    assert generation.failure(generation.log) == "  ImportError: ***"
    assert generation.log_tail() == "  an equal one, of yesterday, ends in dépit\n  ImportError: ***"


def test_log_may_be_undecodable(said):
    assert said(b"caf\xe9").log_tail() == "  caf\ufffd"


def test_server_comes_first_and_then_each_process_count_times(make_generation):
    programs = make_generation(BESIDE).programs
    assert [program.unit for program in programs] == [
        "shop.0123456789",
        "shop.0123456789.worker.1",
        "shop.0123456789.worker.2",
    ]
    assert [program.log.rpartition("/")[2] for program in programs] == [
        "0123456789.log",
        "0123456789.worker.log",
        "0123456789.worker.log",
    ]
    assert programs[1].command == ["celery", "worker", "--name", '100% "it"']


def test_process_has_its_own_graceful_timeout_or_that_of_its_app(make_generation):
    own = {"processes": {"one": {**WORKER, "count": 1}, "two": {"command": "two"}}}
    server, one, two = make_generation(own).programs
    assert (one.stop_timeout, two.stop_timeout) == (7, 20)
    # The server keeps graceful_timeout itself.
    assert server.stop_timeout > 20


def test_generation_of_an_older_formula_has_only_its_server(make_generation):
    generation = make_generation(BESIDE, "processes", "schedule")
    assert [part.unit for part in generation.parts] == ["shop.0123456789"]
    assert generation.program_status() == {}


@pytest.mark.parametrize(
    ("own", "manager", "others"),
    [
        ({"server": "uwsgi"}, Emperor, Systemd),
        ({"process_manager": "supervisor"}, Supervisor, Supervisor),
        ({"process_manager": "circus"}, Circus, Circus),
    ],
)
def test_processes_run_under_the_manager_of_the_app_or_systemd_for_the_emperor(make_generation, own, manager, others):
    server, *workers = make_generation({**BESIDE, **own}).programs
    assert type(server.manager) is manager
    assert {type(worker.manager) for worker in workers} == {others}


def test_process_managers_of_an_app_are_known(load):
    def managers(**own):
        return managers_of(load({"apps": {"shop": {**HELLO, **own}}}).apps["shop"])

    assert managers() == ["supervisor"]
    assert managers(processes={"worker": WORKER}) == ["supervisor"]
    assert managers(schedule={"cleanup": CLEANUP}) == ["supervisor", "systemd"]
    assert managers(server="uwsgi", processes={"worker": WORKER}) == ["emperor", "systemd"]


def test_process_under_supervisor_has_a_section_of_its_own(make_generation):
    files = files_of(make_generation({**BESIDE, "process_manager": "supervisor"}))
    text = files["/etc/supervisor/conf.d/wsgi-shop.0123456789.worker.2.conf"]
    section = configparser.RawConfigParser(inline_comment_prefixes=(";",))
    section.read_string(text)
    options = section["program:shop.0123456789.worker.2"]
    words = shlex.split(options["command"].replace("%%", "%"))
    assert words[words.index("--") + 3 :] == ["celery", "worker", "--name", '100% "it"']
    assert "--publish" not in words
    assert options["stopwaitsecs"] == "7"
    assert options["stdout_logfile"] == "/var/log/wsgi/shop/0123456789.worker.log"


@pytest.mark.parametrize("word", ["%(here)s", "%%(here)s", "it's %(here)s", "%", "%s", " ;x", "%(host_node_name)s"])
def test_supervisor_gets_each_argument_unchanged(word):
    """It replaces %(here)s, then expands %, then splits like a shell."""
    line = Supervisor.command_line(["run", word])
    assert shlex.split(line.replace("%(here)s", "/etc") % {}) == ["run", word]


def test_process_under_systemd_has_a_pipe_of_its_own_to_the_shared_log(make_generation):
    files = files_of(make_generation({**BESIDE, "process_manager": "systemd"}))
    unit = options_of(files[f"{ETC}.worker.2.service"])
    assert unit["Type"] == "exec"
    assert unit["TimeoutStopSec"] == "7"
    assert unit["StandardOutput"] == "file:/run/wsgi/shop/0123456789.worker.2.log"
    assert unit["ExecStart"].endswith(' "celery" "worker" "--name" "100%% \\"it\\""')
    log = options_of(files[f"{ETC}.worker.2.log.service"])
    assert log["ExecStart"].endswith(" /var/log/wsgi/shop/0123456789.worker.log")


def test_job_name_of_gaffer_has_only_one_dot(make_generation):
    generation = make_generation(BESIDE)
    gaffer = Gaffer(generation.host)
    (text,) = gaffer.files(generation.programs[2]).values()
    assert "[job:0123456789-worker-2.shop]\n" in text
    assert gaffer._job(generation.programs[2].unit) == "jobs/shop/0123456789-worker-2"


def test_scheduled_command_is_a_timer_and_a_service(make_generation):
    files = files_of(make_generation(BESIDE))
    assert options_of(files[f"{ETC}.cleanup.timer"])["OnCalendar"] == "Mon..Fri 04:30"
    unit = options_of(files[f"{ETC}.cleanup.service"])
    assert (unit["Type"], unit["User"], unit["TimeoutStartSec"]) == ("oneshot", "wsgi-shop", "60")
    assert unit["ExecStart"].endswith('/with-environment" "/etc/wsgi/shop/0123456789" "clean" "50%%" "$$HOME"')
    assert unit["StandardOutput"] == "append:/var/log/wsgi/shop/0123456789.cleanup.log"


@pytest.mark.parametrize("command", ["it's", "", " ", "one\ntwo", [], "''\0"])
def test_ambiguous_command_is_refused(load, command):
    problems = load({"apps": {"shop": {**HELLO, "processes": {"worker": {"command": command}}}}}).messages
    assert len(problems) == 1
    assert problems[0].startswith("wsgi:apps:shop:processes:worker:command: ")


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


def test_failed_process_is_reported_with_its_own_log(make_generation):
    generation = make_generation(BESIDE)
    for program in generation.programs:
        program.manager = Manager(failing="shop.0123456789.worker.2")
    with pytest.raises(ProgramFailed, match="wsgi:apps:shop:processes:worker: number 2 ") as failed:
        check_running(generation.programs)
    assert failed.value.log == "/var/log/wsgi/shop/0123456789.worker.log"


def test_process_without_a_pid_is_not_up(make_generation, monkeypatch):
    monkeypatch.setattr(generation, "MIN_UPTIME", 0.01)
    monkeypatch.setattr(generation, "BOOT_TIME", 0)
    shop = make_generation(BESIDE)
    for program in shop.programs:
        program.manager = Manager(down=["shop.0123456789.worker.1"])
    with pytest.raises(ProgramFailed, match="number 1 .* does not keep running"):
        shop.wait_for_processes()
    shop.programs[1].manager.down = shop.programs[2].manager.down = ()
    shop.wait_for_processes()


def test_programs_of_a_generation_are_stopped_in_parallel(make_generation, monkeypatch):
    generation = make_generation(BESIDE)
    # It breaks if one program waits for another to end.
    together = threading.Barrier(len(generation.parts), timeout=20)
    for kind in (Program, Job):
        monkeypatch.setattr(kind, "stop", lambda part: together.wait())
    generation.stop()


def test_old_schedule_stops_before_the_new_one_starts(make_generation, monkeypatch):
    seen = []
    monkeypatch.setattr(Job, "pause", lambda job: seen.append(("pauses", job.generation.id)))
    monkeypatch.setattr(Job, "start", lambda job: seen.append(("starts", job.generation.id)))
    old, new = make_generation(BESIDE), make_generation(BESIDE)
    old.id = "9876543210"
    new.take_over_schedule([])
    new.take_over_schedule([old])
    assert seen == [("starts", new.id), ("pauses", old.id), ("starts", new.id)]


def test_times_of_systemd_are_converted():
    assert jobs._time("Mon 2026-11-23 06:10:00 UTC") == "2026-11-23 06:10:00"
    assert jobs._time("n/a") is None
    assert jobs._time("") is None


def test_log_is_complete_once_its_writer_has_caught_up(monkeypatch, tmp_path):
    append, log = str(ROOT / "wsgi/common/append"), tmp_path / "log"
    monkeypatch.setattr(unit_processes, "APPEND", append)
    with subprocess.Popen(["/bin/sh", append, str(log)], stdin=subprocess.PIPE, text=True) as writer:
        try:
            # Its command line is there a moment after its start.
            assert process.wait_until(lambda: list(unit_processes._running(append, str(log))), 10)
            os.kill(writer.pid, signal.SIGSTOP)
            writer.stdin.write("one\ntwo\n")
            writer.stdin.flush()
            assert not unit_processes.wait_for_log(str(log), patience=0)
            os.kill(writer.pid, signal.SIGCONT)
            assert unit_processes.wait_for_log(str(log), patience=60)
            assert log.read_text() == "one\ntwo\n"
        finally:
            writer.kill()


def test_circus_is_asked_again_to_stop_a_restarted_watcher(monkeypatch):
    asked = []
    circus = Circus(None)
    with subprocess.Popen(["sleep", "600"]) as child:

        def respond(request, patience):
            if request["command"] == "list":
                return {"status": "ok", "pids": [child.pid]}
            asked.append(request["properties"]["nostop"])
            child.kill()
            child.wait()
            reason = "arbiter is already running arbiter_manage_watchers command"
            return {"status": "ok"} if len(asked) > 1 else {"status": "error", "reason": reason}

        monkeypatch.setattr(circus, "_exchange", respond)
        try:
            circus.stop("shop.0123456789", patience=10)
        finally:
            child.kill()
    assert asked == [True, False]


# Found programs, whatever the records say


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


def test_only_processes_of_the_unit_are_killed_whatever_their_parent():
    me, unit = pwd.getpwuid(os.geteuid()).pw_name, f"unit-test.{uuid.uuid4().hex}"
    environment = {"PATH": os.environ["PATH"], MARK: unit}
    orphan = subprocess.run(
        ["sh", "-c", "sleep 987 > /dev/null 2>&1 & echo $!"], env=environment, stdout=subprocess.PIPE, check=True
    )
    other = subprocess.Popen(["sleep", "987"], env={**environment, MARK: f"{unit}.worker.1"})
    try:
        assert process.is_alive(int(orphan.stdout))
        unit_processes.kill_unit(unit, me)
        assert not process.is_alive(int(orphan.stdout))
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize("vassals", [[], [{"id": "other.0123456789.ini", "pid": 7}]])
def test_old_emperor_is_restarted_if_it_has_no_vassals(make_generation, monkeypatch, tmp_path, vassals):
    told = []
    monkeypatch.setattr(emperor, "EMPEROR_STATS", str(tmp_path))
    monkeypatch.setattr(emperor, "VASSALS", str(tmp_path / "vassals"))
    monkeypatch.setattr(emperor, "systemctl", lambda *words: told.append(words))
    stats = {"emperor_tyrant": 1, "vassals": vassals}
    monkeypatch.setattr(Emperor, "_stats", staticmethod(lambda: stats))
    monkeypatch.setattr(files, "replace_symlink", lambda *words: told.append(words))
    monkeypatch.setattr(files, "ensure_dir", lambda *words: None)
    program = make_generation({"server": "uwsgi"}).programs[0]
    if vassals:
        with pytest.raises(WsgiError, match="systemctl restart wsgi-emperor; then apply again"):
            program.start()
        assert told == []
    else:
        program.start()
        assert told[0] == ("restart", "wsgi-emperor")
        assert told[1][0] == "/etc/wsgi/shop/0123456789/uwsgi.ini"
