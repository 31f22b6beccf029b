"""Trusted proxies, and how nginx passes requests on: over the uwsgi protocol, over kept connections, and to workers with a
socket each."""

import json
import textwrap

import pytest
from pillars import app

BALANCER = "127.0.0.9"  # an address that requests can come from, too
SERVERS = ["uwsgi", "gunicorn", "waitress"]
# The beginning of the programs that run on the machine.
CLIENT = """
import json, re, socket

def connect(source="127.0.0.1", port=80):
    return socket.create_connection(("127.0.0.1", port), 20, (source, 0))

def rest(sock):
    with sock:
        return b"".join(iter(lambda: sock.recv(65536), b"")).decode("latin-1")

def ask(request, **where):
    "Everything that comes back for a request, given in lines, until nginx hangs up."
    sock = connect(**where)
    head, _, body = request.partition("\\n\\n")
    sock.sendall((head.replace("\\n", "\\r\\n") + "\\r\\n\\r\\n" + body).encode("latin-1"))
    return rest(sock)

def get(host, target="/", headers="", version="1.1", method="GET", body="", **where):
    length = f"Content-Length: {len(body)}\\n" if body else ""
    head = f"{method} {target} HTTP/{version}\\nHost: {host}\\n{headers}{length}Connection: close\\n\\n"
    return ask(head + body, **where)

def listens(path):
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(path) == 0

def until(sock, words):
    received = b""
    while words not in received:
        part = sock.recv(65536)
        assert part, received
        received += part
"""


def upstream(server, **settings):
    return app(
        server,
        **{
            "source": "salt://apps/upstream",
            "application": "upstream:application",
            "domains": [f"{server}.example.com"],
            "redirect_domains": [f"www.{server}.example.com"],
            "threads": 2,
            **settings,
        },
    )


def pillar(**nginx):
    return {
        "apps": {
            "uwsgi": upstream("uwsgi", buffering=False, request_buffering=False, threads=1),
            # Behind the balancer it has another port.
            "gunicorn": upstream("gunicorn", listen=8080, request_buffering=False),
            "waitress": upstream("waitress", client_max_body_size="1k"),
            "patient": upstream("uwsgi", domains=["patient.example.com"], redirect_domains=[]),
        },
        "nginx": {"trusted_proxies": [BALANCER], **nginx},
    }


PORTS = {"gunicorn": 8080}


@pytest.fixture(scope="module")
def served(machine):
    machine.pillar(pillar())
    machine.apply()
    return machine


@pytest.fixture(params=SERVERS)
def server(request):
    return request.param


def where(server):
    """Return the host and port of a server's app."""
    return {"host": f"{server}.example.com", "port": PORTS.get(server, 80)}


def run(machine, code, **names):
    """Run a program on the machine, with `names` as its variables, and return the JSON that it prints."""
    program = CLIENT + "".join(f"{name} = {value!r}\n" for name, value in names.items()) + textwrap.dedent(code)
    machine.put("/tmp/client.py", program)
    done = machine.exec(["timeout", "60", "python3", "/tmp/client.py"])
    return json.loads(done.stdout)


def get(machine, server, target="/", **options):
    """Return the text of a response with its head."""
    options = {**where(server), "target": target, **options}
    return run(machine, "print(json.dumps(get(**options)))", options=options)


def environ_of(machine, server, **options):
    """Return the WSGI environ that the app got."""
    answer = get(machine, server, **options)
    body = answer.partition("\r\n\r\n")[2]
    return json.loads(body[body.index("{") : body.rindex("}") + 1])


FORWARDED = (
    "X-Forwarded-For: 192.0.2.1, 198.51.100.7\nX-Forwarded-Proto: https\nX-Request-ID: balancers-own\n"
    "X-Forwarded-Host: evil.example\nX-Forwarded-Prefix: /evil\n"
)
EITHER_PORT = "X-Forwarded-Port: 8443\n"


def test_address_scheme_and_port_come_from_a_trusted_proxy(served, server):
    environ = environ_of(served, server, headers=FORWARDED + EITHER_PORT, source=BALANCER)
    # The balancer itself saw the last address before its own.
    assert environ["REMOTE_ADDR"] == environ["HTTP_X_FORWARDED_FOR"] == environ["HTTP_X_REAL_IP"] == "198.51.100.7"
    assert environ["wsgi.url_scheme"] == environ["HTTP_X_FORWARDED_PROTO"] == "https"
    assert environ["SERVER_PORT"] == environ["HTTP_X_FORWARDED_PORT"] == "8443"
    assert environ["HTTP_X_REQUEST_ID"] == "balancers-own"
    # Most proxies pass these on as clients send them.
    assert environ["HTTP_HOST"] == f"{server}.example.com"
    assert "HTTP_X_FORWARDED_HOST" not in environ
    assert environ.get("SCRIPT_NAME", "") == ""


def test_port_defaults_to_that_of_the_scheme_behind_a_trusted_proxy(served, server):
    assert environ_of(served, server, headers=FORWARDED, source=BALANCER)["SERVER_PORT"] == "443"


def test_forwarded_headers_of_a_client_are_ignored(served, server):
    environ = environ_of(served, server, headers=FORWARDED + EITHER_PORT)
    assert environ["REMOTE_ADDR"] == environ["HTTP_X_FORWARDED_FOR"] == environ["HTTP_X_REAL_IP"] == "127.0.0.1"
    assert environ["wsgi.url_scheme"] == environ["HTTP_X_FORWARDED_PROTO"] == "http"
    assert environ["SERVER_PORT"] == str(PORTS.get(server, 80))
    assert environ.get("HTTPS", "") == ""
    assert len(environ["HTTP_X_REQUEST_ID"]) == 32
    assert "evil" not in json.dumps(environ)


def test_invalid_request_id_of_a_trusted_proxy_is_replaced(served):
    environ = environ_of(served, "uwsgi", headers="X-Request-ID: <script> of mine\n", source=BALANCER)
    assert len(environ["HTTP_X_REQUEST_ID"]) == 32


def test_app_gets_the_host_that_selected_the_site(served, server):
    """The one in the request line wins: https://www.rfc-editor.org/rfc/rfc9112#section-3.2.2"""
    code = """
    line = f"GET http://{host}:{port}/a HTTP/1.1"
    print(json.dumps(ask(f"{line}\\nHost: evil.example:{port}\\nConnection: close\\n\\n", port=port)))
    """
    answer = run(served, code, **where(server))
    assert f'"HTTP_HOST": "{server}.example.com:{PORTS.get(server, 80)}"' in answer
    assert '"PATH_INFO": "/a"' in answer
    assert "evil" not in answer


def test_redirect_keeps_the_scheme_and_port_of_the_client(served):
    options = {"host": "www.gunicorn.example.com", "target": "/a?b=c%20d", "port": 8080}
    code = """
    print(json.dumps([re.search("Location: (.*)\\r", get(**{**options, **more}))[1] for more in (
        {}, {"source": balancer, "headers": "X-Forwarded-Proto: https\\n"}
    )]))
    """
    assert run(served, code, options=options, balancer=BALANCER) == [
        "http://gunicorn.example.com:8080/a?b=c%20d",
        "https://gunicorn.example.com/a?b=c%20d",
    ]


# Retries


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_request_that_kills_a_worker_is_not_retried(served, server, method):
    words = [f"{method}-{number}" for number in range(3)]
    code = """
    answers = []
    for word in words:
        while not all(map(listens, sockets)):
            pass
        answers.append(get(host, f"/?do=die&word={word}", method=method, body=body, port=port)[:12])
    print(json.dumps(answers))
    """
    numbers = {"waitress": ["-1", "-2"]}.get(server, [""])
    protocol = "uwsgi" if server == "uwsgi" else "http"
    names = {"words": words, "method": method, "body": "x" * 100 if method == "POST" else ""}
    names["sockets"] = [f"/var/lib/wsgi/live/{server}/{protocol}{number}.sock" for number in numbers]
    assert set(run(served, code, **where(server), **names)) == {"HTTP/1.1 502"}
    asked = served.exec(["cat", f"/var/lib/wsgi/home/{server}/asked"]).stdout.split()
    # On a connection that was kept, nginx can't tell a dead worker from one that has just hung up, and asks
    # again where the method allows: https://www.rfc-editor.org/rfc/rfc9110#section-9.2.2
    most = 2 if (server, method) == ("gunicorn", "GET") else 1
    assert all(1 <= asked.count(word) <= most for word in words), asked


# Bodies and answers


def test_events_are_sent_before_the_response_ends(served, server):
    """Pillar disables buffering for uWSGI's app, and the others send X-Accel-Buffering."""
    code = """
    sock = connect(port=port)
    sock.sendall(f"GET /?do=events{header} HTTP/1.1\\r\\nHost: {host}\\r\\nConnection: close\\r\\n\\r\\n".encode())
    until(sock, b"data: one")
    get(host, "/?do=asked", port=port)
    print(json.dumps(rest(sock)))
    """
    header = "" if server == "uwsgi" else "&header=X-Accel-Buffering:no"
    assert "data: two" in run(served, code, **where(server), header=header)


@pytest.mark.parametrize("server", ["uwsgi", "gunicorn"])
def test_body_with_a_length_is_passed_on_without_buffering(served, server):
    code = """
    sock = connect(port=port)
    head = f"POST /?do=begin&word=begun- HTTP/1.1\\r\\nHost: {host}\\r\\nContent-Length: 4100\\r\\nConnection: close\\r\\n"
    sock.sendall(head.encode() + b"\\r\\n" + b"first" * 800)  # servers read a block at a time
    while "begun-first" not in get(host, "/?do=asked", port=port):
        pass
    sock.sendall(b"other" * 20)
    print(json.dumps(rest(sock)))
    """
    assert "first" * 800 + "other" * 20 in run(served, code, **where(server))


@pytest.mark.parametrize("server", ["uwsgi", "gunicorn"])
def test_chunked_body_is_passed_on_with_a_length(served, server):
    code = """
    head = f"POST / HTTP/1.1\\nHost: {host}\\nTransfer-Encoding: chunked\\nConnection: close\\n\\n"
    print(json.dumps(ask(head + "5\\r\\nfirst\\r\\n5\\r\\nother\\r\\n0\\r\\n\\r\\n", port=port)))
    """
    answer = run(served, code, **where(server))
    assert '"CONTENT_LENGTH": "10"' in answer
    assert '"body": "firstother"' in answer


def test_too_large_body_is_refused(served):
    assert get(served, "waitress", method="POST", body="x" * 1025).startswith("HTTP/1.1 413")
    assert get(served, "waitress", method="POST", body="x" * 1024).startswith("HTTP/1.1 200")
    assert get(served, "uwsgi", method="POST", body="x" * 1025).startswith("HTTP/1.1 200")


def test_slow_clients_block_no_worker(served):
    """There are many more clients than workers: half send headers, half bodies."""
    code = """
    slow = [connect() for _ in range(60)]
    for number, sock in enumerate(slow):
        sock.sendall(f"POST / HTTP/1.1\\r\\nHost: {host}\\r\\nContent-Length: 100\\r\\n".encode())
        if number % 2:
            sock.sendall(b"\\r\\n")
    answers = []
    for _ in range(20):
        for sock in slow:
            sock.sendall(b"a")
        answers.append(get(host)[:12])
    print(json.dumps(answers))
    """
    assert set(run(served, code, host="patient.example.com")) == {"HTTP/1.1 200"}


# The uwsgi socket, through which code could be loaded


def test_only_nginx_can_connect_to_the_uwsgi_socket(served):
    connecting = (
        "import socket, sys; sock = socket.socket(socket.AF_UNIX); sock.connect('/var/lib/wsgi/live/uwsgi/uwsgi.sock')"
    )
    for user in ("nobody", "wsgi-gunicorn"):
        done = served.exec(["runuser", "-u", user, "--", "python3", "-c", connecting], check=False)
        assert "PermissionError" in done.stderr, done
    # The check can fail: nginx's user connects.
    assert served.exec(["runuser", "-u", "www-data", "--", "python3", "-c", connecting], check=False).rc == 0
    listeners = served.exec("ss -Hltnp").stdout.splitlines()
    assert listeners
    assert not [line for line in listeners if "uwsgi" in line]


def test_headers_cannot_set_uwsgi_parameters(served):
    served.put("/tmp/evil.py", "def application(environ, start_response):\n    raise SystemExit\n", 0o644)
    names = ("FILE", "SCRIPT", "MODULE", "APPID", "PYHOME", "CHDIR", "CALLABLE")
    forged = "".join(f"UWSGI_{name}: /tmp/evil.py\nUwsgi-{name}: /tmp/evil.py\n" for name in names)
    environ = environ_of(served, "uwsgi", headers=f"{forged}SCRIPT_NAME: /evil\nScript-Name: /evil\nPath_Info: /evil\n")
    assert {name for name, value in environ.items() if "evil" in value} == {
        *(f"HTTP_UWSGI_{name}" for name in names),
        "HTTP_SCRIPT_NAME",
    }


# Last: the PROXY protocol, which from then on every client has to speak


def test_address_comes_from_the_proxy_protocol(served, server):
    if server == SERVERS[0]:
        served.pillar(pillar(proxy_protocol=True))
        run_of_it = served.apply()
        assert {id for id in run_of_it.changed if id.endswith("-live")} == set()
    code = """
    found = []
    for source in (balancer, "127.0.0.1"):
        sock = connect(source=source, port=port)
        sock.sendall(b"PROXY TCP4 198.51.100.7 192.0.2.9 4711 443\\r\\n")
        sock.sendall(f"GET / HTTP/1.1\\r\\nHost: {host}\\r\\nX-Forwarded-For: 6.6.6.6\\r\\n".encode())
        sock.sendall(b"X-Forwarded-Proto: https\\r\\nConnection: close\\r\\n\\r\\n")
        answer = rest(sock)
        environ = json.loads(answer[answer.index("{"):answer.rindex("}") + 1])
        found.append([environ["REMOTE_ADDR"], environ["HTTP_X_FORWARDED_FOR"], environ["wsgi.url_scheme"]])
    print(json.dumps(found))
    """
    trusted, other = run(served, code, **where(server), balancer=BALANCER)
    assert trusted == ["198.51.100.7", "198.51.100.7", "http"]
    assert other == ["127.0.0.1", "127.0.0.1", "http"]
