"""Access rules, limits, the cache, and response headers, as nginx enforces and sends them."""

import re

import pytest
from pillars import app

# The same password in each hash format that nginx supports.
PASSWORD = "correct horse"
USERS = {
    "sha512": "$6$saltsalt$hRM5XZ86KXEw9UOmjigeVqFgULtFB2sgpC9lXQDfMib3Zgw7mEiUvBJI2EplzfAqxL5Vvwp2scFtv/uamSo5z0",
    "apr1": "$apr1$saltsalt$EGVZDNN6gOqijy.tv9axG/",
    "bcrypt": "$2b$05$saltsaltsaltsaltsaltsOFUVpPSbLmbMm6NGyYQOot1ZXuJBZWo.",
    "ssha": "{SSHA}awc/Cj0kafyFd5d8fGn07xoHBJJzYWx0c2FsdA==",
}


def answering(server="uwsgi", **settings):
    """Return an app that counts its responses and sends the headers that a request names; see test/apps/answering."""
    source = {"source": "salt://apps/answering", "application": "answering:application"}
    return app(server, **{**source, "workers": 1, "max_requests": 0, **settings})


PROXY = "127.0.0.9"
APPS = {
    "staff": answering(
        domains=["staff.test"],
        mount="/staff",
        basic_auth={"realm": "Staff only", "users": USERS, "except": ["/healthz", "/open/", "/files/open/"]},
        static={"/files/": "/srv/files/"},
        error_pages={401: "/srv/pages/401.html"},
    ),
    "inside": answering(
        domains=["inside.test"],
        mount="/in",
        allow=["127.0.0.0/30"],
        static={"/files/": "/srv/files/"},
        error_pages={429: "/srv/pages/429.html"},
        workers=3,
        cors={"origins": ["*"]},
        limits={"login": {"path": "/login", "rate": "2r/m"}, "slow": {"path": "/slow/", "connections": 1}},
    ),
    "kept": answering(
        "gunicorn",
        domains=["kept.test"],
        cache={"valid": "1h", "paths": ["/pages"], "stale": True},
        security_headers=True,
    ),
    "kept-uwsgi": answering(domains=["kept-uwsgi.test"], cache={"valid": "1h", "bypass_cookies": ["__Host-sid"]}),
    "dressed": answering(
        domains=["dressed.test"],
        compression=True,
        security_headers=True,
        response_headers={
            "Permissions-Policy": 'camera=(self "https://a.test")',
            "X-Odd": "back\\slash; {}",
            "Vary": "X-Odd",
            "Cache-Control": "private",
        },
        static={"/files/": "/srv/files/"},
        internal={"/protected/": "/srv/files/"},
        error_pages={404: "/srv/pages/404.html"},
        cors={
            "origins": ["https://friend.test", "https://*.friends.test:8443"],
            "methods": ["GET", "PUT"],
            "expose": ["X-Total"],
            "credentials": True,
        },
    ),
}


def pillar(apps):
    return {"nginx": {"trusted_proxies": [PROXY]}, "apps": apps}


@pytest.fixture(scope="module")
def served(machine):
    machine.exec("mkdir -p /srv/files/open /srv/pages; head -c 2000 /dev/zero | tr '\\0' a > /srv/files/text.txt")
    machine.exec("cp /srv/files/text.txt /srv/files/open; gzip -k /srv/files/open/text.txt")
    machine.exec("for status in 401 404 429; do echo A page of $status. > /srv/pages/$status.html; done")
    machine.pillar(pillar(APPS))
    machine.first_run = machine.apply()
    return machine


def ask(machine, host, path="/", *options):
    """Return the response to a request for a path of a host, with further options of curl's."""
    return machine.get(path, host, options=options)


def header(text):
    return ("--header", text)


# Access


@pytest.mark.parametrize("user", USERS)
def test_password_in_every_hash_format_is_accepted(served, user):
    assert ask(served, "staff.test", "/staff/", "--user", f"{user}:{PASSWORD}").status == 200
    refused = ask(served, "staff.test", "/staff/", "--user", f"{user}:wrong")
    assert (refused.status, refused.headers["WWW-Authenticate"]) == (401, 'Basic realm="Staff only"')


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/staff/", 401),
        ("/staff/healthz", 200),
        ("/staff/healthz?all", 200),
        ("/staff/healthz/deep", 200),
        ("/staff/healthz-and-more", 401),
        ("/healthz", 404),
        ("/staff/open/page", 200),
        ("/staff/open/../admin", 401),
        # Normalised by nginx this is open, but an app that parses the raw request line might see another path.
        ("/staff/admin/../healthz", 401),
        ("/staff/admin/%2e%2e/open/", 401),
        ("/staff/files/open/text.txt", 200),
    ],
)
def test_password_exception_covers_only_its_normalised_path(served, path, status):
    assert ask(served, "staff.test", path).status == status


def test_password_hashes_are_readable_by_nginx_only_and_in_no_diff(served):
    shown = served.exec("stat -c '%a %U %G' /etc/nginx/wsgi/live/private/staff.htpasswd").stdout
    assert shown.strip() == "640 root www-data"
    assert [hash for hash in USERS.values() if hash in str(served.first_run.raw)] == []
    places = served.exec(["grep", "-rlF", "\n".join(USERS.values()), "/etc", "/run", "/var"], check=False)
    assert re.fullmatch(r"/etc/nginx/wsgi/trees/\d+/private/staff.htpasswd\n", places.stdout)


def test_refused_client_gets_the_error_page_of_the_app(served):
    assert ask(served, "staff.test", "/staff/").body == "A page of 401.\n"


def test_static_files_need_the_password_too(served):
    assert ask(served, "staff.test", "/staff/files/text.txt").status == 401
    assert ask(served, "staff.test", "/staff/files/text.txt", "--user", f"ssha:{PASSWORD}").status == 200


@pytest.mark.parametrize("path", ["/in/", "/in/files/text.txt"])
@pytest.mark.parametrize(("address", "status"), [("127.0.0.2", 200), ("127.0.0.4", 403)])
def test_only_allowed_addresses_are_admitted(served, path, address, status):
    assert ask(served, "inside.test", path, "--interface", address).status == status


def test_allowed_address_is_the_one_that_a_trusted_proxy_names(served):
    client = header("X-Forwarded-For: 127.0.0.3")
    assert ask(served, "inside.test", "/in/", "--interface", PROXY, *client).status == 200
    assert ask(served, "inside.test", "/in/", "--interface", "127.0.0.4", *client).status == 403


# Limits


def test_rate_limit_counts_per_client_and_path(served):
    def statuses(path, address):
        return [ask(served, "inside.test", path, "--interface", address) for _ in range(3)]

    at_login = statuses("/in/login", "127.0.0.1")
    assert [answer.status for answer in at_login] == [200, 200, 429]
    assert [answer.headers["Retry-After"] for answer in at_login] == [None, None, "30"]
    assert at_login[2].body == "A page of 429.\n"
    assert ask(served, "inside.test", "/in/%6cogin/../x/..//login/").status == 429
    assert ask(served, "inside.test", "/in/login", "--interface", "127.0.0.2").status == 200
    assert [answer.status for answer in statuses("/in/login-help", "127.0.0.1")] == [200, 200, 200]


def test_429_of_the_app_keeps_its_own_retry_after(served):
    assert ask(served, "inside.test", "/in/?status=429&Retry-After=7").headers.get_all("Retry-After") == ["7"]


def test_simultaneous_connections_are_limited(served):
    one = "curl -so /dev/null -w '%{http_code} ' -H 'Host: inside.test' 'http://127.0.0.1/in/slow/?sleep=3'"
    got = served.exec(f"{one} & {one}; wait")
    assert sorted(got.stdout.split()) == ["200", "429"]


# Cache

CACHES = [("kept.test", "/pages"), ("kept-uwsgi.test", "/any")]


def status_and_body(answer):
    return answer.headers["X-Cache-Status"], answer.body


@pytest.mark.parametrize(("host", "path"), CACHES)
def test_response_is_cached(served, host, path):
    asked = [status_and_body(ask(served, host, f"{path}?first")) for _ in range(3)]
    assert [status for status, _ in asked] == ["MISS", "HIT", "HIT"]
    assert len({body for _, body in asked}) == 1


@pytest.mark.parametrize(("host", "path"), CACHES)
def test_response_to_head_is_not_served_to_get(served, host, path):
    """A response to HEAD may have neither a body nor a Content-Length."""
    headed = [ask(served, host, f"{path}?head", "--head") for _ in range(2)]
    assert [(answer.status, answer.headers["X-Cache-Status"]) for answer in headed] == [(200, "MISS"), (200, "HIT")]
    assert ask(served, host, f"{path}?head").body.startswith("answer")


BYPASSING_REQUESTS = {
    "session cookie": header("Cookie: a=b; session=0"),
    "session cookie with odd spaces": header("Cookie: a=b;\tsession =0"),
    "Authorization": header("Authorization: Bearer x"),
    "WebSocket": (*header("Upgrade: websocket"), *header("Connection: upgrade")),
    "POST": ("--data", "x"),
}


@pytest.mark.parametrize("options", BYPASSING_REQUESTS.values(), ids=BYPASSING_REQUESTS)
def test_private_requests_bypass_the_cache(served, options):
    kept = ask(served, "kept.test", "/pages?others").body
    asked = [ask(served, "kept.test", "/pages?others", *options) for _ in range(2)]
    assert len({kept, *(answer.body for answer in asked)}) == 3
    assert [answer.headers["X-Cache-Status"] for answer in asked] == [None, None]
    # The responses to them were not stored either.
    assert ask(served, "kept.test", "/pages?others").body == kept


def test_bypass_cookies_are_matched_by_their_exact_names(served):
    asked = [ask(served, "kept-uwsgi.test", "/c", *header("Cookie: __Host-sid=1")).body for _ in range(2)]
    assert len({*asked}) == 2
    asked = [ask(served, "kept-uwsgi.test", "/c", *header("Cookie: session=1; x__Host-sid=1")).body for _ in range(2)]
    assert len({*asked}) == 1


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/pages-of-others",
        "/pages?Cache-Control=private",
        "/pages?Set-Cookie=a",
        "/pages?status=404",
    ],
)
def test_private_or_unlisted_responses_are_not_cached(served, path):
    assert len({ask(served, "kept.test", path).body for _ in range(2)}) == 2


OTHER_BASE_URLS = {
    "another host": ("kept.test:666",),
    "another scheme": ("kept.test", "--interface", PROXY, *header("X-Forwarded-Proto: https")),
    "another port": ("kept.test", "--interface", PROXY, *header("X-Forwarded-Port: 666")),
}


@pytest.mark.parametrize("asked", OTHER_BASE_URLS.values(), ids=OTHER_BASE_URLS)
def test_cached_response_is_not_shared_between_hosts_schemes_and_ports(served, asked):
    """Apps make absolute links of these."""
    host, *options = asked
    first = ask(served, "kept.test", "/pages?as").body
    others = {ask(served, host, "/pages?as", *options).body for _ in range(2)}
    assert len(others) == 1
    assert first not in others
    # The scheme is not trusted when it does not come from a trusted proxy.
    assert ask(served, "kept.test", "/pages?as", *header("X-Forwarded-Proto: https")).body == first


def test_cached_response_keeps_security_headers_of_the_app(served):
    asked = [ask(served, "kept.test", "/pages?X-Frame-Options=DENY").headers for _ in range(2)]
    assert [headers["X-Cache-Status"] for headers in asked] == ["MISS", "HIT"]
    assert [headers.get_all("X-Frame-Options") for headers in asked] == [["DENY"], ["DENY"]]


def test_stale_response_is_served_while_it_is_refreshed(served):
    path = "/pages?Cache-Control=max-age=1"
    first = ask(served, "kept.test", path).body
    for _ in range(100):
        status, body = status_and_body(ask(served, "kept.test", path))
        assert (status, body) in [("HIT", first), ("STALE", first)]
        if status == "STALE":
            break
    for _ in range(100):
        if ask(served, "kept.test", path).body != first:
            break
    else:
        pytest.fail("the new answer never came")


def test_stale_response_is_served_while_the_app_fails(served):
    path = "/pages?Cache-Control=max-age=1&broken=/srv/pages/broken"
    first = ask(served, "kept.test", path).body
    served.exec("touch /srv/pages/broken; sleep 2")
    asked = [ask(served, "kept.test", path) for _ in range(3)]
    assert {(answer.status, answer.body) for answer in asked} == {(200, first)}
    # There is no stale response for a path that was never cached.
    assert ask(served, "kept.test", f"{path}&other").status == 500


# Response headers


RESPONSES = {
    # Who answers: path, status, Cache-Control.
    "the app": ("/?Cache-Control=public", 200, "private"),
    "the app's error": ("/?status=500", 500, "private"),
    "a file": ("/files/text.txt", 200, "no-cache"),
    "a file that the app names": ("/?X-Accel-Redirect=/protected/text.txt", 200, "private, no-cache"),
    "an error page": ("/files/missing", 404, "no-store"),
}


def all_of(headers, *names):
    return [headers.get_all(name) for name in names]


def assert_dressed(headers):
    """Assert that each configured header is there exactly once."""
    assert all_of(headers, "X-Content-Type-Options", "X-Frame-Options", "Referrer-Policy") == [
        ["nosniff"],
        ["SAMEORIGIN"],
        ["strict-origin-when-cross-origin"],
    ]
    assert all_of(headers, "Permissions-Policy", "X-Odd") == [
        ['camera=(self "https://a.test")'],
        ["back\\slash; {}"],
    ]
    assert all_of(headers, "Access-Control-Allow-Origin", "Access-Control-Allow-Credentials") == [
        ["https://friend.test"],
        ["true"],
    ]
    assert {"Origin", "X-Odd"} <= {*headers.get_all("Vary")}


@pytest.mark.parametrize(("path", "status", "caching"), RESPONSES.values(), ids=RESPONSES)
def test_each_header_is_sent_once_whoever_answers(served, path, status, caching):
    answer = ask(served, "dressed.test", path, *header("Origin: https://friend.test"))
    assert answer.status == status
    assert_dressed(answer.headers)
    assert answer.headers.get_all("Cache-Control") == [caching]


@pytest.mark.parametrize("path", ["/", "/?X-Accel-Redirect=/protected/text.txt"])
def test_security_header_of_the_app_wins_over_the_default(served, path):
    answer = ask(served, "dressed.test", f"{path}{'&' if '?' in path else '?'}X-Frame-Options=DENY")
    assert answer.headers.get_all("X-Frame-Options") == ["DENY"]


def test_response_headers_of_pillar_replace_those_of_the_app(served):
    headers = ask(served, "dressed.test", "/?permissions-policy=usb=()&x-odd=1&Vary=Cookie").headers
    assert headers.get_all("Permissions-Policy") == ['camera=(self "https://a.test")']
    assert headers.get_all("X-Odd") == ["back\\slash; {}"]
    assert {"Cookie", "X-Odd"} < {*headers.get_all("Vary")}


@pytest.mark.parametrize(
    ("host", "path", "encoding"),
    [
        ("dressed.test", "/?size=2000", "gzip"),
        ("dressed.test", "/?size=100", None),
        ("dressed.test", "/?size=2000&Content-Type=image/png", None),
        ("dressed.test", "/?size=2000&Content-Type=text/event-stream", None),
        ("inside.test", "/in/?size=2000&Content-Type=text/html", None),
        ("dressed.test", "/files/text.txt", "gzip"),
        ("dressed.test", "/files/open/text.txt", "gzip"),
        ("inside.test", "/in/files/text.txt", None),
        ("inside.test", "/in/files/open/text.txt", "gzip"),
    ],
)
def test_texts_are_compressed_only_where_pillar_enables_it(served, host, path, encoding):
    answer = ask(served, host, path, *header("Accept-Encoding: gzip"), "--output", "/dev/null")
    assert answer.headers["Content-Encoding"] == encoding
    if encoding:
        assert answer.headers.get_all("Vary").count("Accept-Encoding") == 1


# CORS


@pytest.mark.parametrize(
    ("host", "origin", "allowed"),
    [
        ("dressed.test", "https://friend.test", "https://friend.test"),
        ("dressed.test", "https://a.friends.test:8443", "https://a.friends.test:8443"),
        ("dressed.test", "https://friends.test:8443", None),
        ("dressed.test", "https://friend.test.evil.test", None),
        ("dressed.test", "http://friend.test", None),
        ("dressed.test", "null", None),
        ("inside.test", "https://anybody.test", "*"),
    ],
)
def test_only_listed_origins_are_allowed(served, host, origin, allowed):
    before = header(f"Origin: {origin}")
    path = "/in/" if host == "inside.test" else "/"
    answer = ask(served, host, f"{path}?Access-Control-Allow-Origin=https://evil.test&status=404", *before)
    assert answer.headers["Access-Control-Allow-Origin"] == allowed
    wanted = (*before, "--request", "OPTIONS", *header("Access-Control-Request-Method: PUT"))
    preflight = ask(served, host, path, *wanted)
    assert preflight.status == (204 if allowed else 200)
    assert preflight.headers["Access-Control-Allow-Origin"] == allowed


def test_preflight_is_answered_by_nginx(served):
    wanted = (*header("Origin: https://friend.test"), *header("Access-Control-Request-Method: PUT"))
    headers = ask(served, "dressed.test", "/", "--request", "OPTIONS", *wanted).headers
    assert {name: value for name, value in headers.items() if name.startswith(("Access", "Vary"))} == {
        "Access-Control-Allow-Origin": "https://friend.test",
        "Access-Control-Allow-Credentials": "true",
        "Access-Control-Allow-Methods": "GET, PUT",
        "Access-Control-Allow-Headers": "Content-Type",
        "Access-Control-Max-Age": "600",
        "Vary": "Origin",
    }
    answer = ask(served, "dressed.test", "/", *wanted)
    assert re.fullmatch(r"answer \d+\n", answer.body)
    assert answer.headers["Access-Control-Expose-Headers"] == "X-Total"


# Maintenance


def test_access_rules_and_headers_hold_during_maintenance(served):
    for name in ("staff", "dressed"):
        served.call("wsgi.maintenance", name, "on")
    origin = header("Origin: https://friend.test")
    try:
        down = ask(served, "dressed.test", "/", *origin)
        files = {
            host: ask(served, host, path).status
            for host, path in (("dressed.test", "/files/text.txt"), ("staff.test", "/staff/files/text.txt"))
        }
        wanted = (*origin, *header("Access-Control-Request-Method: PUT"))
        preflight = ask(served, "dressed.test", "/", "--request", "OPTIONS", *wanted)
        staff = ask(served, "staff.test", "/staff/")
    finally:
        for name in ("staff", "dressed"):
            served.call("wsgi.maintenance", name, "off")
    assert (down.status, staff.status, preflight.status) == (503, 503, 204)
    assert files == {"dressed.test": 200, "staff.test": 401}
    assert_dressed(down.headers)
    assert all_of(down.headers, "Cache-Control", "Retry-After") == [["no-store"], ["600"]]


# Changes, which come last.


def test_change_of_app_and_server_empties_the_cache_at_once(served):
    hosts = ("kept.test", "/pages?change"), ("kept-uwsgi.test", "/change")
    before = [ask(served, *each).body for each in hosts]
    changed = {name: {**APPS[name], "server": "uwsgi", "env": {"GREETING": "new"}} for name in ("kept", "kept-uwsgi")}
    served.pillar(pillar({**APPS, **changed}))
    # This changes no file of nginx.
    assert served.apply().changed - {"kept-release"} == {"kept-live", "kept-uwsgi-live"}
    assert [ask(served, *each).body.split()[0] for each in hosts] == ["new", "new"]
    assert [ask(served, *each).headers["X-Cache-Status"] for each in hosts] == ["HIT", "HIT"]
    assert all(body.startswith("answer") for body in before)


def test_removed_settings_leave_no_files(served):
    def traces():
        return served.exec(
            "ls -d /etc/nginx/wsgi/live/private/*.htpasswd /var/cache/wsgi-*", check=False
        ).stdout.split()

    kept = [f"/var/cache/wsgi-{name}.{protocol}" for name in ("kept", "kept-uwsgi") for protocol in ("proxy", "uwsgi")]
    assert sorted(traces()) == sorted(["/etc/nginx/wsgi/live/private/staff.htpasswd", *kept])
    plain = {"staff": {**APPS["staff"], "basic_auth": {}}, "kept": {**APPS["kept"], "cache": {}}}
    served.pillar(pillar({**plain, "inside": APPS["inside"]}))
    served.apply()
    assert traces() == []
    assert ask(served, "staff.test", "/staff/").status == 200
    assert served.apply().changed == set()
