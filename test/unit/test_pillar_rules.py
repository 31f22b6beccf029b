"""Arbitrary pillar values: each is accepted or refused with its key, and none raises an exception."""

import pytest
import values
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.conftest import host_of
from wsgi_formula.edge.nginx import Nginx
from wsgi_formula.pillar import load as loading
from wsgi_formula.pillar import plain
from wsgi_formula.pillar.edge import NGINX, STATUS_PAGE
from wsgi_formula.pillar.rules import find_excess, find_flaw
from wsgi_formula.pillar.schema import APP

STABLE = settings(derandomize=True, database=None, deadline=None, max_examples=150)
LONG_DOMAIN = "ec2-203-0-113-255.eu-central-1.compute.amazonaws.com"


@pytest.fixture(scope="module")
def load_pillar():
    host = host_of({})
    known = host.family, host.servers, host._yaml("defaults.yaml")

    def load(wsgi):
        return loading.load(plain.plain(wsgi), known[2], known[0], known[1], "Debian-12")

    return load


def problems_of(load, own):
    return load({"apps": {"shop": values.app(own)}}).messages


# Hostile and mistaken values


TOO_LONG = "is {} bytes long; at most {} are allowed"


@pytest.mark.parametrize(
    ("own", "problem"),
    [
        ({"domains": ["a" * 64 + ".com"]}, "domains: ['aaaaa"),
        ({"domains": ["a." * 300 + "com"]}, "domains: 'a.a.a."),
        ({"error_pages": {499: "hello.py"}}, "error_pages:499: 499 must be a status of 400 to 599, but not 499"),
        (
            {"server_options": {"gunicorn": {"backlog": float("inf")}}},
            "server_options:gunicorn:backlog: is not a finite number",
        ),
        ({"server_options": {"gunicorn": {"a": [float("nan")]}}}, "server_options:gunicorn:a: is not a finite number"),
        ({"server_options": {"uwsgi": {"route": "x" * 4001}}}, "server_options:uwsgi:route: 'xxx"),
        (
            {"server_options": {"uwsgi": {"route": ["x" * 4000] * 20}}},
            "server_options:uwsgi: the options have 80180 bytes",
        ),
        ({"server_options": {"uwsgi": {"r" * 200: 1}}}, "server_options:uwsgi:rrr"),
        ({"health": {"path": "/" + "a" * 70000}}, "health:path: '/aaaa"),
        ({"response_headers": {"X-A": "a" * 5000}}, "response_headers:X-A: 'aaaa"),
        ({"response_headers": {"X-A": '"' * 2001}}, 'response_headers:X-A: \'"""'),
        ({"response_headers": {"X-" + "a" * 3000: "a"}}, "response_headers:X-aaaa"),
        ({"response_headers": {"X-" + "a" * 45: "a"}}, "response_headers:X-aaaa"),
        ({"basic_auth": {"realm": "a" * 5000, "users": {"ann": "$6$a$b"}}}, "basic_auth:realm: 'aaaa"),
        ({"basic_auth": {"users": {"ann": "$6$a$" + "b" * 400}}}, "basic_auth:users:ann: is 405 bytes long"),
        ({"basic_auth": {"users": {"a" * 256: "$6$a$b"}}}, "basic_auth:users: is 256 bytes long"),
        ({"mount": "/" + "a" * 5000}, "mount: '/aaaa"),
        ({"static": {"/" + "a" * 5000: "x"}}, "static:/aaaa"),
        ({"static": {"/a/": "x/" * 2000}}, "static:/a/: 'x/x/"),
        ({"limits": {"a": {"path": "/" + "a" * 5000, "rate": "1r/s"}}}, "limits:a:path: '/aaaa"),
        (
            {"limits": {"a": {"rate": "1r/s", "connections": 65536}}},
            "limits:a:connections: 65536 must be an integer from 1 to 65535",
        ),
        ({"limits": {"a": {"rate": "9" * 20 + "r/s"}}}, "limits:a:rate: '9999"),
        ({"cors": {"origins": ["*"], "headers": ["X-" + "a" * 5000]}}, "cors:headers: 'X-aaaa"),
        ({"cors": {"origins": ["*"], "headers": ["X-A"] * 1000}}, "cors:headers: ['X-A', 'X-A'"),
        ({"cache": {"valid": "1h", "bypass_cookies": ["a" * 100] * 20}}, "cache:bypass_cookies: ['aaaa"),
        ({"cache": {"valid": 2**63}}, "cache:valid: is an integer that does not fit into 64 bits"),
        (
            {"cache": {"valid": "101y"}},
            "cache:valid: '101y' must be a time as nginx takes it, e.g. 10m, of at most 100y",
        ),
        ({"client_max_body_size": 2**63}, "client_max_body_size: is an integer that does not fit into 64 bits"),
        ({"client_max_body_size": 10**4000}, "client_max_body_size: is an integer that does not fit into 64 bits"),
        ({"client_max_body_size": 10**5000}, "client_max_body_size: is an integer that does not fit into 64 bits"),
        ({"client_max_body_size": "8589934592g"}, "client_max_body_size: '8589934592g' must be a size"),
        ({"client_max_body_size": "9" * 5000}, "client_max_body_size: '9999"),
        ({"workers": 10**5000}, "workers: is an integer that does not fit into 64 bits"),
        ({"listen": float("nan")}, "listen: is not a finite number"),
        ({10**5000: 1}, "an integer of about 5001 digits: unknown key"),
        ({"x" * 5000: 1}, "xxxx"),
        (
            {"application": "hello:application\0"},
            "application: contains a character that no file can hold, such as NUL",
        ),
        ({"source": "/srv/" + "x" * 256}, "source: '/srv/xxx"),
        ({"source": "salt://" + "x/" * 2000}, "source: 'salt://x/x/"),
        ({"deploy_key": "-----BEGIN \ud800"}, "deploy_key: contains a character that no file can hold, such as NUL"),
        ({"nginx": {"http": "# \udfff"}}, "nginx:http: contains a character that no file can hold, such as NUL"),
        ({"env": {"A": "x" * 131070}}, "env:A: is 131073 bytes long; at most 131072 are allowed"),
        ({"env": {f"A{n}": "x" * 131000 for n in range(9)}}, "env: has more than 1048576 characters"),
        ({"env": {f"A{n}": "é" * 65000 for n in range(9)}}, "env: the variables have 1170036 bytes in total"),
        ({"env": {"OPTIND": "x"}}, "env: 'OPTIND' is not a valid variable name"),
        ({"processes": {"a": {"command": ["x"] * 70000}}}, "processes:a:command: ['x', 'x'"),
        ({"processes": {"a" * 5000: {"command": "x"}}}, "processes:aaaa"),
        ({"schedule": {"a": {"command": "x", "calendar": "*" * 300}}}, "schedule:a:calendar: '****"),
        ({"hooks": {"build": ["x" * 70000]}}, "hooks:build:1:command: 'xxxx"),
        ({"env_files": ["/" + "x" * 256]}, "env_files: ['/xxx"),
        ({"python": "python" + "3" * 300}, "python: 'python333"),
        ({"index": "https://me:hunter2@example.com/" + "x" * 2000}, "index: 'https://me:***@example.com/xxx"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:40],
)
def test_unusable_value_is_refused_with_its_key(load_pillar, own, problem):
    (found,) = problems_of(load_pillar, own)
    assert found.startswith(f"wsgi:apps:shop:{problem}")
    # The problem stays readable, however long the value is.
    assert len(found) < 1200
    assert "hunter2" not in found


@pytest.mark.parametrize(
    "own",
    [
        {"domains": [LONG_DOMAIN]},
        {"domains": [values.domain_of(253)], "redirect_domains": ["*." + values.domain_of(251)]},
        {"server": "waitress", "workers": 1024},
        {"response_headers": {"X-" + "a" * 44: "a" * 4000}},
        {"limits": {"a": {"connections": 65535, "rate": "9999999r/s"}}},
        {"client_max_body_size": "8589934591g"},
        {"cache": {"valid": "100y", "size": 2**63 - 1}},
        {"env": {"A": "x" * 131069}},
        {"processes": {"a": {"command": ["x" * 65535]}}},
    ],
    ids=lambda own: ",".join(own),
)
def test_value_at_the_limit_is_accepted(load_pillar, own):
    assert problems_of(load_pillar, own) == []


@pytest.mark.parametrize("key", sorted({*values.APP} - {"state"}))
def test_recursive_mapping_is_refused_with_its_key(load_pillar, key):
    inside = yaml.safe_load("&a {a: [*a], b: *a}")
    found = problems_of(load_pillar, {key: inside})
    assert found[0] == f"wsgi:apps:shop:{key}: is nested deeper than 16 levels"


def test_mapping_nested_500_levels_deep_is_refused_with_its_key(load_pillar):
    deep = {}
    for _ in range(500):
        deep = {"a": [deep]}
    assert problems_of(load_pillar, {"env": deep}) == ["wsgi:apps:shop:env: is nested deeper than 16 levels"]
    assert load_pillar({"nginx": {"acme": deep}, "apps": {}}).messages == [
        "wsgi:nginx:acme: is nested deeper than 16 levels"
    ]


def test_huge_value_made_by_anchors_is_refused_with_its_key(load_pillar):
    laughs = ["lol"] * 10
    for _ in range(12):
        laughs = [laughs] * 10
    assert problems_of(load_pillar, {"domains": laughs}) == ["wsgi:apps:shop:domains: has more than 1048576 characters"]


def test_values_repeated_by_anchors_are_accepted(load_pillar):
    shared = values.app({"listen": 81, "env": {"A": "1"}, "limits": {"a": {"rate": "1r/s"}}})
    apps = {f"a{number}": {**shared, "domains": [f"a{number}.test"]} for number in range(50)}
    assert load_pillar({"apps": apps, "defaults": {"env": shared["env"]}}).messages == []


# Any value


ODD_TEXT = st.text(st.characters(categories=None), max_size=10)
ODD_SCALAR = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    # Hypothesis itself can't print what Python can't.
    st.sampled_from([19, 4000, 5000]).map(lambda digits: 10**digits),
    st.floats(),
    ODD_TEXT,
    ODD_TEXT.map(lambda text: text * 1000),
    st.sampled_from(
        ["https://me:secret@x", "-----BEGIN PRIVATE KEY-----", "sdb://x", "*", "/", "{socket}", "salt://x"]
    ),
    st.binary(max_size=5),
    st.dates(),
)
ODD_KEY = st.one_of(st.sampled_from([*values.APP, *NGINX, *STATUS_PAGE, "apps", "shop"]), ODD_SCALAR)
ODD_VALUE = st.recursive(
    ODD_SCALAR,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(ODD_KEY, inner, max_size=3)),
    max_leaves=8,
)


def check_problems(problems):
    for problem in problems:
        key, _, sentence = problem.partition(": ")
        assert key.split(":")[0] == "wsgi", problem
        assert sentence, problem
        assert len(problem) < 2000
        assert "secret@" not in problem


@given(ODD_VALUE)
@STABLE
def test_any_value_of_wsgi_gives_problems_that_name_their_keys(load_pillar, anything):
    check_problems(load_pillar(anything).messages)


@given(st.sampled_from(sorted(APP)), ODD_VALUE)
@STABLE
def test_any_value_of_an_app_key_gives_problems_that_name_their_keys(load_pillar, key, anything):
    check_problems(problems_of(load_pillar, {key: anything}))
    check_problems(load_pillar({"defaults": {key: anything}, "apps": {"shop": values.app()}}).messages)


@given(st.sampled_from(sorted(NGINX)), st.sampled_from(sorted(STATUS_PAGE)), ODD_VALUE)
@STABLE
def test_any_value_of_a_host_key_gives_problems_that_name_their_keys(load_pillar, key, page_key, anything):
    check_problems(load_pillar({"nginx": {key: anything}, "status_page": {page_key: anything}, "apps": {}}).messages)


# Limits of the rules


def test_each_key_of_the_schema_has_a_strategy():
    for strategies, rules in (
        (values.APP, APP),
        (values.NGINX, NGINX),
        (values.STATUS_PAGE, STATUS_PAGE),
        (values.TLS, APP["tls"].keys),
        (values.CACHE, APP["cache"].keys),
        (values.CORS, APP["cors"].keys),
        (values.BASIC_AUTH, APP["basic_auth"].keys),
        (values.LIMIT, APP["limits"].each.keys),
    ):
        assert {*strategies} == {*rules}


def passes(value, rule):
    """Return whether a rule and the rules below it accept a value."""
    if find_flaw(value) or find_excess(value, rule) or not rule.test(value):
        return False
    if isinstance(value, dict) and rule.keys:
        return all(passes(each, rule.keys[key]) for key, each in value.items())
    if isinstance(value, dict) and rule.each:
        return all(passes(name, rule.names) and passes(each, rule.each) for name, each in value.items())
    return True


@pytest.mark.parametrize("key", sorted(values.APP))
def test_values_of_a_strategy_pass_the_rule_of_their_key(key):
    @given(values.APP[key])
    @settings(STABLE, max_examples=40)
    def check(value):
        assert passes(value, APP[key])

    check()


TEXTS = [key for key, rule in APP.items() if not (rule.keys or rule.each)]


@pytest.mark.parametrize("key", TEXTS)
def test_too_long_text_is_refused_with_its_key(load_pillar, key):
    for text in ("x" * (APP[key].most + 1), ["x" * (APP[key].most + 1)]):
        found = problems_of(load_pillar, {key: text})
        assert any(problem.startswith(f"wsgi:apps:shop:{key}: ") for problem in found)


# nginx's files


def test_site_of_a_long_domain_has_valid_file_names(load_pillar):
    names = [values.domain_of(253), "z" + values.domain_of(252)]
    apps = {f"a{number}": values.app({"domains": [name], "tls": "self_signed"}) for number, name in enumerate(names)}
    ids = [*load_pillar({"apps": apps}).sites]
    assert len({*ids}) == 2
    assert all(len(f"{id}.self-signed.crt") <= 225 for id in ids)


def test_no_line_of_a_site_grows_with_the_number_of_apps(make_host, tmp_path):
    apps = {f"a{number}{'x' * 20}": values.app({"mount": f"/a{number}"}) for number in range(200)}
    host = make_host({"apps": apps})
    host.family["nginx"].update(conf_dir=str(tmp_path / "conf.d"), own_dir=str(tmp_path / "wsgi"))
    site = host.once(Nginx).desired_files(next(iter(apps)))[f"{tmp_path}/wsgi/sites/default_80.conf"]
    # nginx refuses a comment of more than 4093 bytes.
    assert max(map(len, site.splitlines())) < 300


@pytest.mark.parametrize(
    ("names", "elsewhere", "said"),
    [
        (["a.test"], "", False),
        ([LONG_DOMAIN], "", True),
        ([f"*.{'a' * 47}.test"], "", True),
        ([LONG_DOMAIN], "http { server_names_hash_bucket_size 128; }", False),
        ([LONG_DOMAIN], "http {\n    # server_names_hash_bucket_size 64;\n}", True),
        ([LONG_DOMAIN], "http { include more/*.conf; }", False),
    ],
)
def test_nginx_hash_size_fits_long_domains_unless_it_is_set_elsewhere(make_host, tmp_path, names, elsewhere, said):
    host = make_host({"apps": {"shop": values.app({"domains": names})}})
    host.family["nginx"].update(conf_dir=str(tmp_path / "conf.d"), own_dir=str(tmp_path / "wsgi"))
    (tmp_path / "nginx.conf").write_text(elsewhere)
    (tmp_path / "more").mkdir()
    (tmp_path / "more/x.conf").write_text("server_names_hash_bucket_size 256;")
    text = host.once(Nginx).needed_changes("shop")[host.once(Nginx).files.entry]
    assert ("\nserver_names_hash_bucket_size 512;" in text) == said
