"""Process managers: the files of their units, and how they are spoken to."""

import configparser
import shlex
import subprocess

import pytest
from conftest import files_of, unit_options
from pillars import BESIDE
from wsgi_formula import files
from wsgi_formula.errors import WsgiError
from wsgi_formula.run.managers import emperor
from wsgi_formula.run.managers.circus import Circus
from wsgi_formula.run.managers.emperor import Emperor
from wsgi_formula.run.managers.gaffer import Gaffer
from wsgi_formula.run.managers.supervisor import Supervisor

ETC = "/etc/systemd/system/wsgi-shop.0123456789"


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
    unit = unit_options(files[f"{ETC}.worker.2.service"])
    assert unit["Type"] == "exec"
    assert unit["TimeoutStopSec"] == "7"
    assert unit["StandardOutput"] == "file:/run/wsgi/shop/0123456789.worker.2.log"
    assert unit["ExecStart"].endswith(' "celery" "worker" "--name" "100%% \\"it\\""')
    log = unit_options(files[f"{ETC}.worker.2.log.service"])
    assert log["ExecStart"].endswith(" /var/log/wsgi/shop/0123456789.worker.log")


def test_job_name_of_gaffer_has_only_one_dot(make_generation):
    generation = make_generation(BESIDE)
    gaffer = Gaffer(generation.host)
    (text,) = gaffer.files(generation.programs[2]).values()
    assert "[job:0123456789-worker-2.shop]\n" in text
    assert gaffer._job(generation.programs[2].unit) == "jobs/shop/0123456789-worker-2"


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
