"""Access logs, and metrics of nginx, the apps and their servers for Prometheus."""

import json
import re
import shlex
import time

import pytest
from harness import wait_for
from pillars import app, inspected

HOSTILE = [
    b"quotes \" and ' and \\ and \\x22",
    b"\x01\x02 a bell \x07 and DEL \x7f",
    b"caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x90\x8d",
    b"half a letter \xc3",
    b"latin \xe9t\xe9, surrogates \xed\xa0\x80, overlong \xc0\xaf, beyond \xf5\x80\x80\x80",
    b"\xff" * 7000,
    b"\xe2\x82\xac" * 2300,
    b'{"app":"forged"}',
]
NUMBERS = {"msec": float, "status": int, "bytes_sent": int, "request_length": int, "request_time": float}
UPSTREAM = {"upstream_time": float, "upstream_status": int}
TEXTS = {
    *("time", "request_id", "app", "generation", "remote_addr", "remote_user", "scheme", "host", "method"),
    *("uri", "protocol", "cache", "referer", "user_agent"),
}
APPS = {
    # While a worker is replaced there is one more of them.
    "shop": inspected("uwsgi", domains=["shop.example.com"], metrics=True, max_requests=0),
    "blog": app("gunicorn", domains=["blog.example.com"], metrics=True),
    "quiet": app("waitress", domains=["quiet.example.com"], metrics=True, access_log="none"),
    "plain": app("uwsgi", domains=["plain.example.com"], access_log="combined"),
    "edge": app(
        "uwsgi",
        source="salt://apps/assets",
        application="assets:application",
        hooks={"build": ["python3 make_assets.py one"]},
        domains=["edge.example.com"],
        redirect_domains=["www.edge.example.com"],
        mount="/edge",
        tls="self_signed",
        static={"/static/": "static/"},
        error_pages={413: "errors/404.html"},
        client_max_body_size="1k",
        cors={"origins": ["https://other.example.com"]},
        metrics=True,
    ),
}


@pytest.fixture(scope="module")
def observed(machine):
    """
    The machine with five apps: two whose servers have metrics, one whose server has none, one without metrics, and
    one over TLS for which nginx itself answers much.
    """
    machine.pillar({"apps": APPS})
    machine.apply()
    return machine


def log(machine, name, text=""):
    """Return the lines of a site's access log, once one has a text: nginx logs a request just after its response."""
    file = f"/var/log/nginx/wsgi-{name}.access.log"
    machine.wait_until(shlex.join(["grep", "-qFe", text, file]))
    return machine.exec(["cat", file]).stdout.splitlines()


def last(machine, name, uri):
    """Return the line of the last request for a path."""
    return [line for line in map(json.loads, log(machine, name, f'"uri":"{uri}"')) if line["uri"] == uri][-1]


def metrics(machine, **awaited):
    """
    Return what Prometheus gets: a sample's name with its labels -> its value. Requests are counted just after their
    response, so this waits until the values rest and are at least those in `awaited`.
    """
    found, before = {}, None
    for _ in range(50):
        text = machine.get("/metrics", port=8078).body
        samples = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        found = {name: float(value) for name, _, value in samples}
        counted = {name: value for name, value in found.items() if name.startswith(("wsgi", "uwsgi", "gunicorn"))}
        if counted == before and all(found.get(name, 0) >= value for name, value in awaited.items()):
            break
        before = counted
        time.sleep(0.1)
    return found


def test_request_is_logged_as_a_line_of_json(observed):
    seen = json.loads(observed.get("/first?a=b", host="shop.example.com").body)["environ"]
    line = last(observed, "shop", "/first?a=b")
    assert {name: type(line[name]) for name in NUMBERS} == NUMBERS
    assert {name: type(line[name]) for name in UPSTREAM} == UPSTREAM
    assert {*line} == TEXTS | {*NUMBERS} | {*UPSTREAM}
    assert line["generation"] == observed.status("shop")["generation"]
    assert line["request_id"] == seen["HTTP_X_REQUEST_ID"]
    assert (line["app"], line["host"], line["status"]) == ("shop", "shop.example.com", 200)


@pytest.fixture(scope="module")
def generations(observed):
    return {name: status["generation"] for name, status in observed.call("wsgi.status").items()}


ASKING = ["--request", "OPTIONS", "--header", "Access-Control-Request-Method: PUT"]
ASKING += ["--header", "Origin: https://other.example.com"]


@pytest.mark.parametrize(
    ("url", "options", "status", "name", "answered"),
    [
        ("https://edge.example.com/edge/?by=app", [], 200, "edge", True),
        ("https://edge.example.com/edge/sent-on?by=app-asked-twice", [], 200, "edge", True),
        ("https://edge.example.com/edge/static/current?by=file", [], 200, "edge", False),
        ("https://edge.example.com/edge/static/missing?by=no-file", [], 404, "edge", False),
        ("https://edge.example.com/edge/?by=page", ["--data", 2000 * "x"], 413, "edge", False),
        ("https://edge.example.com/edge/?by=preflight", ASKING, 204, "edge", False),
        ("https://edge.example.com/edge?by=mount", [], 308, "edge", False),
        # These are answered by the site, in no location of an app.
        ("https://edge.example.com/elsewhere?by=nobody", [], 404, "", False),
        ("http://edge.example.com/edge/?by=redirect", [], 308, "", False),
        ("https://www.edge.example.com/edge/?by=other-domain", [], 308, "", False),
    ],
)
def test_every_request_is_logged_once_whoever_answers_it(observed, generations, url, options, status, name, answered):
    scheme, _, host, path = url.split("/", 3)
    sample = f'wsgi_requests_total{{app="edge",status="{status}"}}'
    before = metrics(observed).get(sample, 0)
    resolve = [word for port in (80, 443) for word in ("--resolve", f"{host}:{port}:127.0.0.1")]
    curl = ["curl", "--silent", "--insecure", "--output", "/dev/null", "--write-out", "%{http_code}"]
    assert observed.exec([*curl, *resolve, *options, url]).stdout == str(status)
    query = url.partition("?")[2]
    grep = f"grep '?{query}\"' /var/log/nginx/*access.log"
    observed.wait_until(grep)
    found = observed.exec(grep).stdout.splitlines()
    assert [each.partition(":")[0] for each in found] == ["/var/log/nginx/wsgi-edge.access.log"], found
    line = json.loads(found[0].partition(":")[2])
    assert (line["app"], line["status"], line["uri"]) == (name, status, f"/{path}")
    assert (line["scheme"], line["host"]) == (scheme[:-1], host)
    assert line["generation"] == (generations[name] if answered else "")
    wanted = before + (name == "edge")
    assert metrics(observed, **{sample: wanted}).get(sample, 0) == wanted


def test_logged_host_is_the_one_that_selected_the_site(observed):
    request = b"GET http://shop.example.com/whole HTTP/1.1\r\nHost: forged.example.com\r\nConnection: close\r\n\r\n"
    assert " 200 " in observed.send(request)
    assert last(observed, "shop", "/whole")["host"] == "shop.example.com"


def test_only_administrators_read_the_logs(observed):
    """Queries may hold secrets."""
    found = observed.exec("stat --format='%a %U %G' /var/log/nginx/wsgi-*.log").stdout.splitlines()
    assert len(found) == 9  # one app has none of access
    assert {*found} == {"640 www-data adm"}


def test_hostile_requests_are_logged_as_valid_json(observed):
    for text in HOSTILE:
        head = b"GET /hostile HTTP/1.1\r\nHost: shop.example.com\r\nConnection: close\r\n"
        answer = observed.send(head + b"User-Agent: " + text + b"\r\nReferer: " + text[:3000] + b"\r\n\r\n")
        assert answer, text
    observed.send(b"GET /\xff\xfe?\xe9 HTTP/1.1\r\nHost: shop.example.com\r\nConnection: close\r\n\r\n")
    password = b"Authorization: Basic /zr/\r\n"
    observed.send(b"GET /login HTTP/1.1\r\nHost: shop.example.com\r\nConnection: close\r\n" + password + b"\r\n")
    lines = [json.loads(line) for line in log(observed, "shop", '"uri":"/login"')]
    agents = [line["user_agent"] for line in lines]
    assert "café € 🐍" in agents
    assert "half a letter " in agents
    assert "€" * 2300 in agents
    assert "quotes \" and ' and \\ and \\x22" in agents
    assert {line["app"] for line in lines if line["status"] == 200} == {"shop"}


def test_request_that_nginx_refuses_is_logged(observed):
    assert " 400 " in observed.send(b"GET /bad HTTP/1.1\r\nHost: shop.example.com\r\nContent-Length: x\r\n\r\n")
    too_large = b"POST /large HTTP/1.1\r\nHost: shop.example.com\r\nContent-Length: 99999999\r\n\r\n"
    assert " 413 " in observed.send(too_large)
    bad, large = last(observed, "shop", "/bad"), last(observed, "shop", "/large")
    assert (bad["status"], bad["upstream_status"], bad["upstream_time"]) == (400, None, None)
    assert (large["status"], large["app"], large["generation"]) == (413, "shop", "")


def test_request_during_maintenance_is_logged_for_its_app(observed):
    observed.call("wsgi.maintenance", "shop", "on")
    assert observed.get("/closed", host="shop.example.com").status == 503
    observed.call("wsgi.maintenance", "shop", "off")
    line = last(observed, "shop", "/closed")
    assert (line["app"], line["status"], line["upstream_status"]) == ("shop", 503, None)


def test_access_log_can_be_combined_or_none(observed):
    for name in ("plain", "quiet"):
        assert observed.get("/seen", host=f"{name}.example.com").status == 200
    assert re.search(r'127\.0\.0\.1 - - \[.+\] "GET /seen HTTP/1\.1" 200 \d+ "-" "curl/.*"', log(observed, "plain")[-1])
    assert not observed.host.file("/var/log/nginx/wsgi-quiet.access.log").exists


def test_rotating_access_logs_loses_no_line(observed):
    with observed.load(clients=4, host="shop.example.com", path="/rotated", mode="keepalive-get") as load:
        for _ in range(3):
            observed.exec("logrotate --force /etc/logrotate.d/nginx && sleep 0.5")
    assert load.report["lost"] == 0, load.report
    lines = "zcat -f /var/log/nginx/wsgi-shop.access.log* | grep /rotated"
    written = wait_for(lambda: observed.exec(f"{lines} | wc -l").stdout.strip() == str(load.report["requests"]))
    assert written, observed.exec(f"{lines} | wc -l").stdout
    assert all(json.loads(line)["app"] == "shop" for line in observed.exec(lines).stdout.splitlines())
    assert observed.host.file("/var/log/nginx/wsgi-shop.access.log.1").exists


def test_metrics_of_nginx_are_exported(observed):
    found = metrics(observed)
    assert found["nginx_up"] == 1
    assert found["nginx_http_requests_total"] > 0


@pytest.mark.parametrize("name", ["shop", "blog", "quiet"])
def test_requests_are_counted_under_every_server(observed, name):
    before = metrics(observed)
    for _ in range(5):
        assert observed.get("/", host=f"{name}.example.com").status == 200
    samples = [
        f'wsgi_requests_total{{app="{name}",status="200"}}',
        f'wsgi_request_seconds_count{{app="{name}"}}',
        f'wsgi_request_seconds_bucket{{app="{name}",le="+Inf"}}',
    ]
    wanted = {sample: before.get(sample, 0) + 5 for sample in samples}
    found = metrics(observed, **wanted)
    assert {sample: found[sample] for sample in samples} == wanted
    generation = observed.status(name)["generation"]
    assert found[f'wsgi_live{{app="{name}",generation="{generation}"}}'] == 1


def test_metrics_of_uwsgi_are_exported(observed):
    before = metrics(observed)
    for _ in range(6):
        observed.get("/", host="shop.example.com")
    found = metrics(observed)
    served = 'uwsgi_worker_requests_total{app="shop",worker='
    assert sum(found[name] - before[name] for name in found if name.startswith(served)) == 6
    assert sum(found[name] for name in found if name.startswith('uwsgi_workers{app="shop"')) == 2
    assert not [name for name in found if "plain" in name and not name.startswith("wsgi_live")]


def test_metrics_of_gunicorn_are_exported(observed):
    before = metrics(observed)
    for _ in range(4):
        observed.get("/", host="blog.example.com")
    samples = [
        'gunicorn_requests_total{app="blog"}',
        'gunicorn_request_status_total{app="blog",status="200"}',
        'gunicorn_request_duration_seconds_count{app="blog"}',
    ]
    wanted = {sample: before[sample] + 4 for sample in samples}
    found = metrics(observed, **wanted)
    assert {sample: found[sample] for sample in samples} == wanted
    assert found['gunicorn_workers{app="blog"}'] == 2


def test_metrics_are_served_on_loopback_only(observed):
    listening = observed.exec("ss -Hltnu 'sport = :8078 or sport = :9113'").stdout.split("\n")
    addresses = {line.split()[4] for line in listening if line}
    assert addresses == {"127.0.0.1:8078", "127.0.0.1:9113"}


def test_metrics_service_runs_as_a_user_of_its_own_without_privileges(observed):
    pid = observed.exec("systemctl show --property=MainPID --value wsgi-metrics").stdout.strip()
    # DynamicUser: https://systemd.io/UIDS-GIDS
    assert 61184 <= int(observed.exec(["stat", "--format=%u", f"/proc/{pid}"]).stdout) <= 65519
    assert "CapEff:\t0000000000000000" in observed.exec(["cat", f"/proc/{pid}/status"]).stdout
    refused = observed.exec(
        "runuser -u nobody -- curl --unix-socket /run/wsgi-metrics.sock http://x/metrics", check=False
    )
    assert refused.rc


def test_killed_metrics_service_fails_no_request(observed):
    observed.exec("systemctl kill --signal=KILL wsgi-metrics")
    assert observed.get("/", host="blog.example.com").status == 200
    assert 'wsgi_live{app="blog"' in observed.get("/metrics", port=8078).body


def test_idle_run_starts_no_process_for_metrics(observed):
    started = observed.observe_idle_run()["started"]
    assert started
    assert [command for command in started if "'show', '--property" in command] == []


def test_services_stopped_or_disabled_by_hand_are_restored(observed):
    observed.exec("systemctl stop prometheus-nginx-exporter wsgi-metrics.socket; systemctl disable nginx")
    assert observed.apply().changed == {"nginx-service", "nginx-exporter-service", "metrics-socket"}
    assert metrics(observed)["nginx_up"] == 1
    assert observed.exec("systemctl is-enabled nginx").stdout.strip() == "enabled"


def test_unmanaged_nginx_has_logs_metrics_and_the_status_page_too(observed):
    observed.pillar({"apps": APPS, "nginx": {"manage": False}, "status_page": {}})
    observed.apply()
    before = metrics(observed)
    assert before["nginx_up"] == 1
    assert observed.get("/others", host="shop.example.com").status == 200
    assert last(observed, "shop", "/others")["app"] == "shop"
    sample = 'wsgi_requests_total{app="shop",status="200"}'
    wanted = before.get(sample, 0) + 1
    assert metrics(observed, **{sample: wanted})[sample] == wanted
    assert "5 of 5 apps healthy" in observed.get("/", port=8079).body


def test_disabling_metrics_removes_everything_of_them(observed):
    observed.pillar({"apps": {"plain": app("uwsgi", domains=["plain.example.com"], access_log="combined")}})
    observed.apply()
    with pytest.raises(ConnectionError):
        observed.get("/metrics", port=8078)
    assert (
        observed.exec("ss -Hltnu 'sport = :8078 or sport = :9113'; ls /run/wsgi-metrics.sock", check=False).stdout == ""
    )
    assert observed.exec("find /etc/systemd -name 'wsgi-metrics*' -o -name wsgi.conf").stdout == ""
    assert observed.apply().changed == set()
