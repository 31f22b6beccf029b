"""
Replaces a worker that has reached a limit: its successor starts first, and takes over when it has loaded the app.

``of_this_process()`` returns the worker's own server as an object with three methods, which the guard calls:

- ``ask()`` has a successor started. It may be called again and again.
- ``relieved()`` returns whether the successor serves.
- ``leave()`` ends this worker when its requests are answered, relieved or not.

The functions below ``Gunicorn`` are hooks, which gunicorn's configuration imports. The names of these methods and hooks
stay: a worker that starts while this file is updated may get the guard, or a configuration, of before.
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
    """Return the object that replaces this worker, as the module explains it."""
    if os.environ.get("WSGI_SPAWN_LINK"):
        return Spawned()
    if _gunicorn_worker is not None:
        return Gunicorn(_gunicorn_worker)
    if "uwsgi" in sys.modules:
        return Uwsgi(sys.modules["uwsgi"])
    return Alone()


class Alone:
    """A worker whose server starts another one only when this one has ended."""

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
            _signal_main_thread(self.end_signal)


# For pthread_kill, which may not return from any other number: gevent puts one of its own there when an app is loaded.
_main_thread = threading.main_thread().ident


def _signal_main_thread(number):
    """
    Send a signal to the main thread, where Python's handlers run.

    The kernel may give a signal to the process to the thread that sends it, which would not wake a main thread that
    waits.
    """
    if threading.get_native_id() == os.getpid():  # also where gevent has all threads in this one
        signal.raise_signal(number)
    else:
        signal.pthread_kill(_main_thread, number)


class Spawned(Alone):
    """A worker of ``spawn``, which leads nginx to the successor and ends this worker."""

    def __init__(self):
        super().__init__()
        self._spawn = int(os.environ["WSGI_SPAWN_PID"])
        self._link = os.environ["WSGI_SPAWN_LINK"]
        self._name = os.path.basename(os.environ["WSGI_SPAWN_SOCKET"])

    def ask(self):
        with contextlib.suppress(ProcessLookupError):  # spawn has just ended, and ends this worker
            os.kill(self._spawn, signal.SIGUSR1)

    def relieved(self):
        """Return whether nginx's link leads to another worker already."""
        with contextlib.suppress(OSError):
            return os.readlink(self._link) != self._name
        return False

    def leave(self):
        pass  # spawn sends SIGTERM


# Memory that gunicorn's processes share, with the state of each worker in the byte at its age. Only that worker sets
# DUE (for replacement), only its successor RELIEVED, and only the master FRESH.
_states = mmap.mmap(-1, mmap.PAGESIZE)
FRESH, DUE, RELIEVED = range(3)
_gunicorn_worker = None  # gunicorn's object of this process


class Gunicorn(Alone):
    """A worker of gunicorn, whose master by itself starts a successor only when this one has ended."""

    def __init__(self, worker):
        super().__init__()
        self._worker = worker

    def ask(self):
        if _state(self._worker.age) == FRESH:
            _set_state(self._worker.age, DUE)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._worker.ppid, signal.SIGTTIN)

    def relieved(self):
        return _state(self._worker.age) == RELIEVED


def pre_fork(server, worker):
    """Find, in the master, which worker a new one replaces, by its age: gunicorn gives each age only once."""
    global _gunicorn_worker
    _gunicorn_worker = worker
    _set_state(worker.age, FRESH)
    others = server.WORKERS.values()
    taken = {other.replaces for other in others}
    due = (other.age for other in others if _state(other.age) == DUE and other.age not in taken)
    worker.replaces = next(due, None)
    # When a worker fails that has not booted, the master ends, and with it the workers that serve.
    worker.booted = worker.replaces is not None


def post_worker_init(worker):
    """Take over, in a new worker that has loaded the app."""
    if worker.replaces is not None:
        _set_state(worker.replaces, RELIEVED)


def child_exit(server, worker):
    """Count the workers again, in the master, when one has ended."""
    if worker.replaces is not None and _state(worker.replaces) == DUE:
        _set_state(worker.replaces, FRESH)  # its successor failed, and it asks for another one
    nworkers_changed(server, None, None)


def nworkers_changed(server, new, old):
    """Have the master, at SIGTTIN too, keep one worker more for each that is to be replaced."""
    due = sum(_state(worker.age) != FRESH for worker in server.WORKERS.values())
    if server.num_workers != server.cfg.workers + due:
        server.num_workers = server.cfg.workers + due


def _state(age):
    return _states[age % len(_states)]


def _set_state(age, state):
    _states[age % len(_states)] = state


class Uwsgi(Alone):
    """
    A worker of uWSGI, which has a place for one more worker than it keeps (``cheaper``): the successor starts there, so
    that one worker at a time is replaced.
    """

    end_signal = signal.SIGHUP
    GO_CHEAP = 15  # UWSGI_GO_CHEAP_CODE of uwsgi.h: the exit status of a worker whose place is to stay empty
    SETTLE_TIME = 0.5  # seconds for which a successor must have been there: uWSGI lists an ended worker for a moment

    def __init__(self, uwsgi):
        super().__init__()
        self._uwsgi = uwsgi
        self._path = uwsgi.opt.get("master-fifo")  # None where server_options set cheaper
        self._fifo = None
        self._since = None  # when there were enough workers first without this one

    def ask(self):
        if self._path is None:
            self.leave()
            return
        with contextlib.suppress(OSError):  # another worker holds the lock, since it is being replaced
            if self._fifo is None:
                self._fifo = os.open(self._path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.lockf(self._fifo, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if sum(map(_serves, self._uwsgi.workers())) > int(self._uwsgi.opt["cheaper"]):
                self._since = self._since or time.monotonic()
            else:
                self._since = None
                os.write(self._fifo, b"+")

    def relieved(self):
        return self._path is None or (self._since is not None and time.monotonic() >= self._since + self.SETTLE_TIME)

    def leave(self):
        if self._path is not None and self.relieved() and not self._leaves:
            self._uwsgi.atexit = functools.partial(self._exit, getattr(self._uwsgi, "atexit", None))
        super().leave()

    def _exit(self, atexit_of_app):
        try:
            if atexit_of_app:
                atexit_of_app()
        finally:
            os._exit(self.GO_CHEAP)


def _serves(place):
    """Return whether uWSGI's worker in a place has loaded the app and lives; its master may not know of its end yet."""
    if not place.get("apps") or place.get("status") == "cheap":
        return False
    with contextlib.suppress(OSError), open(f"/proc/{place['pid']}/stat", errors="replace") as stat:
        return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    return False
