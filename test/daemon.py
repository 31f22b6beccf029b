"""Docker's daemon, with one client of Docker's SDK for each process of the tests.

process = Process("container's name", ["cat"], stdin=True)
process.write("hello\n")
assert next(process.lines) == "hello"
assert process.wait("and goodbye\n") == Result(0, "and goodbye\n", "")
"""

import codecs
import contextlib
import io
import socket
import struct
import threading
import time
from functools import cache

import docker
from container import CommandFailed, Result
from docker.transport import UnixHTTPAdapter

STDOUT, STDERR = 1, 2
CONNECTIONS = 64  # to keep open; the contract's fleet has a thread for each server


class Adapter(UnixHTTPAdapter):
    """An adapter with one pool of connections; the SDK's own has one for each URL, so a new connection for each command."""

    def get_connection(self, url, proxies=None):
        return super().get_connection("http+docker://localhost", proxies)


@cache
def client():
    """Return the client, which threads may share. It has no time-outs, since a command may be silent for long."""
    client = docker.from_env(timeout=None, max_pool_size=CONNECTIONS)
    unix = client.api.adapters.get("http+docker://")
    if unix:
        client.api.mount("http+docker://", Adapter(unix.socket_path, timeout=None, max_pool_size=CONNECTIONS))
    return client


class Process:
    """A running command in a container."""

    def __init__(self, container, argv, stdin=False):
        self._api = client().api
        self._id = self._api.exec_create(container, argv, stdin=stdin)["Id"]
        # The SDK's exec_start reads from the socket what http.client may have read already, together with the
        # headers: output is lost on a busy machine. So the answer is read as any other one.
        url = self._api._url("/exec/{0}/start", self._id)
        self._answer = self._api.post(url, json={"Detach": False, "Tty": False}, stream=True)
        self._api._raise_for_status(self._answer)
        self._socket = self._api._get_raw_response_socket(self._answer)._sock
        self._output = {STDOUT: io.BytesIO(), STDERR: io.BytesIO()}
        self.lines = self._read_lines()

    def write(self, text):
        """Write to the command's stdin."""
        self._socket.sendall(text.encode())

    def close_stdin(self):
        self._socket.shutdown(socket.SHUT_WR)

    def _read_lines(self):
        """Yield the lines of stdout, as they come."""
        decode, line = codecs.getincrementaldecoder("utf-8")().decode, ""
        for stream, content in self._frames():
            if stream == STDOUT:
                *whole, line = (line + decode(content)).split("\n")
                yield from whole
            else:
                self._output[stream].write(content)
        if line:
            yield line

    def wait(self, stdin=None):
        """Write the rest of the command's input, and return the Result with the output that was not read before."""
        if stdin is not None:
            # Beside the reading: a command may say more than fits in a pipe before it reads on.
            threading.Thread(target=self._write_all, args=[stdin], daemon=True).start()
        for stream, content in self._frames():
            self._output[stream].write(content)
        return Result(self._exit_code(), self._text(STDOUT), self._text(STDERR))

    def _write_all(self, text):
        with contextlib.suppress(OSError):  # it need not read all
            self.write(text)
            self.close_stdin()

    def _frames(self):
        """Yield pairs of stream and bytes."""
        raw = self._answer.raw
        while header := raw.read(8):
            stream, size = struct.unpack(">BxxxL", header)
            yield stream, raw.read(size)
        self._answer.close()

    def _exit_code(self, seconds=60):
        """Return the exit code, which comes a little after the end of the output."""
        deadline = time.monotonic() + seconds
        while (code := self._api.exec_inspect(self._id)["ExitCode"]) is None:
            if time.monotonic() > deadline:
                raise CommandFailed(f"a command that has closed its output still runs after {seconds} s")
            time.sleep(0.01)
        return code

    def _text(self, stream):
        """Return what came on a stream, with line ends as Python has them."""
        self._output[stream].seek(0)
        return io.TextIOWrapper(self._output[stream], "utf-8").read()
