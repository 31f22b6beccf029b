"""
Keeps in a worker what its server can't keep by itself of an app's settings.

A generation's ``wsgi_application.py`` hands the app's callable to ``guarded``. What comes back
counts requests, ends those that take too long, and has the worker replaced when it is worn, in
the way that ``wsgi_successor`` knows.
"""

import asyncio
import contextlib
import faulthandler
import importlib
import io
import os
import random
import re
import signal
import sys
import threading
import time
import traceback
from urllib.parse import unquote_to_bytes

import wsgi_successor

INTERVAL = 1  # second between two looks at what runs
STUBBORN = 5  # seconds after which a request that was cancelled and goes on is hung for good
# Of those that are cancelled, how many a worker may have: some leave a thread hanging, of which
# frameworks have a few only.
CANCELLED = 4
SERVICE_RESTART = 1012  # https://www.iana.org/assignments/websocket: the client may come back at once
GENERATION_HEADER = "X-WSGI-Generation"
STDERR = 2
PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def guarded(application, interface, **settings):
    """
    Load an app's callable and put it under guard.

    application : str
        ``module:callable``.
    interface : str
        ``wsgi`` or ``asgi``.
    settings
        As ``Guard`` takes them.

    Returns a callable of the same interface. Raises what the app's import raises.
    """
    _live_no_longer_than_master()
    _say_whole_lines()
    module, _, path = application.partition(":")
    found = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    return {"wsgi": WSGI, "asgi": ASGI}[interface](found, Guard(**settings))


class Guard:
    """
    What is asked of a worker, and how it fares.

    request_timeout : int
        Seconds after which a request is hung, and its worker to be replaced; 0: never.
    graceful_timeout : int
        Seconds that the worker's other requests then get to finish.
    max_requests : int
        After how many requests the worker is to be replaced; 0: never. Up to a tenth more, so
        that not all workers are replaced at once.
    memory_limit : int
        MiB of resident memory above which it is to be replaced, and at twice of which it is
        ended; 0: none.
    live, run : str
        The link to the folder of sockets that nginx finds, and the folder of this worker's.
    """

    def __init__(self, request_timeout=0, graceful_timeout=0, max_requests=0, memory_limit=0, live="", run=""):
        self.request_timeout = request_timeout
        self.graceful_timeout = graceful_timeout
        self.max_requests = max_requests
        self.memory_limit = memory_limit
        self.live = live
        self.run = run
        self.generation = os.path.basename(run)
        self._watched = None  # the PID that is: a fork leaves threads behind
        self._lock = threading.Lock()
        self._fork()

    def _fork(self):
        self.running = {}  # request -> since when
        self.loop = None
        self._left = self.max_requests + random.randint(0, self.max_requests // 10)
        self._retiring = False
        self._ended = time.monotonic()  # when a request last did
        self._cancelled = 0
        self._beat = None

    def begin(self, what, loop=None):
        """A request begins. Returns what ``end`` wants to know of it."""
        if self._watched != os.getpid():
            with self._lock:
                self._start(loop)
        request = [what]
        self.running[id(request)] = (time.monotonic(), request)
        return request

    def _start(self, loop):
        if self._watched == os.getpid():  # by another thread's first request
            return
        self._fork()
        self._successor = wsgi_successor.of_this_process()
        self.loop = loop
        if self.request_timeout or self.max_requests or self.memory_limit:
            threading.Thread(target=self._watch, daemon=True, name="wsgi_guard").start()
        self._watched = os.getpid()

    def end(self, request):
        """A request has ended; a second time is of no account."""
        if not self.running.pop(id(request), None):
            return
        self._ended = time.monotonic()
        self._left -= 1
        if self.max_requests and self._left <= 0 and not self._retiring:
            self.retire()
        elif self._retiring and self._successor.relieved():
            self._successor.leave()

    def cancelled(self, request):
        """A request had its time, and is told so."""
        self._cancelled += 1
        enough = self._cancelled >= CANCELLED and not self._retiring
        after = "" if enough else "; it is cancelled"
        self._say(f"{request[0]} took more than {self.request_timeout} s{after}", replaced=enough)
        if enough:
            self.retire()

    def wanted(self):
        """Whether nginx still brings this worker new connections."""
        if self._retiring and self._successor.relieved():
            return False
        link = _link()
        if link and os.path.realpath(link) != os.path.realpath(os.environ["WSGI_SPAWN_SOCKET"]):
            return False
        return not self.live or os.path.realpath(self.live) == self.run

    def retire(self):
        """Have this worker replaced. It serves until another one does in its place."""
        self._retiring = True
        self._successor.ask()

    def _watch(self):
        while True:
            if self.request_timeout:
                self._expect_python()
                self._look_for_hung()
            if self.memory_limit:
                self._look_at_memory()
            if self._retiring:
                self._look_for_successor()
            time.sleep(INTERVAL / 4 if self._retiring else INTERVAL)

    def _expect_python(self):
        """Should nothing of Python run any more, C ends the worker."""
        slack = self.request_timeout + self.graceful_timeout + 10 * INTERVAL
        faulthandler.dump_traceback_later(slack, exit=True, file=STDERR)

    def _look_for_successor(self):
        if not self._successor.relieved():
            self._successor.ask()
        elif not self.running and time.monotonic() >= self._ended + INTERVAL:
            # Else the end of the next request is the moment: a uWSGI that has just accepted one would drop it.
            self._successor.leave()

    def _look_for_hung(self):
        now = time.monotonic()
        if self.loop:
            self._look_at_loop(now)
            return
        hung = self._hung(now)
        if hung:
            self._say(f"{self._named(hung)} took more than {self.request_timeout} s")
            self._end(hung)

    def _look_at_loop(self, now):
        """An event loop that no longer turns answers nobody, and what won't be cancelled goes on for ever."""
        if self.loop.is_closed():  # the worker ends
            return
        stubborn = self._hung(now)
        if self._beat is None:
            self._beat = now  # before the loop is asked to take it back
            with contextlib.suppress(RuntimeError):  # it has been closed meanwhile
                self.loop.call_soon_threadsafe(self._beaten)
            if stubborn:
                self._say(f"{self._named(stubborn)} would not be cancelled")
                self._end(stubborn)
        elif now - self._beat >= self.request_timeout:
            self._say(f"the event loop has stood still for more than {self.request_timeout} s")
            self._end(set(self.running))

    def _hung(self, now):
        """The requests that have taken too long. One of an event loop has been cancelled by then."""
        limit = self.request_timeout + (STUBBORN if self.loop else 0)
        return {
            key for key, (since, request) in list(self.running.items()) if len(request) == 1 and now - since >= limit
        }

    def _beaten(self):
        self._beat = None

    def _look_at_memory(self):
        with open("/proc/self/statm") as statm:
            used = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20
        if used > 2 * self.memory_limit:
            self._say(f"this worker uses {used} MiB, twice the limit")
            os._exit(1)
        if used > self.memory_limit and not self._retiring:
            self._say(f"this worker uses {used} MiB")
            self.retire()
        if used > 1.5 * self.memory_limit:  # it grows too fast to wait for anyone
            self._successor.leave()

    def _end(self, hung):
        """
        Let the next worker come and the other requests finish, and go. As long as nobody else does,
        this one serves with what does not hang.
        """
        faulthandler.dump_traceback(file=STDERR)
        others = set(self.running) - hung
        if _link() or others:
            self.retire()
        deadline = time.monotonic() + self.graceful_timeout
        while others or (_link() and not self._successor.relieved()):
            now = time.monotonic()
            if now >= deadline:
                break
            self._expect_python()
            if self._successor.relieved():
                self._successor.leave()
            else:
                self._successor.ask()
            if self.memory_limit:
                self._look_at_memory()
            time.sleep(INTERVAL / 20)
            hung = hung & set(self.running) | self._hung(now)
            others = set(self.running) - hung
            if others and not self._successor.relieved():
                deadline = now + self.graceful_timeout
        os._exit(1)

    def _named(self, keys):
        return ", ".join(sorted({self.running[key][1][0] for key in keys if key in self.running}))

    @staticmethod
    def _say(sentence, replaced=True):
        after = "; it is replaced" if replaced else ""
        os.write(STDERR, f"wsgi_guard: pid {os.getpid()}: {sentence}{after}\n".encode())


class WSGI:
    """A WSGI app under guard."""

    def __init__(self, application, guard):
        self.application = application
        self.guard = guard

    def __call__(self, environ, start_response):
        start_response = _signed(start_response, self.guard)
        if not _tell_the_client(environ):
            return _not_found(start_response)
        request = self.guard.begin(f"{environ['REQUEST_METHOD']} {environ.get('PATH_INFO', '')}")
        try:
            body = self.application(environ, start_response)
        except Exception:  # noqa: BLE001 - whatever an app may raise
            self.guard.end(request)
            return _failed(start_response)
        except BaseException:
            self.guard.end(request)
            raise
        if _leaves_the_app(body, environ):
            _read_the_rest(environ)
            self.guard.end(request)
            return body
        return _Body(body, self.guard, request, start_response, environ)


class _Body:
    """What an app answers bit by bit: its request ends with it."""

    def __init__(self, body, guard, request, start_response, environ):
        self._body = body
        self._guard = guard
        self._request = request
        self._environ = environ
        # Now: what fails before anything is sent can still be answered, and Granian hears of
        # another status only until it has this object.
        self._first = []
        try:
            self._blocks = iter(body)
            for block in self._blocks:
                if block:
                    self._first = [block]
                    break
        except Exception:  # noqa: BLE001 - whatever an app may raise
            self._first, self._blocks = _failed(start_response), iter(())

    def __iter__(self):
        yield from self._first
        yield from self._blocks

    def close(self):
        try:
            if hasattr(self._body, "close"):
                self._body.close()
            _read_the_rest(self._environ)
        finally:
            self._guard.end(self._request)


class ASGI:
    """An ASGI app under guard. A request is hung when nothing of its answer came in time; a WebSocket
    may stay for as long as its worker is wanted."""

    def __init__(self, application, guard):
        self.application = application
        self.guard = guard
        self._sockets = {}  # the `send` of each WebSocket -> whether it was closed from here
        self._usher = None

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            await self._answer(_with_the_client(scope), receive, send)
        elif scope["type"] == "websocket":
            await self._converse(_with_the_client(scope), receive, send)
        else:
            await self.application(scope, receive, send)

    async def _answer(self, scope, receive, send):
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        request = self.guard.begin(f"{scope['method']} {scope['path']}", loop)
        expired = False

        async def sending(message):
            request[1:] = ["answered"]
            if message["type"] == "http.response.start" and self.guard.generation:
                signature = (GENERATION_HEADER.lower().encode(), self.guard.generation.encode())
                message = {**message, "headers": [*message.get("headers", ()), signature]}
            await send(message)

        def expire():
            nonlocal expired
            if len(request) == 1:
                expired = True
                self.guard.cancelled(request)
                task.cancel()

        seconds = self.guard.request_timeout
        timer = seconds and loop.call_later(seconds, expire)
        try:
            await self.application(scope, receive, sending)
        except asyncio.CancelledError:
            if not expired or len(request) > 1:
                raise
            if hasattr(task, "uncancel"):
                task.uncancel()
            traceback.print_exc()
            await send({"type": "http.response.start", "status": 504, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"Gateway Timeout\n"})
        finally:
            if timer:
                timer.cancel()
            self.guard.end(request)

    async def _converse(self, scope, receive, send):
        async def sending(message):
            if self._sockets.get(send):
                raise _Closed
            await send(message)
            if message["type"] == "websocket.accept":
                self._sockets[send] = False
                if not self._usher or self._usher.done():
                    self._usher = asyncio.create_task(self._see_out())

        try:
            await self.application(scope, receive, sending)
        except _Closed:
            pass
        finally:
            self._sockets.pop(send, None)

    async def _see_out(self):
        """Once another worker is in the place of this one, ask those who are still here to go there,
        and before they would be cut."""
        since = None
        while self._sockets:
            await asyncio.sleep(INTERVAL)
            now = time.monotonic()
            since = None if self.guard.wanted() else since or now
            if since and now - since >= self.guard.graceful_timeout - 3 * INTERVAL:
                await asyncio.wait([asyncio.create_task(self._close(send)) for send in list(self._sockets)], timeout=1)

    async def _close(self, send):
        if not self._sockets.get(send, True):
            self._sockets[send] = True
            with contextlib.suppress(Exception):  # the client has gone
                await send({"type": "websocket.close", "code": SERVICE_RESTART})


class _Closed(OSError):
    """What an app gets that sends on after its WebSocket was closed."""


def through_asgi(application, threads, software):
    """
    A WSGI app for a server that speaks ASGI alone, through a2wsgi.

    application : callable
        As ``guarded`` returns it.
    threads : int
        How many requests it may have at a time.
    software : str
        What the app is told of its server.
    """
    from a2wsgi import WSGIMiddleware

    def mended(environ, start_response):
        scope = environ["asgi.scope"]
        if scope.get("raw_path") and not scope.get("root_path"):
            environ["PATH_INFO"] = unquote_to_bytes(scope["raw_path"]).decode("latin-1")  # which need be no UTF-8
        environ["SERVER_SOFTWARE"] = software
        environ["wsgi.errors"] = sys.stderr
        environ["wsgi.multithread"] = threads > 1
        # Its own takes what has not come yet for the end, where a line is asked for.
        environ["wsgi.input"] = io.BufferedReader(_Input(environ["wsgi.input"]))
        starting = _Start(start_response)
        body = application(environ, starting)
        starting.send()
        return body

    return WSGIMiddleware(mended, workers=threads)


class _Start:
    """A start_response that can be called again as long as nothing was sent; a2wsgi's sends at once."""

    def __init__(self, start_response):
        self._start_response = start_response
        self._answer = ()
        self._write = None

    def __call__(self, status, headers, exc_info=None):
        if self._write and exc_info:
            raise exc_info[1]
        self._answer = (status, headers)
        return lambda block: self.send()(block)

    def send(self):
        self._write = self._write or self._start_response(*self._answer)
        return self._write


class _Input(io.RawIOBase):
    def __init__(self, body):
        self._body = body

    def readable(self):
        return True

    def readinto(self, into):
        block = self._body.read(len(into))
        into[: len(block)] = block
        return len(block)


def _leaves_the_app(body, environ):
    """Whether an answer is whole, or a file for the server to send: then it must stay what it is."""
    wrapper = environ.get("wsgi.file_wrapper")  # a function under uWSGI, whose files it returns as they are
    wrapped = isinstance(wrapper, type) and isinstance(body, wrapper)
    return type(body) in (list, tuple) or wrapped or hasattr(body, "read")


def _failed(start_response):
    """The answer to an exception. Servers that would send none at all have it from here."""
    traceback.print_exc()
    headers = [("Content-Type", "text/plain"), ("Content-Length", "22")]
    # uWSGI takes them and forgets to clear the exception, which Python makes a SystemError of.
    with contextlib.suppress(SystemError):
        start_response("500 Internal Server Error", headers, sys.exc_info())
    return [b"Internal Server Error\n"]


def _read_the_rest(environ):
    """Of a body that the app left: servers that hang up on one reset the connection, and the answer is lost."""
    if environ.get("CONTENT_LENGTH") not in (None, "", "0"):
        with contextlib.suppress(Exception):
            while environ["wsgi.input"].read(65536):
                pass


def _not_found(start_response):
    start_response("404 Not Found", [("Content-Type", "text/plain"), ("Content-Length", "10")])
    return [b"Not Found\n"]


def _signed(start_response, guard):
    """A start_response that tells nginx's log which generation answers."""
    if not guard.generation:
        return start_response

    def signed(status, headers, *exc_info):
        return start_response(status, [*headers, (GENERATION_HEADER, guard.generation)], *exc_info)

    return signed


def _tell_the_client(environ):
    """
    Over a unix socket a server knows of nginx alone; who asks, and how, and for which of the site's
    apps, stands in nginx's headers. Returns whether the path is the app's.
    """
    if "HTTP_X_REAL_IP" not in environ:
        return True
    environ["REMOTE_ADDR"] = environ["HTTP_X_REAL_IP"]
    scheme = environ.get("HTTP_X_FORWARDED_PROTO") or environ["wsgi.url_scheme"]
    environ["wsgi.url_scheme"] = scheme
    # nginx tells of it only where it is not the scheme's usual one.
    environ["SERVER_PORT"] = environ.get("HTTP_X_FORWARDED_PORT") or ("443" if scheme == "https" else "80")
    mount = environ.get("HTTP_X_FORWARDED_PREFIX")
    if not mount:
        return True
    # nginx has found the mount in a path whose slashes it had merged.
    path = re.sub("//+", "/", environ["PATH_INFO"])
    environ["SCRIPT_NAME"], environ["PATH_INFO"] = mount, path[len(mount) :]
    return path.startswith(f"{mount}/")


def _with_the_client(scope):
    headers = dict(scope["headers"])
    address = headers.get(b"x-real-ip")
    if not address:
        return scope
    scheme = headers.get(b"x-forwarded-proto", scope["scheme"].encode()).decode("latin-1")
    mount = headers.get(b"x-forwarded-prefix", scope.get("root_path", "").encode()).decode("latin-1")
    if scope["type"] == "websocket":
        scheme = {"http": "ws", "https": "wss"}.get(scheme, scheme)
    return {**scope, "client": (address.decode("latin-1"), 0), "scheme": scheme, "root_path": mount}


def _link():
    """The link through which nginx finds this worker, where spawn keeps one for it."""
    return os.environ.get("WSGI_SPAWN_LINK")


def _live_no_longer_than_master():
    """spawn's workers end with it; where one has a master in between, that goes for both."""
    master = os.getppid()
    if _link() and master != int(os.environ["WSGI_SPAWN_PID"]):
        import ctypes  # which not every Python has, nor every server needs

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != master:
            os._exit(1)


def _say_whole_lines():
    """Unbuffered, Python hands on a line's end, and parts of a line, on their own: lines of several workers would mix."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # its server has put another one there
            stream.reconfigure(line_buffering=True, write_through=False)
