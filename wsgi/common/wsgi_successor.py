"""
How a worn worker is replaced: its successor is started first, and takes over when it has loaded the app.

``of_this_process()`` is the guard's view of it, in a worker:

- ``ask()`` has a successor started. It may be called again and again.
- ``relieved()`` says whether that one is there.
- ``leave()`` ends this worker when its requests are answered, relieved or not.

The functions below ``Gunicorn`` are hooks of gunicorn's, which its configuration imports.
"""

import contextlib
import fcntl
import functools
import mmap
import os
import signal
import sys
import threading
import time


def of_this_process():
    """Return the way in which this worker is replaced; see the module."""
    if os.environ.get("WSGI_SPAWN_LINK"):
        return Spawned()
    if _gunicorn_worker is not None:
        return Gunicorn(_gunicorn_worker)
    if "uwsgi" in sys.modules:
        return Uwsgi(sys.modules["uwsgi"])
    return Alone()


class Alone:
    """A worker whose server starts another one when it has ended."""

    end_signal = signal.SIGTERM

    def __init__(self):
        self._leaves = False

    def ask(self):
        self.leave()

    def relieved(self):
        return True

    def leave(self):
        if not self._leaves:
            self._leaves = True
            # Python's handlers run in the main thread. A signal to the process may go to the thread that sends it, and
            # would not wake a main thread that waits.
            signal.pthread_kill(threading.main_thread().ident, self.end_signal)


class Spawned(Alone):
    """A worker of ``spawn``, which moves nginx to the successor and ends this one."""

    def __init__(self):
        super().__init__()
        self._spawn = int(os.environ["WSGI_SPAWN_PID"])
        self._link = os.environ["WSGI_SPAWN_LINK"]
        self._name = os.path.basename(os.environ["WSGI_SPAWN_SOCKET"])

    def ask(self):
        with contextlib.suppress(ProcessLookupError):  # it has just gone, and this worker is about to
            os.kill(self._spawn, signal.SIGUSR1)

    def relieved(self):
        """Whether nginx finds another worker in the place of this one already."""
        with contextlib.suppress(OSError):
            return os.readlink(self._link) != self._name
        return False

    def leave(self):
        pass  # it is told to


# What gunicorn's processes know of each other: a byte for each worker, at its age. Only that
# worker makes itself worn, only its successor relieves it, and only the master makes it fresh.
_states = mmap.mmap(-1, mmap.PAGESIZE)
FRESH, WORN, RELIEVED = range(3)
_gunicorn_worker = None  # the one that this process is


class Gunicorn(Alone):
    """A worker of gunicorn's, whose master would else start the successor when it has ended."""

    def __init__(self, worker):
        super().__init__()
        self._worker = worker

    def ask(self):
        if _state(self._worker.age) == FRESH:
            _set_state(self._worker.age, WORN)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._worker.ppid, signal.SIGTTIN)

    def relieved(self):
        return _state(self._worker.age) == RELIEVED


def pre_fork(server, worker):
    """Find, in the master, whose successor a new worker is: it goes by its age, which is never given twice."""
    global _gunicorn_worker
    _gunicorn_worker = worker
    _set_state(worker.age, FRESH)
    others = server.WORKERS.values()
    taken = {other.replaces for other in others}
    worn = (other.age for other in others if _state(other.age) == WORN and other.age not in taken)
    worker.replaces = next(worn, None)
    # A worker that has not booted when it fails ends the master, and with it those that serve.
    worker.booted = worker.replaces is not None


def post_worker_init(worker):
    """In a new worker that has loaded the app: take over."""
    if worker.replaces is not None:
        _set_state(worker.replaces, RELIEVED)


def child_exit(server, worker):
    """In the master, when a worker has ended."""
    if worker.replaces is not None and _state(worker.replaces) == WORN:
        _set_state(worker.replaces, FRESH)  # its successor failed: it asks for another one
    nworkers_changed(server, None, None)


def nworkers_changed(server, new, old):
    """In the master, at SIGTTIN too: there is to be one worker more for each that is worn."""
    worn = sum(_state(worker.age) != FRESH for worker in server.WORKERS.values())
    if server.num_workers != server.cfg.workers + worn:
        server.num_workers = server.cfg.workers + worn


def _state(age):
    return _states[age % len(_states)]


def _set_state(age, state):
    _states[age % len(_states)] = state


class Uwsgi(Alone):
    """
    A worker of uWSGI's, which has a place for one more than it keeps (``cheaper``): there the
    successor of a worn worker is started. One worker is replaced at a time.
    """

    end_signal = signal.SIGHUP
    GO_CHEAP = 15  # UWSGI_GO_CHEAP_CODE of uwsgi.h: the exit status of a worker whose place is to stay empty
    CERTAIN = 0.5  # second for which a successor must have been there: a place tells of its last worker for a moment

    def __init__(self, uwsgi):
        super().__init__()
        self._uwsgi = uwsgi
        self._path = uwsgi.opt.get("master-fifo")  # None where pillar has a cheaper of its own
        self._fifo = None
        self._since = None  # when there were enough workers without this one

    def ask(self):
        if self._path is None:
            self.leave()
            return
        with contextlib.suppress(OSError):  # another worker is being replaced
            if self._fifo is None:
                self._fifo = os.open(self._path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.lockf(self._fifo, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if sum(map(_serves, self._uwsgi.workers())) > int(self._uwsgi.opt["cheaper"]):
                self._since = self._since or time.monotonic()
            else:
                self._since = None
                os.write(self._fifo, b"+")

    def relieved(self):
        return self._path is None or (self._since is not None and time.monotonic() >= self._since + self.CERTAIN)

    def leave(self):
        if self._path is not None and self.relieved() and not self._leaves:
            self._uwsgi.atexit = functools.partial(self._exit, getattr(self._uwsgi, "atexit", None))
        super().leave()

    def _exit(self, of_the_app):
        try:
            if of_the_app:
                of_the_app()
        finally:
            os._exit(self.GO_CHEAP)


def _serves(place):
    """Whether a worker of uWSGI's is alive, which its master may not know yet, and has loaded the app."""
    if not place.get("apps") or place.get("status") == "cheap":
        return False
    with contextlib.suppress(OSError), open(f"/proc/{place['pid']}/stat", errors="replace") as stat:
        return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    return False
