"""The harness itself: commands on a machine, the copy of the checkout, and the logs in the report of a failed test."""

import http.client
import threading
import time
from types import SimpleNamespace

import pytest
from container import ROOT
from harness import CommandFailed, Machine, Result


def test_command_returns_its_exit_code_and_both_outputs(machine):
    command = "echo out; echo err >&2; exit 3"
    assert machine.exec(command, check=False) == Result(3, "out\n", "err\n")
    with pytest.raises(CommandFailed, match="code 3\nout\nerr"):
        machine.exec(command)


def test_command_that_closes_its_outputs_is_waited_for(machine):
    assert machine.exec("exec >&- 2>&-; sleep 1; exit 7", check=False).rc == 7


def test_missing_machine_is_named():
    with pytest.raises(CommandFailed, match="No such container: nothing"):
        Machine("nothing").exec("true")


def test_output_that_arrives_before_it_is_read_is_not_lost(machine, monkeypatch):
    """Docker's SDK loses such output."""
    begin = http.client.HTTPResponse.begin
    monkeypatch.setattr(http.client.HTTPResponse, "begin", lambda answer: time.sleep(0.5) or begin(answer))
    assert machine.exec("echo out; echo err >&2") == Result(0, "out\n", "err\n")


def test_large_input_and_output_pass_at_once(machine):
    text = "zwölf Boxkämpfer\n" * 300_000
    assert machine.exec("cat", stdin=text).stdout == text
    assert machine.exec("head -c 2", stdin=text).stdout == "zw"


def test_each_thread_gets_the_output_of_its_own_command(machine):
    wrong = []

    def ask(number):
        for turn in range(10):
            said = machine.exec(f"echo {number}; cat", stdin=str(turn)).stdout
            wrong.extend([said] * (said != f"{number}\n{turn}"))

    threads = [threading.Thread(target=ask, args=[number]) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_running_process_takes_input_and_returns_lines(machine):
    process = machine.spawn(["sh", "-c", 'while read -r line; do echo "<$line>"; done; echo end >&2'], stdin=True)
    process.write("one\n")
    assert next(process.lines) == "<one>"
    process.write("zwölf\n")
    assert next(process.lines) == "<zwölf>"
    assert process.wait("three\n") == Result(0, "<three>\n", "end\n")


def test_files_are_written_with_their_mode_and_folders_are_copied(machine, tmp_path):
    machine.put("/run/one/secret", "word", 0o600)
    assert machine.exec("stat -c '%a %U' /run/one/secret; cat /run/one/secret").stdout == "600 root\nword"
    (tmp_path / "two").mkdir()
    (tmp_path / "two/file").write_text("text")
    machine.copy(tmp_path / "two", "/srv/copied")
    assert machine.exec("stat -c %U /srv/copied/file; cat /srv/copied/file").stdout == "root\ntext"


def test_machine_has_a_copy_of_the_checkout_without_git(machine):
    assert not machine.checkout.is_relative_to(ROOT)
    assert machine.exec("ls -A /srv/formula").stdout.split() == sorted(path.name for path in machine.checkout.iterdir())
    assert machine.exec("ls -A /srv/formula | grep -x .git", check=False).stdout == ""
    harness = (ROOT / "test/harness.py").read_text()
    assert machine.exec("cat /srv/formula/test/harness.py").stdout == harness


@pytest.fixture
def reported(machine, request):
    """reported(failed) returns the sections that the report of a test on the machine has besides its traceback."""
    machine.exec("mkdir -p /var/log/wsgi/shop && echo long ago > /var/log/wsgi/shop/old.log")
    machine.exec("touch -d yesterday /var/log/wsgi/shop/old.log; seq 1000 > /var/log/wsgi/shop/new.log")

    conftest = request.config.pluginmanager.get_plugin(str(ROOT / "test/conftest.py"))

    def reported(failed):
        stash = pytest.Stash()
        stash[conftest.BEGAN] = time.time() - 60
        report = SimpleNamespace(failed=failed, sections=[])
        hook = conftest.pytest_runtest_makereport(SimpleNamespace(funcargs={"machine": machine}, stash=stash), None)
        next(hook)
        with pytest.raises(StopIteration):
            hook.send(report)
        return report.sections

    return reported


def test_failed_test_shows_the_last_lines_of_logs_written_during_it(machine, reported):
    [(title, text)] = reported(failed=True)
    assert title == f"Logs on {machine.name}"
    assert "==> /var/log/wsgi/shop/new.log <==\n961\n" in text
    assert text.endswith("1000\n")
    assert "long ago" not in text


def test_passed_test_shows_no_logs(reported):
    assert reported(failed=False) == []
