"""Access rules, limits, cache and headers: which values are refused, and nginx's files for the others."""

import re

import pytest
from pillars import HELLO
from wsgi_formula.app.secrets import htpasswd
from wsgi_formula.edge import words
from wsgi_formula.edge.nginx import report
from wsgi_formula.edge.nginx_build import NginxBuild, dynamic_modules
from wsgi_formula.errors import WsgiError

HASH = "$6$saltsalt$hRM5XZ86KXEw9UOmjigeVqFgULtFB2sgpC9lXQDfMib3Zgw7mEiUvBJI2EplzfAqxL5Vvwp2scFtv/uamSo5z0"
KEY = "wsgi:apps:shop"


@pytest.fixture
def problems(load):
    """problems({key: value, …}) returns the problems of an app with these settings, without its pillar key."""

    def found(own, **host):
        sentences = load({"apps": {"shop": {**HELLO, **own}}, **host}).messages
        return [sentence[len(KEY) + 1 :] for sentence in sentences]

    return found


@pytest.fixture
def make_files(make_nginx_files):
    """make_files(own, modules, **pillar) returns nginx's files of the app `shop` with these settings."""

    def files_of(own, modules=(), **pillar):
        return make_nginx_files({"shop": own}, build=NginxBuild((1, 22, 1), modules), **pillar)

    return files_of


# Validation

REFUSED = [
    ({"allow": []}, "allow: [] must be a list of addresses and networks"),
    ({"allow": ["10.0.0.0/40"]}, "allow: ['10.0.0.0/40'] must be"),
    ({"limits": {"a": {"rate": "5/m"}}}, "limits:a:rate: '5/m' must be a rate as nginx takes it, e.g. 10r/s"),
    ({"limits": {"a": {"rats": "5r/m", "connections": 1}}}, "limits:a:rats: unknown key; did you mean 'rate'?"),
    ({"limits": {"a": {"path": "/a"}}}, "limits:a:rate: missing; a limit needs a rate, connections, or both"),
    ({"limits": {"A B": {"rate": "5r/m"}}}, "limits:A B: 'A B' must be a lower-case letter"),
    ({"limits": {"a": {"rate": "5r/m", "path": "/a%20b"}}}, "limits:a:path: '/a%20b' must be a path that begins"),
    ({"basic_auth": {"realm": "Staff"}}, "basic_auth:users: missing; basic_auth has no effect without it"),
    ({"basic_auth": {"users": {}}}, "basic_auth:users: missing; basic_auth has no effect without it"),
    # nginx takes `off` for no password at all.
    ({"basic_auth": {"realm": "off", "users": {"ann": HASH}}}, "basic_auth:realm: 'off' must be a text of one line"),
    ({"basic_auth": {"user": {"ann": HASH}}}, "basic_auth:user: unknown key; did you mean 'users'?"),
    ({"cache": {"paths": ["/a"]}}, "cache:valid: missing; cache has no effect without it"),
    ({"cache": {"valid": "5 minutes"}}, "cache:valid: '5 minutes' must be a time as nginx takes it, e.g. 10m"),
    ({"cache": {"valid": "10s5m"}}, "cache:valid: '10s5m' must be a time"),
    ({"cache": {"valid": "500ms"}}, "cache:valid: '500ms' must be a time"),
    ({"cache": {"valid": "1m"}, "buffering": False}, "cache: is not available with buffering: false"),
    ({"cors": {"credentials": True}}, "cors:origins: missing; cors has no effect without it"),
    ({"cors": {"origins": ["*"], "credentials": True}}, "cors:credentials: is not available with origins: ['*']"),
    ({"cors": {"origins": ["https://a.test/path"]}}, "cors:origins: ['https://a.test/path'] must be a list of origins"),
    ({"cors": {"origins": ["*", "https://a.test"]}}, "cors:origins: ['*', 'https://a.test'] must be"),
    ({"response_headers": {"Content-Length": "0"}}, "response_headers:Content-Length: 'Content-Length' must be"),
    ({"response_headers": {"content-type": "a/b"}}, "response_headers:content-type: 'content-type' must be"),
    (
        {"cors": {"origins": ["*"]}, "response_headers": {"access-control-max-age": "1"}},
        "response_headers:access-control-max-age: is not available with cors, which sets this header",
    ),
    (
        {"tls": {"hsts": 60}, "response_headers": {"Strict-Transport-Security": "max-age=1"}},
        "response_headers:Strict-Transport-Security: is not available with tls:hsts",
    ),
    ({"response_headers": {"X-A": "$remote_addr"}}, "response_headers:X-A: '$remote_addr' must be a text of one line"),
    ({"response_headers": {"X-A": "a\nb"}}, "response_headers:X-A: 'a\\nb' must be"),
    ({"compression": "gzip"}, "compression: 'gzip' must be true or false"),
    ({"nginx": {"locations": "a b;"}}, "nginx:locations: unknown key; did you mean 'location'?"),
]


@pytest.mark.parametrize(("own", "sentence"), REFUSED, ids=[sentence.split(":")[0] for _, sentence in REFUSED])
def test_invalid_value_is_reported_with_the_allowed_values(problems, own, sentence):
    (problem,) = problems(own)
    assert problem.startswith(sentence)


@pytest.mark.parametrize(
    "users",
    [{"ann": "hunter2"}, {"ann:hunter2": HASH}, {"ann": "{PLAIN}hunter2"}, "ann:hunter2", ["ann:hunter2"]],
    ids=str,
)
def test_plain_password_is_refused_and_never_shown(problems, users):
    (problem,) = problems({"basic_auth": {"users": users}})
    assert problem.startswith("basic_auth:users")
    assert "hunter2" not in problem
    if users == {"ann": "hunter2"}:
        assert "a hash that `openssl passwd -6` printed" in problem


def test_password_from_sdb_must_be_a_hash(make_host):
    host = make_host({"apps": {}})
    host.salt["sdb.get"] = lambda uri, strict: {"sdb://a/ann": HASH, "sdb://a/bob": "hunter2"}[uri]
    key = f"{KEY}:basic_auth:users"
    assert htpasswd(host, key, {"ann": "sdb://a/ann", "eve": HASH}) == f"ann:{HASH}\neve:{HASH}\n"
    with pytest.raises(WsgiError, match=f"{key}:bob: sdb://a/bob does not hold a hash") as raised:
        htpasswd(host, key, {"bob": "sdb://a/bob"})
    assert "hunter2" not in str(raised.value)


# Files


def test_password_hashes_are_in_a_file_that_only_nginx_can_read(make_files):
    files = make_files({"basic_auth": {"users": {"ann": HASH}}})
    file = files.pop("private/shop.htpasswd")
    assert (file.text, file.group, file.mode) == (f"ann:{HASH}\n", "www-data", 0o640)
    assert report({}, {"shop.htpasswd": file}) == {"shop.htpasswd": {"diff": "<show_changes=False>"}}
    assert HASH not in str(files)


def test_limits_in_wsgi_defaults_apply_to_every_app(load):
    settings = load(
        {
            "defaults": {"limits": {"all": {"rate": "50r/s"}}},
            "apps": {"a": {**HELLO, "domains": ["a.test"]}, "b": {**HELLO, "limits": {"login": {"rate": "1r/m"}}}},
        }
    )
    assert [sorted(app["limits"]) for app in settings.apps.values()] == [["all"], ["all", "login"]]


@pytest.mark.parametrize(
    ("said", "burst"),
    [({"rate": "5r/m"}, 4), ({"rate": "1r/s"}, 0), ({"rate": "5r/m", "burst": 0}, 0), ({"connections": 2}, None)],
)
def test_burst_defaults_to_the_whole_rate(load, said, burst):
    settings = load({"apps": {"shop": {**HELLO, "limits": {"a": said}}}})
    assert settings.apps["shop"]["limits"]["a"]["burst"] == burst


def test_retry_after_is_that_of_the_slowest_limit_of_the_path(load):
    limits = {
        "all": {"rate": "10r/s"},
        "login": {"path": "/login", "rate": "5r/m"},
        "deep": {"path": "/login/deep/", "rate": "20r/m"},
        "log": {"path": "/log", "connections": 1},
    }
    found = load({"apps": {"shop": {**HELLO, "limits": limits}}}).apps["shop"]["limits"]
    assert list(words.waits(found).items()) == [("/login/deep/", 12), ("/login", 12), ("/log", 1), ("/", 1)]


def test_no_two_apps_share_a_variable_of_nginx():
    names = [
        words.variable(app, "limit", limit)
        for app, limit in [("a", "b-c"), ("a-b", "c"), ("a_b", "c"), ("a", "b"), ("a", "b_c")]
    ]
    assert len({*names}) == len(names)
    # variables_hash_bucket_size has room for this by default.
    longest = words.variable("a" * 27, "preflight", "b" * 32)
    assert re.fullmatch(r"\$\w{1,46}", longest)


def test_brotli_is_enabled_if_nginx_has_it(make_files):
    def brotli(*modules):
        return make_files({"compression": True}, modules)["locations/shop.conf"].count("brotli on;")

    # In each of the four locations that proxy, and in maintenance.
    assert (brotli(), brotli("http_brotli_filter_module")) == (0, 5)


def test_dynamic_modules_of_the_distribution_are_found(make_host, tmp_path):
    host = make_host({"apps": {}})
    host.family["nginx"]["modules_dir"] = str(tmp_path)
    (tmp_path / "50-brotli.conf").write_text("load_module modules/ngx_http_brotli_filter_module.so;\n")
    (tmp_path / "50-off.conf").write_text("# load_module modules/ngx_http_off_module.so;\n")
    assert dynamic_modules(host) == ["http_brotli_filter_module"]


def test_response_header_of_pillar_replaces_a_security_header(make_files):
    own = {"security_headers": True, "response_headers": {"x-frame-options": "DENY"}}
    locations = make_files(own)["locations/shop.conf"]
    assert re.findall("(?i)add_header x-frame-options (.*);", locations) == ['"DENY" always'] * 5
    assert locations.count("proxy_hide_header x-frame-options;") == locations.count("uwsgi_hide_header x-frame") == 4


@pytest.mark.parametrize("text", ["a", 'say "so"', "back\\slash", "ends in \\", "a; { } # b", "it's", "ä"])
def test_quoted_text_is_one_argument_for_nginx(text):
    quoted = words.quoted(text)
    assert re.fullmatch(r'"([^"\\]|\\["\\])*"', quoted)
    assert re.sub(r"\\(.)", r"\1", quoted[1:-1]) == text


def test_raw_directives_are_verbatim(make_files):
    words = 'return 200 "one\n  two\n";'
    files = make_files({"nginx": {"http": words, "server": words, "location": words}})
    found = {path: text.count(f"\n{words}\n") for path, text in files.items() if text and words in text}
    assert found == {"apps/shop.conf": 1, "sites/default_80.conf": 1, "locations/shop.conf": 3}


def test_acme_challenge_is_exempt_from_access_rules(make_files):
    own = {"domains": ["shop.test"], "tls": "acme", "allow": ["10.0.0.0/8"], "basic_auth": {"users": {"ann": HASH}}}
    files = make_files(own, nginx={"acme": {"email": "ops@example.com"}})
    site = files["sites/shop.test_80.conf"]
    assert "location ^~ /.well-known/acme-challenge/" in site
    assert not re.search("auth_basic|allow|deny", site)
    assert files["locations/shop.conf"].count("deny all;") == 4


def test_requests_wait_at_most_one_second_for_the_cache_lock(make_files):
    """Otherwise requests for a private page would be answered one after another."""
    locations = make_files({"cache": {"valid": "1m"}})["locations/shop.conf"]
    assert locations.count("_cache_lock on;") == locations.count("_cache_lock_timeout 1s;") == 8


# Unmanaged nginx


def test_unmanaged_nginx_keeps_its_own_default_site(make_files, problems):
    unmanaged = {"nginx": {"manage": False}}
    assert problems({}, **unmanaged) == [
        "domains: missing; with wsgi:nginx:manage: false, the default site is not the formula's"
    ]
    files = make_files({"domains": ["shop.test"], "listen": 8080}, **unmanaged)
    assert "default_server" not in "".join(filter(None, files.values()))
    assert "listen" not in files["wsgi.conf"]


def test_unmanaged_nginx_serves_metrics_and_the_status_page(make_files):
    own = {"domains": ["shop.test"]}
    entry = make_files(own, nginx={"manage": False, "metrics": True}, status_page={})["wsgi.conf"]
    assert re.findall("listen (.*);", entry) == ["127.0.0.1:8078", "127.0.0.1:8079"]
