"""
Keeps those of an app's settings in a worker that its server does not support itself.

A generation's ``wsgi_application.py`` hands the app's callable to ``guarded``. The returned callable counts requests,
ends those that take too long, and has a worker replaced that has served ``max_requests`` or outgrown ``memory_limit``,
in the way that ``wsgi_successor`` knows. Generations that started with an older version of this file import it again
whenever a worker starts: ``guarded``, its arguments, and ``through_asgi`` stay as they are.
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

INTERVAL = 1  # second between two checks of the running requests
CANCEL_TIME = 5  # seconds after which a cancelled request that still runs counts as hung
# How many cancelled requests a worker may have: some leave a thread hanging, and frameworks have only a few of those.
MAX_CANCELLED = 4
SERVICE_RESTART = 1012  # https://www.iana.org/assignments/websocket: the client may connect again at once
GENERATION_HEADER = "X-WSGI-Generation"
STDERR = 2
PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def guarded(application, interface, **settings):
    """
    Load an app's callable and return it under guard.

    application : str
        ``module:callable``.
    interface : str
        ``wsgi`` or ``asgi``.
    settings
        As ``Guard`` takes them.

    Returns a callable of the same interface. Raises what the app's import raises.
    """
    _end_with_master()
    _write_whole_lines()
    module, _, path = application.partition(":")
    found = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    return {"wsgi": WSGI, "asgi": ASGI}[interface](found, Guard(**settings))


class Guard:
    """
    The limits of a worker, and its running requests.

    request_timeout : int
        Seconds after which a request is hung, and its worker is replaced; 0: never.
    graceful_timeout : int
        Seconds that the worker's other requests then get to finish.
    max_requests : int
        The number of requests after which the worker is replaced; 0: never. A random part of a tenth is added, so that
        not all workers are replaced at once.
    memory_limit : int
        MiB of resident memory above which the worker is replaced, and at twice of which it is ended; 0: no limit.
    live, run : str
        The link to the folder in which nginx finds the live generation's sockets, and that folder of this generation.
    """

    def __init__(self, request_timeout=0, graceful_timeout=0, max_requests=0, memory_limit=0, live="", run=""):
        self.request_timeout = request_timeout
        self.graceful_timeout = graceful_timeout
        self.max_requests = max_requests
        self.memory_limit = memory_limit
        self.live = live
        self.run = run
        self.generation = os.path.basename(run)
        self._watched = None  # the PID of the process that has a watching thread: a fork does not copy threads
        self._lock = threading.Lock()
        self._reset()

    def _reset(self):
        self.running = {}  # id of a request -> (when it began, request)
        self.loop = None
        self._left = self.max_requests + random.randint(0, self.max_requests // 10)
        self._retiring = False
        self._last_end = time.monotonic()  # of a request
        self._cancelled = 0
        self._loop_pinged = None  # when the event loop got a callback that it has not run yet

    def begin(self, name, loop=None):
        """Note that a request begins, and return it: a list of its name, to which ASGI adds once it is answered."""
        if self._watched != os.getpid():
            with self._lock:
                self._start(loop)
        request = [name]
        self.running[id(request)] = (time.monotonic(), request)
        return request

    def _start(self, loop):
        if self._watched == os.getpid():  # by another thread's first request
            return
        self._reset()
        self._successor = wsgi_successor.of_this_process()
        self.loop = loop
        if self.request_timeout or self.max_requests or self.memory_limit:
            threading.Thread(target=self._watch, daemon=True, name="wsgi_guard").start()
        self._watched = os.getpid()

    def end(self, request):
        """Note that a request has ended; a second call does nothing."""
        if not self.running.pop(id(request), None):
            return
        self._last_end = time.monotonic()
        self._left -= 1
        if self.max_requests and self._left <= 0 and not self._retiring:
            self.retire()
        elif self._retiring and self._successor.relieved():
            self._successor.leave()

    def cancelled(self, request):
        """Note that a request took too long and is cancelled."""
        self._cancelled += 1
        enough = self._cancelled >= MAX_CANCELLED and not self._retiring
        after = "" if enough else "; it is cancelled"
        self._log(f"{request[0]} took more than {self.request_timeout} s{after}", replaced=enough)
        if enough:
            self.retire()

    def receives_connections(self):
        """Return whether nginx still brings new connections to this worker."""
        if self._retiring and self._successor.relieved():
            return False
        link = _link()
        if link and os.path.realpath(link) != os.path.realpath(os.environ["WSGI_SPAWN_SOCKET"]):
            return False
        return not self.live or os.path.realpath(self.live) == self.run

    def retire(self):
        """Have this worker replaced. It serves until its successor does."""
        self._retiring = True
        self._successor.ask()

    def _watch(self):
        while True:
            if self.request_timeout:
                self._postpone_end()
                self._check_requests()
            if self.memory_limit:
                self._check_memory()
            if self._retiring:
                self._check_successor()
            time.sleep(INTERVAL / 4 if self._retiring else INTERVAL)

    def _postpone_end(self):
        """Have a timer in C end the worker unless this is called again: Python itself may hang, in an extension."""
        slack = self.request_timeout + self.graceful_timeout + 10 * INTERVAL
        faulthandler.dump_traceback_later(slack, exit=True, file=STDERR)

    def _check_successor(self):
        if not self._successor.relieved():
            self._successor.ask()
        elif not self.running and time.monotonic() >= self._last_end + INTERVAL:
            # Otherwise the end of the next request is safer: uWSGI would drop a request that it has just accepted.
            self._successor.leave()

    def _check_requests(self):
        now = time.monotonic()
        if self.loop:
            self._check_loop(now)
            return
        hung = self._hung(now)
        if hung:
            self._log(f"{self._names(hung)} took more than {self.request_timeout} s")
            self._end(hung)

    def _check_loop(self, now):
        """End this worker if its event loop stands still, or a request goes on after it was cancelled."""
        if self.loop.is_closed():  # the worker ends
            return
        hung = self._hung(now)
        if self._loop_pinged is None:
            self._loop_pinged = now  # before the loop can clear it
            with contextlib.suppress(RuntimeError):  # it has been closed meanwhile
                self.loop.call_soon_threadsafe(self._loop_turns)
            if hung:
                self._log(f"{self._names(hung)} did not end when it was cancelled")
                self._end(hung)
        elif now - self._loop_pinged >= self.request_timeout:
            self._log(f"the event loop has stood still for more than {self.request_timeout} s")
            self._end(set(self.running))

    def _hung(self, now):
        """Return the keys of the requests that take too long; of ASGI, those that went on after they were cancelled."""
        limit = self.request_timeout + (CANCEL_TIME if self.loop else 0)
        return {
            key for key, (since, request) in list(self.running.items()) if len(request) == 1 and now - since >= limit
        }

    def _loop_turns(self):
        self._loop_pinged = None

    def _check_memory(self):
        with open("/proc/self/statm") as statm:
            used = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20
        if used > 2 * self.memory_limit:
            self._log(f"this worker uses {used} MiB, twice the limit")
            os._exit(1)
        if used > self.memory_limit and not self._retiring:
            self._log(f"this worker uses {used} MiB")
            self.retire()
        if used > 1.5 * self.memory_limit:  # it grows too fast to wait for a successor
            self._successor.leave()

    def _end(self, hung):
        """
        Wait for the successor and for the requests that do not hang, then end this process.

        Without a successor this worker goes on serving, with the threads that do not hang.
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
            self._postpone_end()
            if self._successor.relieved():
                self._successor.leave()
            else:
                self._successor.ask()
            if self.memory_limit:
                self._check_memory()
            time.sleep(INTERVAL / 20)
            hung = hung & set(self.running) | self._hung(now)
            others = set(self.running) - hung
            if others and not self._successor.relieved():
                deadline = now + self.graceful_timeout
        os._exit(1)

    def _names(self, keys):
        return ", ".join(sorted({self.running[key][1][0] for key in keys if key in self.running}))

    @staticmethod
    def _log(sentence, replaced=True):
        after = "; it is replaced" if replaced else ""
        os.write(STDERR, f"wsgi_guard: pid {os.getpid()}: {sentence}{after}\n".encode())


class WSGI:
    """A WSGI app under guard."""

    def __init__(self, application, guard):
        self.application = application
        self.guard = guard

    def __call__(self, environ, start_response):
        start_response = _signed(start_response, self.guard)
        if not _set_client(environ):
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
        if _is_handed_on(body, environ):
            _read_the_rest(environ)
            self.guard.end(request)
            return body
        return _Body(body, self.guard, request, start_response, environ)


class _Body:
    """The streamed response of an app: the request ends when it is closed."""

    def __init__(self, body, guard, request, start_response, environ):
        self._body = body
        self._guard = guard
        self._request = request
        self._environ = environ
        # An error before the first block can still be answered, and granian takes another status only until it has this
        # object.
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
    """
    An ASGI app under guard.

    A request is hung when no part of its response came in time. A WebSocket may stay as long as nginx brings new
    connections to its worker.
    """

    def __init__(self, application, guard):
        self.application = application
        self.guard = guard
        self._sockets = {}  # the `send` of each WebSocket -> whether the guard has closed it
        self._closer = None  # the task that does

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            await self._answer(_with_client(scope), receive, send)
        elif scope["type"] == "websocket":
            await self._converse(_with_client(scope), receive, send)
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
                if not self._closer or self._closer.done():
                    self._closer = asyncio.create_task(self._close_sockets())

        try:
            await self.application(scope, receive, sending)
        except _Closed:
            pass
        finally:
            self._sockets.pop(send, None)

    async def _close_sockets(self):
        """Close the WebSockets once another worker has the traffic, shortly before graceful_timeout would cut them."""
        since = None
        while self._sockets:
            await asyncio.sleep(INTERVAL)
            now = time.monotonic()
            since = None if self.guard.receives_connections() else since or now
            if since and now - since >= self.guard.graceful_timeout - 3 * INTERVAL:
                await asyncio.wait([asyncio.create_task(self._close(send)) for send in list(self._sockets)], timeout=1)

    async def _close(self, send):
        if not self._sockets.get(send, True):
            self._sockets[send] = True
            with contextlib.suppress(Exception):  # the client has gone
                await send({"type": "websocket.close", "code": SERVICE_RESTART})


class _Closed(OSError):
    """Raised in an app that sends on after its WebSocket was closed."""


def through_asgi(application, threads, software):
    """
    Return a WSGI app as an ASGI app, through a2wsgi, for a server that speaks ASGI alone.

    application : callable
        As ``guarded`` returns it.
    threads : int
        How many requests it may have at a time.
    software : str
        Its ``SERVER_SOFTWARE``.
    """
    from a2wsgi import WSGIMiddleware

    def completed(environ, start_response):
        scope = environ["asgi.scope"]
        if scope.get("raw_path") and not scope.get("root_path"):
            # The path may have bytes that are not UTF-8.
            environ["PATH_INFO"] = unquote_to_bytes(scope["raw_path"]).decode("latin-1")
        environ["SERVER_SOFTWARE"] = software
        environ["wsgi.errors"] = sys.stderr
        environ["wsgi.multithread"] = threads > 1
        # readline() of a2wsgi's own takes a pause of the client for the end of the body.
        environ["wsgi.input"] = io.BufferedReader(_Input(environ["wsgi.input"]))
        starting = _Start(start_response)
        body = application(environ, starting)
        starting.send()
        return body

    return WSGIMiddleware(completed, workers=threads)


class _Start:
    """A start_response that can be called again until something was sent; that of a2wsgi sends at once."""

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
    """The body of a request, as io.BufferedReader wants it."""

    def __init__(self, body):
        self._body = body

    def readable(self):
        return True

    def readinto(self, into):
        block = self._body.read(len(into))
        into[: len(block)] = block
        return len(block)


def _is_handed_on(body, environ):
    """Return whether a response is complete, or a file for the server to send: neither may be wrapped."""
    wrapper = environ.get("wsgi.file_wrapper")  # a function under uWSGI, whose files it returns as they are
    wrapped = isinstance(wrapper, type) and isinstance(body, wrapper)
    return type(body) in (list, tuple) or wrapped or hasattr(body, "read")


def _failed(start_response):
    """Log an exception and return the body of its response, which some servers would not send."""
    traceback.print_exc()
    headers = [("Content-Type", "text/plain"), ("Content-Length", "22")]
    # uWSGI takes the headers, but leaves the exception set, so that Python raises a SystemError.
    with contextlib.suppress(SystemError):
        start_response("500 Internal Server Error", headers, sys.exc_info())
    return [b"Internal Server Error\n"]


def _read_the_rest(environ):
    """Read what the app left of the body: servers that close with unread data reset the connection."""
    if environ.get("CONTENT_LENGTH") not in (None, "", "0"):
        with contextlib.suppress(Exception):
            while environ["wsgi.input"].read(65536):
                pass


def _not_found(start_response):
    start_response("404 Not Found", [("Content-Type", "text/plain"), ("Content-Length", "10")])
    return [b"Not Found\n"]


def _signed(start_response, guard):
    """Return a start_response that adds the header from which nginx logs the generation."""
    if not guard.generation:
        return start_response

    def signed(status, headers, *exc_info):
        return start_response(status, [*headers, (GENERATION_HEADER, guard.generation)], *exc_info)

    return signed


def _set_client(environ):
    """
    Set the client's address, the scheme, the port and the mount from nginx's headers, and return whether the path is
    below the mount: over a unix socket a server sees nginx as its only client.
    """
    if "HTTP_X_REAL_IP" not in environ:
        return True
    environ["REMOTE_ADDR"] = environ["HTTP_X_REAL_IP"]
    scheme = environ.get("HTTP_X_FORWARDED_PROTO") or environ["wsgi.url_scheme"]
    environ["wsgi.url_scheme"] = scheme
    # nginx sends the port only where it is not the scheme's usual one.
    environ["SERVER_PORT"] = environ.get("HTTP_X_FORWARDED_PORT") or ("443" if scheme == "https" else "80")
    mount = environ.get("HTTP_X_FORWARDED_PREFIX")
    if not mount:
        return True
    # nginx found the mount in the path with its slashes merged.
    path = re.sub("//+", "/", environ["PATH_INFO"])
    environ["SCRIPT_NAME"], environ["PATH_INFO"] = mount, path[len(mount) :]
    return path.startswith(f"{mount}/")


def _with_client(scope):
    """Return an ASGI scope with the client's address, the scheme and the mount from nginx's headers."""
    headers = dict(scope["headers"])
    address = headers.get(b"x-real-ip")
    if not address:
        return scope
    scheme = headers.get(b"x-forwarded-proto", scope.get("scheme", "http").encode()).decode("latin-1")
    mount = headers.get(b"x-forwarded-prefix", scope.get("root_path", "").encode()).decode("latin-1")
    if scope["type"] == "websocket":
        scheme = {"http": "ws", "https": "wss"}.get(scheme, scheme)
    return {**scope, "client": (address.decode("latin-1"), 0), "scheme": scheme, "root_path": mount}


def _link():
    """Return the link through which nginx finds this worker, or None where it is not one of ``spawn``."""
    return os.environ.get("WSGI_SPAWN_LINK")


def _end_with_master():
    """Have the kernel end this worker with a master that is between ``spawn`` and it."""
    master = os.getppid()
    if _link() and master != int(os.environ["WSGI_SPAWN_PID"]):
        import ctypes  # not every Python has it, and only these workers need it

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != master:
            os._exit(1)


def _write_whole_lines():
    """Buffer stdout and stderr by line: unbuffered, Python writes parts of a line, and lines of workers would mix."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # the server has replaced the stream
            stream.reconfigure(line_buffering=True, write_through=False)
