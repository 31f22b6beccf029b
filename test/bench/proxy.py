"""Measure requests per second and the 99th percentile of the response time through the formula's site and through
other sites, on loopback, and the processor time that nginx takes for a request. Prints two tables in Markdown.

~/.cache/wsgi-formula/venv/bin/python test/bench/proxy.py [--runs 5] [--seconds 3] [--keep]

(The virtual environment is test/run's.) For each server, the same app with the same number of workers gets requests
through the formula's site and in these ways, which take turns on one machine:

direct    the server itself on a TCP port, without nginx
example   the nginx configuration that the server's project shows: gunicorn's examples/nginx.conf, the Nginx page of
          uWSGI's documentation
piku      the template of https://github.com/piku/piku
tuned     a configuration that is made for speed alone: connections kept where the server keeps them, few headers, no
          access log
return    nginx alone: `return 200`

A ratio is the formula's figure divided by the other one: for requests per second, more than 1 means that the formula
is faster; for times, less than 1. The second table shows nginx's processor time for a request, in µs: through the
formula's site; without its access log, without its request id, without its stat() calls, and without all three; and
through the others.

Exits with 1 when a goal is missed: never slower than example and piku, neither in requests nor in time; and 0.9 of
the requests of tuned.
"""

import re
import statistics
import sys

from machine import arguments, booted, where

CLIENTS = 16
# Of requests per second, at least; of times, at most.
GOALS = {"example": (1.0, 1.0), "piku": (1.0, 1.0), "tuned": (0.9, None)}
# name: (the app's settings, whether its server keeps connections)
SERVERS = {
    "uwsgi": ({"server": "uwsgi"}, False),
    "gunicorn, sync": ({"server": "gunicorn"}, False),
    "gunicorn, gthread": ({"server": "gunicorn", "threads": 4}, True),
}
DIRECT, OTHERS = 9000, 9100  # the first ports of each kind
SITES = ("example", "piku", "tuned", "return")
# Ours without some of what it does.
LESS = {"no log": {"log"}, "no id": {"id"}, "no stat()": {"look"}, "none of them": {"log", "id", "look"}}
LESS_PORT = 9200  # the first
COMBINED = "access_log /var/log/nginx/others.log combined;"

# The directives of each that a request meets.
GUNICORN_EXAMPLE = """
    tcp_nopush on; tcp_nodelay off; keepalive_timeout 5;
    gzip on; gzip_http_version 1.0; gzip_proxied any; gzip_min_length 500; gzip_types text/plain text/xml text/css;
    client_max_body_size 4G;
    location / {
        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        proxy_set_header Host $http_host;
        proxy_redirect off;
        proxy_pass http://bench-NAME;
    }"""
UWSGI_EXAMPLE = """
    location / {
        include uwsgi_params;
        uwsgi_pass bench-NAME;
    }"""
PIKU_COMMON = """
    gzip on; gzip_proxied any; gzip_comp_level 7; gzip_min_length 2048; gzip_vary on;
    gzip_types text/plain text/xml text/css text/javascript application/javascript application/json image/svg+xml;
    add_header X-Deployed-By Piku;
    location / {
        PASS
        proxy_http_version 1.1;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection "upgrade";
        proxy_set_header Host $host;
        proxy_set_header X-Forwarded-Proto $scheme;
        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        proxy_set_header X-Remote-Address $remote_addr;
        proxy_set_header X-Forwarded-Port $server_port;
        proxy_set_header X-Request-Start $msec;
    }"""
PIKU_HTTP = "proxy_pass http://bench-NAME;"
PIKU_UWSGI = """uwsgi_pass bench-NAME;
        uwsgi_param QUERY_STRING $query_string; uwsgi_param REQUEST_METHOD $request_method;
        uwsgi_param CONTENT_TYPE $content_type; uwsgi_param CONTENT_LENGTH $content_length;
        uwsgi_param REQUEST_URI $request_uri; uwsgi_param PATH_INFO $document_uri;
        uwsgi_param DOCUMENT_ROOT $document_root; uwsgi_param SERVER_PROTOCOL $server_protocol;
        uwsgi_param X_FORWARDED_FOR $proxy_add_x_forwarded_for; uwsgi_param REMOTE_ADDR $remote_addr;
        uwsgi_param REMOTE_PORT $remote_port; uwsgi_param SERVER_ADDR $server_addr;
        uwsgi_param SERVER_PORT $server_port; uwsgi_param SERVER_NAME $server_name;"""
TUNED_HTTP = """
    location / {
        proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host;
        proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme;
        proxy_pass http://bench-NAME;
    }"""
RETURN = """
    location / { default_type text/plain; return 200 "hello\\n"; }"""


def host(server):
    """The domain of a server's app."""
    return f"{slug(server)}.example.com"


def slug(server):
    return server.replace(", ", "-")


def pillar():
    apps = {
        slug(server): {
            "source": "salt://wsgi/examples/hello",
            "application": "hello:application",
            "domains": [host(server)],
            "workers": 2,
            "max_requests": 0,
            "health": {"path": "/healthz"},
            **own,
        }
        for server, (own, _) in SERVERS.items()
    }
    return {"apps": apps}


def others():
    """nginx's configuration of the sites that ours is compared with, and the port of each."""
    text, ports = "", {}
    for number, (server, (own, keeps)) in enumerate(SERVERS.items()):
        name, uwsgi = slug(server), own["server"] == "uwsgi"
        socket = f"unix:/var/lib/wsgi/live/{name}/{'uwsgi' if uwsgi else 'http'}.sock"
        text += f"upstream bench-{name} {{ server {socket} fail_timeout=0; {'keepalive 32;' if keeps else ''} }}\n"
        bodies = {
            "example": COMBINED + (UWSGI_EXAMPLE if uwsgi else GUNICORN_EXAMPLE),
            "piku": COMBINED + PIKU_COMMON.replace("PASS", PIKU_UWSGI if uwsgi else PIKU_HTTP),
            "tuned": "access_log off;" + (UWSGI_EXAMPLE if uwsgi else TUNED_HTTP),
            "return": "access_log off;" + RETURN,
        }
        for place, site in enumerate(SITES):
            ports[server, site] = OTHERS + 10 * number + place
            body = bodies[site].replace("NAME", name)
            text += f"server {{ listen 127.0.0.1:{ports[server, site]}; {body}\n}}\n"
        ports[server, "direct"] = DIRECT + number
        ports[server, "ours"] = 80
    return text, ports


def ours_with_less(machine):
    """nginx's configuration of sites that are ours without some of what it does, and the port of each."""
    text, ports = "", {}
    for server in SERVERS:
        name = slug(server)
        location = machine.exec(f"cat /etc/nginx/wsgi/live/locations/{name}.conf").stdout
        location = re.search(r"^location / \{\n.*?^\}\n", location, re.MULTILINE | re.DOTALL)[0]
        location = re.sub(r"error_page [^;]*;", "", inlined(machine, location))
        log = machine.exec(f"sed -n '/^log_format wsgi_json_/,/;$/p' /etc/nginx/wsgi/live/apps/{name}.conf").stdout
        text += log.replace("wsgi_json_", "bench_no_id_").replace("$wsgi_request_id", "")
        passed = f"uwsgi_pass wsgi-{name}-uwsgi;" if server == "uwsgi" else f"proxy_pass http://wsgi-{name}-http;"
        for kind, left in LESS.items():
            body = location
            if "log" in left:
                body = re.sub(r"access_log [^;]*;", "access_log off;", body)
            if "id" in left:
                body = re.sub(r"(?:proxy_set_header X-Request-ID|uwsgi_param HTTP_X_REQUEST_ID) [^;]*;", "", body)
                body = body.replace("wsgi_json_", "bench_no_id_")
            if "look" in left:
                body = re.sub(r"if \(-f [^{]*\{[^}]*\}", "", body)
                body = body.replace("return 427;", f"set $wsgi_kept kept; {passed}")
            ports[server, kind] = LESS_PORT + len(ports)
            text += f"server {{ listen 127.0.0.1:{ports[server, kind]}; server_tokens off; gzip off; {body} }}\n"
    return text, ports


def inlined(machine, text):
    """Return a text with each file that it includes in the place of the include."""
    return re.sub(r"include (/[^;]+);", lambda found: inlined(machine, machine.exec(f"cat {found[1]}").stdout), text)


def start_direct(machine, server, port):
    """Another master of the same server, which listens on a TCP port."""
    name, own = slug(server), SERVERS[server][0]
    generation = machine.status(name)["generation"]
    folder, copy = f"/etc/wsgi/{name}/{generation}", f"/root/direct/{name}"
    machine.exec(f"mkdir -p /root/direct && cp -r {folder} {copy}")
    # uWSGI hangs up after each answer; a client has to be told.
    uwsgi = f"http-socket = 127.0.0.1:{port}\\nadd-header = Connection: close"
    machine.exec(f"sed -i 's#^socket = .*#{uwsgi}#' {copy}/*.ini", check=False)
    command = {
        "uwsgi": f"uwsgi --ini {copy}/uwsgi.ini",
        "gunicorn": f"/srv/wsgi/{name}/releases/*/environment/bin/gunicorn --config {copy}/gunicorn.conf.py --bind 127.0.0.1:{port}",
    }[own["server"]]
    unit = f"systemd-run --quiet --unit=direct-{name} --working-directory=/srv/wsgi/{name}"
    machine.exec(f"{unit} --setenv=LANG=C.UTF-8 sh -c 'exec {command}'")
    machine.wait_until(f"curl -so /dev/null 127.0.0.1:{port}")


def measure(machine, server, port, seconds):
    """Requests per second, the 99th percentile of their times in ms, and nginx's own time for each in µs."""
    command = f"wrk --threads 1 --connections {CLIENTS} --duration {seconds}s --latency --header 'Host: {host(server)}'"
    before = nginx_seconds(machine)
    printed = machine.exec(f"{command} http://127.0.0.1:{port}/").stdout
    spent = nginx_seconds(machine) - before
    assert "Non-2xx" not in printed and "Socket errors" not in printed, printed
    time, unit = re.search(r"99%\s+([0-9.]+)(us|ms|s)\b", printed).groups()
    rate = float(re.search(r"Requests/sec:\s+([0-9.]+)", printed)[1])
    requests = int(re.search(r"([0-9]+) requests in", printed)[1])
    return rate, float(time) * {"us": 0.001, "ms": 1, "s": 1000}[unit], spent / requests * 1e6


def nginx_seconds(machine):
    """How long nginx's processes have run on a processor."""
    lines = machine.exec("cat $(pgrep -x nginx | sed 's#.*#/proc/&/schedstat#')").stdout.splitlines()
    return sum(int(line.split()[0]) for line in lines) / 1e9


def print_row(*cells):
    print(f"| {' | '.join(cells)} |")


def main():
    parser = arguments(__doc__, runs=5)
    parser.add_argument("--seconds", type=int, default=3, help="of each measurement (default: %(default)s)")
    options = parser.parse_args()
    with booted(options) as machine:
        machine.exec("apt-get update -q && apt-get install -qy wrk")
        machine.pillar(pillar())
        machine.apply()
        text, ports = others()
        more, less_ports = ours_with_less(machine)
        ports.update(less_ports)
        machine.put("/etc/nginx/conf.d/zz-others.conf", text + more)
        machine.exec("nginx -t && nginx -s reload")
        for server in SERVERS:
            start_direct(machine, server, ports[server, "direct"])
        kinds = ("ours", "direct", *SITES, *LESS)
        found = {key: [] for key in ports}
        for run in range(options.runs):
            turn = run % len(kinds)
            for server in SERVERS:
                for kind in kinds[turn:] + kinds[:turn]:
                    found[server, kind].append(measure(machine, server, ports[server, kind], options.seconds))
        print(f"{where(machine)}, {machine.exec('nginx -v 2>&1').stdout.strip()}; medians of {options.runs} runs\n")
        against = ("direct", *SITES)
        print_row("server", "ours", *(f"/ {kind}" for kind in against))
        print_row(*["---"] * (len(against) + 2))
        missed = []
        for server in SERVERS:
            ours = found[server, "ours"]
            cells = [f"{statistics.median(rate for rate, *_ in ours):.0f}/s"]
            for kind in against:
                pairs = list(zip(ours, found[server, kind]))
                rate = statistics.median(mine[0] / theirs[0] for mine, theirs in pairs)
                time = statistics.median(mine[1] / theirs[1] for mine, theirs in pairs)
                cells.append(f"{rate:.2f}, p99 {time:.2f}")
                least, most = GOALS.get(kind, (None, None))
                if least and round(rate, 2) < least:
                    missed.append(f"{server}: {rate:.2f} of {kind}")
                if most and round(time, 2) > most:
                    missed.append(f"{server}: {time:.2f} of {kind}'s p99")
            print_row(server, *cells)
        print()
        spenders = ("ours", *LESS, *SITES)
        print_row("nginx, µs", *spenders)
        print_row(*["---"] * (len(spenders) + 1))
        for server in SERVERS:
            spent = [statistics.median(each[2] for each in found[server, kind]) for kind in spenders]
            print_row(server, *(f"{each:.1f}" for each in spent))
        print("\n" + ("Missed: " + "; ".join(missed) if missed else "All goals are met."))
        return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
