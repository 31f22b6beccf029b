"""Requests to a server's socket, and the connections that it has."""

import contextlib
import socket
import threading

import pytest
from wsgi_formula.run.probe import count_connections, request_status, uwsgi_request

RESPONSE = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"


@contextlib.contextmanager
def server(path, response, requests):
    """Serve one connection on a unix socket: add what it sends to `requests`, and send it a response."""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve():
            connection, _ = listener.accept()
            with connection:
                requests.append(connection.recv(65536))
                connection.sendall(response)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            thread.join()


def test_status_of_an_http_server_is_returned(tmp_path):
    requests = []
    with server(tmp_path / "http.sock", RESPONSE, requests):
        status = request_status("http", f"{tmp_path}/http.sock", "/healthz?full=1", "shop.example.com", 10)
    assert status == 204
    lines = requests[0].split(b"\r\n")
    assert lines[0] == b"GET /healthz?full=1 HTTP/1.1"
    assert b"Host: shop.example.com" in lines


def test_status_of_a_uwsgi_server_is_returned(tmp_path):
    requests = []
    with server(tmp_path / "uwsgi.sock", RESPONSE, requests):
        assert request_status("uwsgi", f"{tmp_path}/uwsgi.sock", "/healthz?full=1", "shop.example.com", 10) == 204
    assert requests == [uwsgi_request("/healthz?full=1", "shop.example.com")]
    for variable in (b"PATH_INFO\x08\x00/healthz", b"QUERY_STRING\x06\x00full=1", b"HTTP_HOST\x10\x00shop.example.com"):
        assert variable in requests[0]


@pytest.mark.parametrize("protocol", ["http", "uwsgi"])
def test_missing_socket_is_an_oserror(tmp_path, protocol):
    with pytest.raises(FileNotFoundError):
        request_status(protocol, f"{tmp_path}/none.sock", "/", "localhost", 10)


def test_connections_of_a_folder_are_counted_accepted_or_not(tmp_path):
    with contextlib.ExitStack() as opened:
        for path in (tmp_path / "http.sock", tmp_path / "below" / "stats.sock"):
            path.parent.mkdir(exist_ok=True)
            listener = opened.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(path))
            listener.listen()
            opened.enter_context(socket.socket(socket.AF_UNIX)).connect(str(path))
        # The client's end has no path.
        assert count_connections(str(tmp_path)) == 1
    assert count_connections(str(tmp_path)) == 0
