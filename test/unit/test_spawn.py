"""spawn with real processes: each worker has a socket of its own and is replaced without losing a request."""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Answers its PID to `who`; sleeps, grows or requests its replacement on demand, one connection at a time.
# It answers HTTP requests too, while there is no file `silent`.
SERVER = """
import os, signal, socket, sys, time
folder = sys.argv[1].rpartition("/")[0]
if os.path.exists(folder + "/broken"):
    sys.exit(3)
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(64)
kept = []
while True:
    connection = listener.accept()[0]
    word, _, number = connection.recv(1000).decode().partition(" ")
    while word == "GET" and os.path.exists(folder + "/silent"):
        time.sleep(0.05)
    if word == "sleep":
        time.sleep(float(number))
    elif word == "grow":
        kept.append(b"x" * int(number) * 2**20)
    elif word == "replace":
        os.kill(os.getppid(), signal.SIGUSR1)
    elif word == "exit":
        os._exit(1)
    elif word == "rebind":
        os.unlink(sys.argv[1])
        stolen = socket.socket(socket.AF_UNIX)
        stolen.bind(sys.argv[1])
    elif word == "unlink":
        os.unlink(sys.argv[1])
    elif word == "deaf":
        connection.sendall(str(os.getpid()).encode())
        connection.close()
        listener.close()
        time.sleep(600)
    connection.sendall(str(os.getpid()).encode())
    connection.close()
"""


def connect(path):
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(20)
    connection.connect(str(path))
    return connection


def ask(path, words="who"):
    """Return the PID that the worker behind a link answers."""
    with contextlib.closing(connect(path)) as connection:
        connection.sendall(words.encode())
        return int(connection.recv(100))


def answers(path):
    with contextlib.suppress(OSError):
        return bool(ask(path))
    return False


def eventually(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.05)
    return True


def gone(pid):
    return not os.path.exists(f"/proc/{pid}") or "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()


class Spawned:
    def __init__(self, folder, workers, *options):
        self.folder = folder
        (folder / "server.py").write_text(SERVER)
        argv = [sys.executable, ROOT / "wsgi/common/spawn", f"--workers={workers}", f"--link={folder}/http"]
        argv += [*options, "--patience=5", "--", sys.executable, folder / "server.py", "{socket}"]
        self.log = folder / "log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(argv, stderr=log)
        self.links = [folder / f"http-{number}.sock" for number in range(1, workers + 1)]

    def ready(self):
        eventually(lambda: all(link.exists() for link in self.links) or self.process.poll() is not None)
        return self


@pytest.fixture
def spawned(tmp_path):
    """spawned(workers, *options) returns spawn with so many ready workers."""
    running = []

    def started(workers=1, *options):
        running.append(Spawned(tmp_path, workers, *options))
        return running[-1].ready()

    yield started
    for each in running:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()


def test_each_worker_is_a_separate_process(spawned):
    links = spawned(3).links
    assert len({ask(link) for link in links}) == 3


def test_worker_that_requests_it_is_replaced_after_its_last_request(spawned):
    (link,) = spawned(1).links
    old = ask(link)
    with contextlib.closing(connect(link)) as slow, contextlib.closing(connect(link)) as waiting:
        slow.sendall(b"sleep 1")
        waiting.sendall(b"who")
        with contextlib.closing(connect(link)) as asking:
            asking.sendall(b"replace")
            assert int(asking.recv(100)) == old
        eventually(lambda: ask(link) != old)
        # It was connected to before.
        assert int(slow.recv(100)) == old
        assert int(waiting.recv(100)) == old
    eventually(lambda: gone(old))


def test_no_connection_is_refused_while_workers_are_replaced(spawned):
    (link,) = spawned(1).links
    seen, deadline = set(), time.monotonic() + 60
    for number in itertools.count():
        seen.add(ask(link, "replace" if number % 20 == 0 else "who"))
        if (number > 300 and len(seen) > 2) or time.monotonic() > deadline:
            break
        time.sleep(0.005)
    assert len(seen) > 2


@pytest.mark.parametrize("words", ["exit", "kill"])
def test_dead_worker_is_restarted(spawned, words):
    each = spawned(2)
    old, other = map(ask, each.links)
    if words == "kill":
        os.kill(old, signal.SIGKILL)
    else:
        with contextlib.closing(connect(each.links[0])) as connection:
            connection.sendall(b"exit")
    eventually(lambda: os.path.realpath(each.links[0]).endswith(".2.sock"))
    assert ask(each.links[0]) != old
    assert ask(each.links[1]) == other
    assert f"(pid {old})" in each.log.read_text()


def test_worker_over_its_memory_limit_is_replaced_after_its_request(spawned):
    each = spawned(1, "--memory-limit=40")
    old = ask(each.links[0])
    assert ask(each.links[0], "grow 50") == old
    eventually(lambda: ask(each.links[0]) != old)
    assert "MiB; it is replaced" in each.log.read_text()


def test_worker_over_twice_its_memory_limit_is_killed(spawned):
    each = spawned(1, "--memory-limit=40")
    old = ask(each.links[0])
    with contextlib.suppress(OSError, ValueError):
        ask(each.links[0], "grow 200")
    eventually(lambda: gone(old))
    eventually(lambda: os.path.realpath(each.links[0]).endswith(".2.sock"))
    assert "SIGKILL" in each.log.read_text()


def test_stop_lets_requests_finish_and_leaves_nothing(spawned):
    each = spawned(2)
    pids = [ask(link) for link in each.links]
    with contextlib.closing(connect(each.links[0])) as slow:
        slow.sendall(b"sleep 1")
        each.process.terminate()
        eventually(lambda: not each.links[0].exists())
        assert int(slow.recv(100)) == pids[0]
    assert each.process.wait(20) == 0
    assert all(map(gone, pids))
    assert not list(each.folder.glob("*.sock*"))


def test_hung_request_delays_a_stop_by_at_most_patience(spawned):
    each = spawned(1)
    pid = ask(each.links[0])
    with contextlib.closing(connect(each.links[0])) as hung:
        hung.sendall(b"sleep 600")
        each.process.terminate()
        assert each.process.wait(30) == 0
    assert gone(pid)


def test_workers_do_not_outlive_spawn(spawned):
    each = spawned(2)
    pids = [ask(link) for link in each.links]
    each.process.kill()
    eventually(lambda: all(map(gone, pids)))


def test_spawn_starts_after_a_killed_spawn(spawned):
    each = spawned(1)
    each.process.kill()
    each.process.wait()
    (link,) = spawned(1).links
    eventually(lambda: answers(link))


def test_program_that_cannot_start_ends_spawn_at_once(spawned, tmp_path):
    (tmp_path / "broken").touch()
    each = spawned(2)
    assert each.process.wait(20) == 1
    assert "ended with 3 before it listened" in each.log.read_text()


def test_failed_successor_is_retried_while_the_old_worker_serves(spawned, tmp_path):
    each = spawned(1)
    old = ask(each.links[0])
    (tmp_path / "broken").touch()
    ask(each.links[0], "replace")
    eventually(lambda: each.log.read_text().count("before it listened") >= 2)
    assert ask(each.links[0]) == old
    (tmp_path / "broken").unlink()
    eventually(lambda: ask(each.links[0]) != old)


@pytest.mark.parametrize(
    ("word", "fault"),
    [
        ("rebind", "has lost its socket to another process"),
        ("unlink", "has lost its socket"),
        ("deaf", "does not listen any more"),
    ],
)
def test_worker_that_lost_its_socket_is_replaced(spawned, word, fault):
    """A child of the app may bind the path of the socket."""
    each = spawned(1)
    old = ask(each.links[0], word)
    eventually(lambda: answers(each.links[0]), 30)
    assert ask(each.links[0]) != old
    assert f"(pid {old}) {fault}; it is replaced" in each.log.read_text()
    eventually(lambda: gone(old))


def test_worker_that_stops_accepting_is_replaced(spawned):
    each = spawned(1, "--accept-timeout=2")
    old = ask(each.links[0])
    os.kill(old, signal.SIGSTOP)
    # Until then it may accept one more.
    eventually(lambda: "\nState:\tT" in Path(f"/proc/{old}/status").read_text())
    with contextlib.closing(connect(each.links[0])):
        eventually(lambda: os.path.realpath(each.links[0]).endswith(".2.sock"), 60)
    assert ask(each.links[0]) != old
    assert "has accepted no connection for 2 s" in each.log.read_text()


def test_busy_worker_is_not_replaced(spawned):
    each = spawned(1, "--accept-timeout=60")
    old = ask(each.links[0])
    with contextlib.closing(connect(each.links[0])) as slow:
        slow.sendall(b"sleep 3")
        with contextlib.closing(connect(each.links[0])) as waiting:
            waiting.sendall(b"who")
            assert int(waiting.recv(100)) == old
    assert ask(each.links[0]) == old


def test_successor_takes_over_after_it_has_answered_a_health_check(spawned, tmp_path):
    """A successor may listen before it has loaded the app."""
    each = spawned(1, "--health-path=/up", "--health-host=shop.example.com")
    old = ask(each.links[0])
    (tmp_path / "silent").touch()
    ask(each.links[0], "replace")
    eventually(lambda: list(tmp_path.glob("http-1.*2.sock")))  # it listens
    for _ in range(20):
        assert ask(each.links[0]) == old
        time.sleep(0.05)
    (tmp_path / "silent").unlink()
    eventually(lambda: ask(each.links[0]) != old)


def test_without_a_ready_worker_requests_wait_at_one_that_listens(spawned, tmp_path):
    (tmp_path / "silent").touch()
    each = spawned(1, "--health-path=/up")
    assert ask(each.links[0])


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTSTP, signal.SIGALRM])
def test_signals_of_other_servers_do_no_harm(spawned, number):
    each = spawned(1)
    old = ask(each.links[0])
    each.process.send_signal(number)
    time.sleep(0.3)
    assert ask(each.links[0]) == old
    each.process.terminate()
    assert each.process.wait(20) == 0


def test_sighup_replaces_all_workers_one_by_one_without_loss(spawned):
    each = spawned(3)
    old = {ask(link) for link in each.links}
    with contextlib.closing(connect(each.links[0])) as slow:
        slow.sendall(b"sleep 1")
        each.process.send_signal(signal.SIGHUP)
        seen = set()
        while len(seen - old) < 3:
            seen.update(ask(link) for link in each.links)
            time.sleep(0.01)
        assert int(slow.recv(100)) in old
    eventually(lambda: all(map(gone, old)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_every_stop_signal_stops_gracefully(spawned, number):
    each = spawned(1)
    pid = ask(each.links[0])
    with contextlib.closing(connect(each.links[0])) as slow:
        slow.sendall(b"sleep 1")
        each.process.send_signal(number)
        assert int(slow.recv(100)) == pid
    assert each.process.wait(20) == 0
