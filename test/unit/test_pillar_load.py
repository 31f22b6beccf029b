"""Settings from pillar: how they are merged, which are refused, and the texts of the problems."""

import itertools
from pathlib import Path

import pytest
import yaml
from pillars import HELLO
from wsgi_formula.pillar import schema
from wsgi_formula.pillar.edge import NGINX
from wsgi_formula.pillar.hazards import hazards
from wsgi_formula.pillar.rules import MAPPING
from wsgi_formula.pillar.schema import APP, COMMAND, ENV_NAMES, HEALTH, HOOK, HOOKS, MAINTENANCE, PROCESS, TOP
from wsgi_formula.pillar.servers import vulnerabilities
from wsgi_formula.pillar.source import SOURCE_FORMS

ROOT = Path(__file__).resolve().parents[2]
ROWS = yaml.safe_load((ROOT / "wsgi/servers.yaml").read_text())
SERVER_NAMES = ", ".join(ROWS)
MANAGER_NAMES = ", ".join(sorted({name for row in ROWS.values() for name in row["process_managers"]}))
HOLD_GUNICORN = ", ".join(ROWS["gunicorn"]["process_managers"])


@pytest.fixture
def problems(load):
    """problems({key: value, …}) returns the problems of the app `shop`, which is HELLO with these settings."""
    return lambda own: load({"apps": {"shop": {**HELLO, **own}}}).messages


# Merging and defaults


def test_minimal_app_gets_the_shipped_defaults(load):
    settings = load({"apps": {"shop": HELLO}})
    assert settings.messages == []
    shop = settings.apps["shop"]
    assert (shop["server"], shop["workers"], shop["listen"]) == ("gunicorn", 4, 80)
    assert shop["health"] == {"path": "/", "status": 200, "deadline": 60}


def test_every_app_has_every_key_of_the_schema(load):
    assert set(load({"apps": {"shop": HELLO}}).apps["shop"]) == set(APP)


def test_app_wins_over_wsgi_defaults_and_these_over_shipped_defaults(load):
    settings = load(
        {
            "defaults": {"workers": 8, "threads": 2},
            "apps": {"shop": {**HELLO, "workers": 16}, "blog": {**HELLO, "listen": 81}},
        }
    )
    shop, blog = settings.apps["shop"], settings.apps["blog"]
    assert (shop["workers"], shop["threads"], shop["max_requests"]) == (16, 2, 1000)
    assert (blog["workers"], blog["threads"]) == (8, 2)


def test_os_family_supplies_only_settings_without_a_shipped_default(make_host):
    host = make_host({"apps": {"shop": HELLO}})
    host.family["app"] = {"workers": 2, "user": "www"}
    shop = host.settings.apps["shop"]
    assert (shop["workers"], shop["user"]) == (4, "www")


def test_mappings_are_merged_and_lists_replaced(load):
    settings = load(
        {
            "defaults": {
                "health": {"path": "/up", "deadline": 5},
                "env": {"A": "1", "B": "2"},
                "server_options": {"gunicorn": {"backlog": 64, "loglevel": "debug"}},
                "domains": ["example.com"],
            },
            "apps": {
                "shop": {
                    **HELLO,
                    "health": {"deadline": 7},
                    "env": {"B": "3"},
                    "server_options": {"gunicorn": {"backlog": 128}, "uwsgi": {"cheaper": 2}},
                    "domains": ["shop.example.com"],
                }
            },
        }
    )
    assert settings.messages == []
    shop = settings.apps["shop"]
    assert shop["health"] == {"path": "/up", "status": 200, "deadline": 7}
    assert shop["env"] == {"A": "1", "B": "3"}
    assert shop["server_options"] == {
        "gunicorn": {"backlog": 128, "loglevel": "debug"},
        "uwsgi": {"cheaper": 2},
    }
    assert shop["domains"] == ["shop.example.com"]


def test_merging_neither_changes_nor_shares_the_pillar(load):
    pillar = {"defaults": {"env": {"A": "1"}}, "apps": {"shop": {**HELLO, "domains": ["a.example.com"]}}}
    shop = load(pillar).apps["shop"]
    shop["env"]["A"] = "changed"
    shop["domains"].append("changed")
    assert pillar["defaults"]["env"] == {"A": "1"}
    assert pillar["apps"]["shop"]["domains"] == ["a.example.com"]


@pytest.mark.parametrize("key", sorted(set(APP) - set(HELLO)))
def test_null_counts_as_unset(load, key):
    plain = load({"apps": {"shop": HELLO}})
    for pillar in (
        {"apps": {"shop": {**HELLO, key: None}}},
        {"defaults": {key: None}, "apps": {"shop": HELLO}},
    ):
        settings = load(pillar)
        assert settings.messages == []
        assert settings.apps == plain.apps


def test_null_in_a_mapping_counts_as_unset(load):
    settings = load(
        {
            "nginx": {"default_site": None, "client_max_body_size": None},
            "apps": {"shop": {**HELLO, "health": {"path": None}, "server_options": {"gunicorn": None}}},
        }
    )
    assert settings.messages == []
    assert (settings.nginx["default_site"], settings.nginx["client_max_body_size"]) == (True, "10m")
    assert settings.apps["shop"]["health"]["path"] == "/"


@pytest.mark.parametrize("pillar", [None, {}, {"apps": None}, {"defaults": {"server": "uwsgi"}}])
def test_pillar_without_apps_is_refused(load, pillar):
    settings = load(pillar)
    assert settings.messages == ["wsgi:apps: missing; it must be a mapping, {} for no app at all"]
    assert settings.host_wide


@pytest.mark.parametrize("pillar", [{"apps": {}}, {"apps": {}, "defaults": None, "nginx": None}])
def test_pillar_with_an_empty_mapping_of_apps_is_valid(load, pillar):
    settings = load(pillar)
    assert (settings.messages, settings.apps, settings.host_wide) == ([], {}, False)


def test_app_runs_as_a_user_of_its_own_by_default(load):
    settings = load({"apps": {"shop": HELLO, "blog": {**HELLO, "user": "www", "listen": 81}}})
    assert settings.apps["shop"]["user"] == "wsgi-shop"
    assert settings.apps["blog"]["user"] == "www"


@pytest.mark.parametrize(
    ("said", "server", "manager"),
    [
        (None, "uwsgi", "emperor"),
        (None, "gunicorn", "supervisor"),
        ("supervisor", "uwsgi", "supervisor"),
        ({"uwsgi": "supervisor"}, "uwsgi", "supervisor"),
        ({"uwsgi": "supervisor"}, "gunicorn", "supervisor"),
        ({"gunicorn": "supervisor"}, "uwsgi", "emperor"),
        ({"uwsgi": None}, "uwsgi", "emperor"),
    ],
)
def test_default_process_manager_depends_on_the_server(load, said, server, manager):
    settings = load({"apps": {"shop": {**HELLO, "server": server, "process_manager": said}}})
    assert settings.messages == []
    assert settings.apps["shop"]["process_manager"] == manager


def test_absent_app_needs_no_other_key(load):
    settings = load({"apps": {"shop": {"state": "absent", "purge": True}, "blog": HELLO}})
    assert settings.messages == []
    assert list(settings.apps) == ["blog"]
    assert settings.absent["shop"]["purge"] is True


# Validation

APP_KEYS = f"({', '.join(APP)})"
DOMAINS = f"must be {APP['domains'].allowed}"
REQUIREMENTS = "must be a file in the source, or a list of requirements"
SOURCE = f"must be {SOURCE_FORMS}"
INDEX = "must be an index's URL, or false for none"
WORDS = PROCESS["command"].allowed
OPTION = "must be a one-line string, a number, true, false or a list of them"
VARIABLE = "it must be a string or a number (quote it if the app expects the text)"


@pytest.mark.parametrize(
    ("own", "problem"),
    [
        ({"wrkers": 2}, f"wrkers: unknown key; did you mean 'workers'? {APP_KEYS}"),
        ({"Workers": 2}, f"Workers: unknown key; did you mean 'workers'? {APP_KEYS}"),
        ({"zzz": 2}, f"zzz: unknown key {APP_KEYS}"),
        ({7: 2}, f"7: unknown key {APP_KEYS}"),
        ({None: 2}, f"None: unknown key {APP_KEYS}"),
        ({"state": "gone"}, "state: 'gone' must be present or absent"),
        ({"state": True}, "state: True must be present or absent"),
        ({"server": "unicorn"}, f"server: 'unicorn' is not a server; did you mean 'gunicorn'? ({SERVER_NAMES})"),
        ({"server": "zzz"}, f"server: 'zzz' is not a server ({SERVER_NAMES})"),
        ({"server": ["uwsgi"]}, "server: ['uwsgi'] must be the name of a server"),
        ({"application": "hello"}, "application: 'hello' must be module:callable"),
        ({"application": "hello:app()"}, "application: 'hello:app()' must be module:callable"),
        ({"source": "srv/app"}, f"source: 'srv/app' {SOURCE}"),
        ({"source": "salt://"}, f"source: 'salt://' {SOURCE}"),
        ({"requirements": "../other.txt"}, f"requirements: '../other.txt' {REQUIREMENTS}"),
        ({"requirements": "/etc/other.txt"}, f"requirements: '/etc/other.txt' {REQUIREMENTS}"),
        ({"requirements": ["--index-url=x"]}, f"requirements: ['--index-url=x'] {REQUIREMENTS}"),
        ({"requirements": 3}, f"requirements: 3 {REQUIREMENTS}"),
        ({"python": "/bin/sh"}, "python: '/bin/sh' must be an interpreter's name or absolute path"),
        ({"user": "root"}, "user: 'root' must be a user's name, not root"),
        ({"user": "a b"}, "user: 'a b' must be a user's name, not root"),
        ({"domains": "shop.example.com"}, f"domains: 'shop.example.com' {DOMAINS}"),
        ({"domains": ["shop example"]}, f"domains: ['shop example'] {DOMAINS}"),
        ({"domains": ["a.*.example.com"]}, f"domains: ['a.*.example.com'] {DOMAINS}"),
        ({"domains": ["a.com; return 200"]}, f"domains: ['a.com; return 200'] {DOMAINS}"),
        # re.IGNORECASE alone takes the long s for an s.
        ({"domains": ["ſhop.example.com"]}, f"domains: ['ſhop.example.com'] {DOMAINS}"),
        ({"domains": [7]}, f"domains: [7] {DOMAINS}"),
        ({"listen": 0}, "listen: 0 must be an integer from 1 to 65535"),
        ({"listen": 65536}, "listen: 65536 must be an integer from 1 to 65535"),
        ({"listen": "80"}, "listen: '80' must be an integer from 1 to 65535"),
        ({"workers": 0}, "workers: 0 must be an integer from 1 to 1024"),
        ({"workers": 1025}, "workers: 1025 must be an integer from 1 to 1024"),
        ({"workers": True}, "workers: True must be an integer from 1 to 1024"),
        ({"workers": 1.5}, "workers: 1.5 must be an integer from 1 to 1024"),
        ({"threads": 0}, "threads: 0 must be an integer from 1 to 1024"),
        ({"request_timeout": 86401}, "request_timeout: 86401 must be an integer from 1 to 86400"),
        ({"graceful_timeout": 0}, "graceful_timeout: 0 must be an integer from 1 to 86400"),
        ({"max_requests": -1}, "max_requests: -1 must be an integer from 0 to 2147483647"),
        ({"keep_releases": 0}, "keep_releases: 0 must be an integer from 1 to 1000"),
        ({"purge": "yes"}, "purge: 'yes' must be true or false"),
        ({"health": "/up"}, "health: is a string; it must be a mapping"),
        ({"health": {"pth": "/"}}, "health:pth: unknown key; did you mean 'path'? (path, status, deadline, host)"),
        ({"health": {"path": "up"}}, "health:path: 'up' must be a path that begins with /"),
        ({"health": {"path": "/über"}}, "health:path: '/über' must be a path that begins with /"),
        ({"health": {"status": 99}}, "health:status: 99 must be an integer from 100 to 599"),
        ({"health": {"deadline": 0}}, "health:deadline: 0 must be an integer from 1 to 3600"),
        ({"health": {"host": "*.example.com"}}, "health:host: '*.example.com' must be a host name"),
        ({"process_manager": "cron"}, f"process_manager: 'cron' is not a process manager ({MANAGER_NAMES})"),
        (
            {"process_manager": "emperor"},
            f"process_manager: 'emperor' is not available for gunicorn; did you mean 'supervisor'? ({HOLD_GUNICORN})",
        ),
        (
            {"process_manager": {"gunicorn": "emperor"}},
            f"process_manager:gunicorn: 'emperor' is not available for gunicorn; did you mean 'supervisor'? ({HOLD_GUNICORN})",
        ),
        (
            {"process_manager": {"gunicorn": ["supervisor"]}},
            f"process_manager:gunicorn: ['supervisor'] is not available for gunicorn; did you mean 'supervisor'? ({HOLD_GUNICORN})",
        ),
        (
            {"process_manager": {"unicorn": "supervisor"}},
            f"process_manager:unicorn: unknown server; did you mean 'gunicorn'? ({SERVER_NAMES})",
        ),
        (
            {"process_manager": ["supervisor"]},
            "process_manager: ['supervisor'] must be a process manager's name, or a mapping of servers to them",
        ),
        ({"env": {"A": True}}, f"env:A: is true or false; {VARIABLE}"),
        ({"env": {"A": None}}, f"env:A: is null; {VARIABLE}"),
        ({"env": {"A": ["b"]}}, f"env:A: is a list; {VARIABLE}"),
        ({"env": {"A": {"b": 1}}}, f"env:A: is a mapping; {VARIABLE}"),
        ({"env": {"A": "b\0c"}}, "env:A: contains a character that no file can hold, such as NUL"),
        ({"env": {"A": "\ud800"}}, "env:A: contains a character that no file can hold, such as NUL"),
        ({"env": {"9A": "b"}}, f"env: '9A' is not a valid variable name; it must have {ENV_NAMES}"),
        ({"env": {9: "b"}}, f"env: '9' is not a valid variable name; it must have {ENV_NAMES}"),
        ({"env": {"A; rm": "b"}}, f"env: 'A; rm' is not a valid variable name; it must have {ENV_NAMES}"),
        ({"index": True}, f"index: True {INDEX}"),
        ({"index": "https://me:hunter2@ x"}, f"index: 'https://me:***@ x' {INDEX}"),
        ({"extra_index": "https://x"}, "extra_index: 'https://x' must be a list of indexes' URLs"),
        ({"installer": "poetry"}, "installer: 'poetry' must be pip or uv"),
        ({"wheels": "../x"}, "wheels: '../x' must be a folder's absolute path, or a folder in the source"),
        ({"deploy_key": "hunter2"}, "deploy_key: is a string; it must be a private key that OpenSSH reads"),
        ({"known_hosts": "x"}, "known_hosts: 'x' must be lines as ssh-keyscan prints them"),
        ({"env_files": ["x.env"]}, "env_files: ['x.env'] must be a list of files' absolute paths"),
        (
            {"maintenance": {"retry": 5}},
            "maintenance:retry: unknown key; did you mean 'retry_after'? (page, retry_after)",
        ),
        ({"maintenance": {"page": "x"}}, "maintenance:page: 'x' must be an HTML file that Salt serves, salt://…"),
        (
            {"hooks": {"biuld": ["x"]}},
            f"hooks:biuld: unknown key; did you mean 'build'? ({', '.join(HOOKS)})",
        ),
        ({"hooks": {"build": "make"}}, "hooks:build: is a string; it must be a list of commands"),
        ({"hooks": {"build": [7]}}, f"hooks:build:1:command: 7 must be {COMMAND.allowed}"),
        (
            {"hooks": {"build": ["x", {"timeout": 5}]}},
            f"hooks:build:2:command: missing; it must be {COMMAND.allowed}",
        ),
        (
            {"hooks": {"build": [{"command": "x", "every": "change"}]}},
            "hooks:build:1:every: 'change' is not available for build, which runs once for a release; leave it out",
        ),
        (
            {"hooks": {"before_live": [{"command": "x", "timeout": 0}]}},
            "hooks:before_live:1:timeout: 0 must be an integer from 1 to 86400",
        ),
        (
            {"hooks": {"before_live": [{"command": "x", "evry": "change"}]}},
            "hooks:before_live:1:evry: unknown key; did you mean 'every'? (command, timeout, every)",
        ),
        ({"processes": {"worker": "celery"}}, "processes:worker: is a string; it must be a mapping"),
        ({"processes": {"worker": {"count": 2}}}, f"processes:worker:command: missing; it must be {WORDS}"),
        ({"processes": {"worker": {"command": "x 'y"}}}, f'processes:worker:command: "x \'y" must be {WORDS}'),
        (
            {"processes": {"Worker": {"command": "x"}}},
            "processes:Worker: 'Worker' is not a valid name; it must be a lower-case letter, then at most 31 of a-z, 0-9, - and _",
        ),
        (
            {"schedule": {"clean": {"command": "x"}}},
            "schedule:clean:calendar: missing; it must be a time as `systemd-analyze calendar` takes it",
        ),
        (
            {"schedule": {"log": {"command": "x", "calendar": "daily"}}},
            "schedule:log: 'log' is reserved for the formula; choose another name",
        ),
        (
            {"processes": {"a": {"command": "x"}}, "schedule": {"a": {"command": "x", "calendar": "daily"}}},
            "schedule:a: processes has this name too, and both would write the same log; rename one",
        ),
        ({"rollback_on_failure": "yes"}, "rollback_on_failure: 'yes' must be true or false"),
        ({"server_options": ["x"]}, "server_options: is a list; it must be a mapping"),
        ({"server_options": {"gunicorn": "x"}}, "server_options:gunicorn: is a string; it must be a mapping"),
        (
            {"server_options": {"gnicorn": {}}},
            f"server_options:gnicorn: unknown server; did you mean 'gunicorn'? ({SERVER_NAMES})",
        ),
        (
            {"server_options": {"gunicorn": {"a = 1\nb": 2}}},
            "server_options:gunicorn:a = 1\nb: 'a = 1\\nb' is not a valid option name",
        ),
        (
            {"server_options": {"gunicorn": {"loglevel": "debug\nchdir = /"}}},
            f"server_options:gunicorn:loglevel: 'debug\\nchdir = /' {OPTION}",
        ),
        ({"server_options": {"gunicorn": {"a": {}}}}, f"server_options:gunicorn:a: {{}} {OPTION}"),
        ({"server_options": {"gunicorn": {"a": [["b"]]}}}, f"server_options:gunicorn:a: [['b']] {OPTION}"),
        ({"server_options": {"gunicorn": {"a": None}}}, f"server_options:gunicorn:a: None {OPTION}"),
    ],
    ids=str,
)
def test_problem_names_the_app_the_key_the_value_and_what_is_allowed(problems, own, problem):
    assert problems(own) == [f"wsgi:apps:shop:{problem}"]


@pytest.mark.parametrize(
    ("pillar", "problem"),
    [
        ("apps", "wsgi: is a string; it must be a mapping"),
        ([], "wsgi: is a list; it must be a mapping"),
        (0, "wsgi: is an integer; it must be a mapping"),
        ({"app": {}}, "wsgi:app: unknown key; did you mean 'apps'? (apps, defaults, nginx, status_page)"),
        ({"apps": []}, "wsgi:apps: is a list; it must be a mapping"),
        ({"apps": ""}, "wsgi:apps: is a string; it must be a mapping"),
        ({"apps": {}, "defaults": 1.5}, "wsgi:defaults: is a number; it must be a mapping"),
        ({"nginx": False}, "wsgi:nginx: is true or false; it must be a mapping"),
        (
            {"nginx": {"default_sites": True}},
            "wsgi:nginx:default_sites: unknown key; did you mean 'default_site'? (manage, client_max_body_size, default_site,"
            + " tls_profile, acme, trusted_proxies, proxy_protocol, metrics, http, server, location)",
        ),
        (
            {"nginx": {"client_max_body_size": "10 MB"}},
            "wsgi:nginx:client_max_body_size: '10 MB' must be a size as nginx takes it, e.g. 10m, below 2^63 bytes",
        ),
        ({"nginx": {"default_site": 1}}, "wsgi:nginx:default_site: 1 must be true or false"),
    ],
    ids=str,
)
def test_problem_of_the_host_stops_everything(load, pillar, problem):
    settings = load(pillar)
    assert (settings.messages, settings.host_wide) == ([problem], True)


def test_problems_of_the_host_and_of_apps_are_reported_together(load):
    settings = load({"nginx": {"default_site": 1}, "apps": {"shop": {**HELLO, "workers": 0}}})
    assert settings.messages == [
        "wsgi:nginx:default_site: 1 must be true or false",
        "wsgi:apps:shop:workers: 0 must be an integer from 1 to 1024",
    ]
    assert (settings.apps, settings.broken) == ({}, {"shop"})


@pytest.mark.parametrize(
    "name", ["Shop", "9shop", "-shop", "sho p", "shöp", "../shop", "a" * 28, "", "shop\n", 7, None]
)
def test_app_name_unfit_for_users_and_files_is_refused(load, name):
    settings = load({"apps": {name: HELLO}})
    (problem,) = settings.messages
    assert problem == (
        f"wsgi:apps:{name}: {name!r} is not a valid app name; it must be a lower-case letter, then at most 26 of a-z, "
        "0-9, - and _, because it names a user and files"
    )
    assert settings.broken == {str(name)}


def test_app_name_that_the_formula_reserves_is_refused(load):
    assert load({"apps": {"vassals": HELLO}}).messages == [
        "wsgi:apps:vassals: 'vassals' is reserved for a folder of the formula; choose another app name"
    ]


@pytest.mark.parametrize("name", ["a", "a" * 27, "shop-2_b"])
def test_valid_app_name_is_accepted(load, name):
    assert list(load({"apps": {name: HELLO}}).apps) == [name]


def test_missing_keys_are_reported(load):
    assert load({"apps": {"shop": None}}).messages == [
        "wsgi:apps:shop:application: missing; it must be module:callable",
        f"wsgi:apps:shop:source: missing; it {SOURCE}",
    ]


def test_all_problems_are_reported_at_once(load):
    settings = load(
        {
            "defaults": {"threads": 0},
            "apps": {
                "shop": {"server": "unicorn", "workers": 0, "env": {"A": None}, "process_manager": "emperor"},
                "Blog": HELLO,
                "wiki": 7,
            },
        }
    )
    assert [problem.split(" ")[0] for problem in settings.messages] == [
        "wsgi:defaults:threads:",
        "wsgi:apps:shop:workers:",
        "wsgi:apps:shop:server:",
        "wsgi:apps:shop:env:A:",
        "wsgi:apps:shop:application:",
        "wsgi:apps:shop:source:",
        "wsgi:apps:Blog:",
        "wsgi:apps:wiki:",
        "wsgi:apps:wiki:application:",
        "wsgi:apps:wiki:source:",
    ]


def test_app_with_a_problem_leaves_the_others_alone(load):
    settings = load({"apps": {"shop": {**HELLO, "domains": "x"}, "blog": HELLO, "wiki": {"state": "absent"}}})
    assert (list(settings.apps), list(settings.absent), settings.broken) == (["blog"], ["wiki"], {"shop"})
    assert not settings.host_wide


def test_absent_app_with_a_problem_is_not_removed(load):
    settings = load({"apps": {"shop": {"state": "absent", "purge": "no"}}})
    assert (settings.absent, settings.broken) == ({}, {"shop"})


PLAIN = [key for key, rule in APP.items() if rule.allowed != MAPPING.allowed and not rule.secret]


@pytest.mark.parametrize("key", PLAIN)
def test_problem_in_wsgi_defaults_stops_every_app(load, key):
    settings = load({"defaults": {key: -1.5}, "apps": {"shop": {**HELLO, "state": "present"}}})
    assert settings.messages == [f"wsgi:defaults:{key}: -1.5 must be {APP[key].allowed}"]
    assert (settings.apps, settings.broken, settings.host_wide) == ({}, {"shop"}, False)


def test_mappings_in_wsgi_defaults_are_validated(load):
    assert load(
        {
            "apps": {},
            "defaults": {
                "health": {"status": 0},
                "env": {"A": []},
                "server_options": {"uwsgi": {"socket": "x"}},
                "process_manager": {"gunicorn": "emperor"},
            },
        }
    ).messages == [
        "wsgi:defaults:health:status: 0 must be an integer from 100 to 599",
        f"wsgi:defaults:env:A: is a list; {VARIABLE}",
        "wsgi:defaults:server_options:uwsgi:socket: the formula sets this option; leave it out",
        f"wsgi:defaults:process_manager:gunicorn: 'emperor' is not available for gunicorn; did you mean 'supervisor'? ({HOLD_GUNICORN})",
    ]


# Options and settings of servers


@pytest.mark.parametrize(
    ("server", "option", "instead"),
    [
        ("gunicorn", "workers", "use 'workers' instead"),
        ("gunicorn", "timeout", "use 'request_timeout' instead"),
        ("gunicorn", "raw_env", "use 'env' instead"),
        ("gunicorn", "umask", "leave it out"),
        ("uwsgi", "processes", "use 'workers' instead"),
        ("uwsgi", "harakiri", "use 'request_timeout' instead"),
        ("uwsgi", "uid", "use 'user' instead"),
        ("uwsgi", "socket", "leave it out"),
    ],
)
def test_reserved_server_option_is_refused(problems, server, option, instead):
    assert problems({"server_options": {server: {option: "anything"}}}) == [
        f"wsgi:apps:shop:server_options:{server}:{option}: the formula sets this option; {instead}"
    ]


def test_replacement_of_a_reserved_option_is_a_key_of_the_schema(make_host):
    for server, row in make_host({}).servers.items():
        for option, instead in row["reserved"].items():
            assert instead is None or instead in APP, f"{server}: {option}"


@pytest.mark.parametrize("value", [True, False, 0, -1, 1.5, "", "text", "ünïcode", [], ["a", 1, True]])
def test_server_option_may_have_any_value_of_one_line(problems, value):
    assert problems({"server_options": {"gunicorn": {"option": value}, "uwsgi": {"option": value}}}) == []


def test_unsupported_setting_is_refused_unless_it_is_the_default(make_host):
    host = make_host(
        {
            "apps": {
                "shop": {**HELLO, "threads": 2},
                "blog": {**HELLO, "threads": 1, "listen": 81},
                "wiki": {**HELLO, "threads": 2, "server": "uwsgi", "listen": 82},
            }
        }
    )
    del host.servers["gunicorn"]["honours"]["threads"]
    assert host.settings.messages == [
        "wsgi:apps:shop:threads: gunicorn does not support threads; leave it out (found: 2)"
    ]
    assert set(host.settings.apps) == {"blog", "wiki"}


def test_setting_is_refused_for_an_interface_that_does_not_support_it(load):
    app = {**HELLO, "server": "uvicorn", "threads": 4}
    assert load({"apps": {"shop": {**app, "interface": "wsgi"}}}).messages == []
    assert load({"apps": {"shop": {**app, "interface": "asgi"}}}).messages == [
        "wsgi:apps:shop:threads: uvicorn does not support threads with interface 'asgi'; leave it out (found: 4)"
    ]


# Installation and versions of servers


@pytest.mark.parametrize(
    ("own", "problem"),
    [
        (
            {"interface": "asgi", "server": "uwsgi"},
            "interface: uwsgi does not support interface 'asgi'; choose another server (gunicorn",
        ),
        ({"interface": "rsgi"}, "interface: 'rsgi' must be wsgi or asgi"),
        ({"install": "distribution"}, "install: 'distribution' is not available for gunicorn (environment)"),
        ({"install": "pip"}, "install: 'pip' must be distribution or environment"),
        (
            {"server": "uwsgi", "version": "2.0.31"},
            "version: '2.0.31' has no effect, because pip does not install uwsgi here; leave it out, or set install to environment",
        ),
        ({"version": 23.0}, "version: 23.0 must be a version, quoted, e.g. '23.0.0'"),
        ({"version": "latest"}, "version: 'latest' must be a version, quoted, e.g. '23.0.0'"),
        ({"version": {"gunicorn": 23}}, "version:gunicorn: 23 must be a version, quoted, e.g. '23.0.0'"),
        ({"version": {"gnicorn": "23.0.0"}}, "version:gnicorn: unknown server; did you mean 'gunicorn'?"),
        (
            {"version": "22.0.0"},
            "version: gunicorn 22.0.0 has CVE-2024-6827; use 27.0.1, the default, or set allow_vulnerable: true",
        ),
        ({"version": "20.1"}, "version: gunicorn 20.1 has CVE-2024-1135, CVE-2024-6827;"),
        (
            {"server": "waitress", "version": "3.0.0"},
            "version: waitress 3.0.0 has CVE-2024-49768, CVE-2024-49769;",
        ),
        ({"server": "command"}, "command: missing; it must be a list of words, one of them with {socket}"),
        (
            {"server": "command", "command": ["run"]},
            "command: ['run'] must be a list of words, one of them with {socket}",
        ),
        (
            {"server": "command", "command": ["run", "{socket}", "{sockets}"]},
            "command: unknown placeholder '{sockets}'; did you mean 'socket'?",
        ),
        (
            {"server": "command", "command": ["run", "{socket}"], "request_timeout": 5},
            "request_timeout: command does not support request_timeout; leave it out (found: 5)",
        ),
        (
            {"server": "waitress", "preload": True},
            "preload: waitress does not support preload; leave it out (found: True)",
        ),
    ],
    ids=str,
)
def test_invalid_install_or_version_is_refused(problems, own, problem):
    (found,) = problems(own)
    assert found.startswith(f"wsgi:apps:shop:{problem}")


@pytest.mark.parametrize("manager", ["gaffer", {"gunicorn": "gaffer"}], ids=str)
def test_gaffer_is_refused_without_python_2_in_favour_of_circus(make_host, manager):
    wsgi = {"apps": {"shop": {**HELLO, "process_manager": manager}}}
    (problem,) = make_host(wsgi).settings.messages
    assert problem.split(": ", 1)[1] == (
        "'gaffer' is not available on Debian-12: gaffer runs on Python 2.7 only, which no later Debian has; "
        "circus replaces it"
    )
    assert make_host(wsgi, system="Debian-11").settings.messages == []


def test_unavailable_server_is_refused_and_the_available_ones_named(make_host):
    apps = {"shop": {**HELLO, "server": "granian"}, "other": {**HELLO, "domains": ["other.example.com"]}}
    assert make_host({"apps": apps}).settings.messages == []
    settings = make_host({"apps": apps}, system="Debian-11").settings
    (problem,) = settings.messages
    assert problem == (
        "wsgi:apps:shop:server: 'granian' is not available on Debian-11: granian 2.5.7, the newest for Python 3.9, "
        "has known vulnerabilities (CVE-2026-42544, CVE-2026-42545); choose another server "
        f"({', '.join(name for name in ROWS if name not in ('granian', 'passenger'))})"
    )
    assert list(settings.apps) == ["other"]


def test_default_version_of_a_server_fits_the_system(make_host):
    for system, version in (("Debian-11", "23.0.0"), ("Debian-12", "27.0.1"), ("Debian-13", "27.0.1")):
        host = make_host({"apps": {"shop": {**HELLO, "server": "gunicorn"}}}, system=system)
        assert host.settings.apps["shop"].server_requirements == [f"gunicorn=={version}"]


@pytest.mark.parametrize(
    "own",
    [
        {"interface": "asgi"},
        {"server": "uwsgi", "install": "environment", "version": "2.0.29"},
        {"version": "23.0.0"},
        {"version": "20.1", "allow_vulnerable": True},
        # Options of a server that is not used are allowed.
        {"server": "uwsgi", "version": {"gunicorn": "20.1", "waitress": "3.0.2"}},
        {"server": "command", "command": ["run", "{socket}", "{request_timeout}"], "request_timeout": 5},
    ],
    ids=str,
)
def test_valid_install_and_version_are_accepted(problems, own):
    assert problems(own) == []


@pytest.mark.parametrize("server", ROWS)
def test_default_version_of_a_server_has_no_known_vulnerability(make_host, server):
    row = make_host({}).servers[server]
    assert row["version"] is None or vulnerabilities(row, row["version"]) == []


@pytest.mark.parametrize(
    ("own", "keys"),
    [
        ({"threads": 2}, ["threads"]),
        ({"preload": True}, ["preload"]),
        ({"threads": 2, "preload": True}, ["threads", "preload"]),
        ({}, []),
    ],
    ids=str,
)
@pytest.mark.parametrize("line", ["pyzmq", "PyZMQ[all] >= 27 ; python_version > '3.8'", "pyzmq @ https://a.example/b"])
def test_library_that_breaks_with_threads_or_forks_gives_a_warning(load, own, keys, line):
    app = load({"apps": {"shop": {**HELLO, **own}}}).apps["shop"]
    found = hazards("wsgi:apps:shop", app, ["flask", line])
    assert [sentence.split(": ")[0] for sentence in found] == [f"wsgi:apps:shop:{key}" for key in keys]
    assert hazards("wsgi:apps:shop", app, ["flask", f"# {line}", "-r other.txt"]) == []


def test_library_that_breaks_only_with_forks_gives_no_warning_for_threads(load):
    app = load({"apps": {"shop": {**HELLO, "threads": 2, "preload": True}}}).apps["shop"]
    assert hazards("wsgi:apps:shop", app, ["grpcio==1.80.0"]) == [
        "wsgi:apps:shop:preload: grpcio is not safe when a process forks after loading; use false"
    ]


# Domains and ports


def test_two_apps_cannot_have_the_same_domain_and_port(load):
    settings = load(
        {
            "apps": {
                "shop": {**HELLO, "domains": ["a.example.com", "b.example.com"]},
                "blog": {**HELLO, "domains": ["B.example.com"]},
                "wiki": {**HELLO, "domains": ["b.example.com"], "listen": 8080},
            }
        }
    )
    assert settings.messages == [
        "wsgi:apps:blog:domains: 'b.example.com' on port 80 belongs to app shop already",
        "wsgi:apps:shop:domains: 'b.example.com' on port 80 belongs to app blog already",
    ]
    assert (list(settings.apps), settings.broken) == (["wiki"], {"shop", "blog"})


def test_two_apps_cannot_be_the_default_site_of_a_port(load):
    settings = load({"apps": {"shop": HELLO, "blog": HELLO, "wiki": {**HELLO, "listen": 8080}}})
    assert settings.messages == [
        "wsgi:apps:blog:domains: the default site (no domains) on port 80 belongs to app shop already",
        "wsgi:apps:shop:domains: the default site (no domains) on port 80 belongs to app blog already",
    ]
    assert list(settings.apps) == ["wiki"]


def test_absent_or_broken_app_does_not_occupy_its_domain(load):
    settings = load(
        {
            "apps": {
                "shop": {**HELLO, "state": "absent"},
                "blog": {**HELLO, "workers": 0},
                "wiki": HELLO,
            }
        }
    )
    assert (list(settings.apps), settings.broken) == (["wiki"], {"blog"})


def test_app_may_list_a_domain_twice(problems):
    assert problems({"domains": ["a.example.com", "A.example.com"]}) == []


# Secrets


@pytest.mark.parametrize(
    "own",
    [
        {"env": "PASSWORD=hunter2"},
        {"env": ["hunter2"]},
        {"env": [{"PASSWORD": "hunter2"}]},
        {"env": {"PASSWORD=hunter2": None}},
        {"env": {"PASSWORD": ["hunter2"]}},
        {"env": {"PASSWORD": {"value": "hunter2"}}},
        {"env": {"PASSWORD": "hunter2\0"}},
        {"env": {"9PASSWORD": "hunter2"}},
        {"evn": {"PASSWORD": "hunter2"}},
        {"PASSWORD": "hunter2"},
        {"server_options": {"gunicorn": {"raw_env": ["PASSWORD=hunter2"]}}},
    ],
    ids=str,
)
def test_no_problem_shows_the_value_of_a_variable(load, own):
    for pillar in (
        {"apps": {"shop": {**HELLO, **own}}},
        {"apps": [{"shop": own}]},
        {"apps": {"shop": [own]}},
        {"defaults": own},
        {"defaults": [own]},
        {"shop": own},
        [own],
    ):
        problems = load(pillar).messages
        assert problems
        assert "hunter2" not in "\n".join(problems)


# Arbitrary values

JUNK = [
    None, True, False, 0, -1, 10**30, 1.5, float("nan"), "", " ", "text", "a\nb", "\0", "\ud800", "salt://", "{{ x }}",
    [], [None], [[]], [{}], ["text"], [{"text": 1}], {}, {"text": None}, {None: None}, {1: 1}, {True: []}, {("a", 1): {}},
    {"uwsgi": None}, {"uwsgi": []}, {"gunicorn": {"a": object}}, {"path": []}, {"text": {"text": {"text": []}}},
    object(), b"bytes", {1, 2}, (1, 2),
]  # fmt: skip


def test_no_pillar_raises_an_exception(load):
    for junk in JUNK:
        for pillar in (junk, *({top: junk} for top in TOP), {"apps": {"shop": junk}}):
            load(pillar)
    for rules, wrap in (
        (APP, lambda own: {"defaults": own, "apps": {"shop": HELLO}}),
        (APP, lambda own: {"apps": {"shop": {**HELLO, **own}}}),
        (HEALTH, lambda own: {"apps": {"shop": {**HELLO, "health": own}}}),
        (MAINTENANCE, lambda own: {"apps": {"shop": {**HELLO, "maintenance": own}}}),
        (HOOKS, lambda own: {"apps": {"shop": {**HELLO, "hooks": own}}}),
        (HOOK, lambda own: {"apps": {"shop": {**HELLO, "hooks": {"build": [{"command": "x", **own}]}}}}),
        (PROCESS, lambda own: {"apps": {"shop": {**HELLO, "processes": {"a": {"command": "x", **own}}}}}),
        (NGINX, lambda own: {"nginx": own, "apps": {"shop": HELLO}}),
    ):
        for key, junk in itertools.product(rules, JUNK):
            settings = load(wrap({key: junk}))
            taken = settings.apps or settings.absent
            assert bool(settings.messages) != bool(taken), f"{key}: {junk!r}: {settings}"


def test_unknown_key_of_any_type_is_named(load):
    for name in (None, 1, True, 1.5, ("a", 1), "a b"):
        for key, pillar in (
            (f"wsgi:{name}", {name: 1}),
            (f"wsgi:apps:{name}", {"apps": {name: {}}}),
            (f"wsgi:apps:shop:{name}", {"apps": {"shop": {**HELLO, name: 1}}}),
            (f"wsgi:apps:shop:health:{name}", {"apps": {"shop": {**HELLO, "health": {name: 1}}}}),
            (f"wsgi:apps:shop:hooks:{name}", {"apps": {"shop": {**HELLO, "hooks": {name: ["x"]}}}}),
            (f"wsgi:apps:shop:processes:{name}", {"apps": {"shop": {**HELLO, "processes": {name: {"command": "x"}}}}}),
            (f"wsgi:apps:shop:process_manager:{name}", {"apps": {"shop": {**HELLO, "process_manager": {name: 1}}}}),
            (f"wsgi:apps:shop:server_options:{name}", {"apps": {"shop": {**HELLO, "server_options": {name: 1}}}}),
        ):
            (problem,) = load(pillar).messages
            assert problem.startswith(f"{key}: ")


# Health checks and recycling


def test_health_check_uses_the_first_domain_without_a_wildcard(load):
    apps = {
        "one": {**HELLO, "domains": ["*.example.com", "shop.example.com"]},
        "two": {**HELLO, "domains": ["*.example.org"]},
        "three": {**HELLO, "domains": ["three.example.com"], "health": {"host": "other.example.com"}},
        "four": HELLO,
    }
    hosts = {name: app.health_host for name, app in load({"apps": apps}).apps.items()}
    assert hosts == {"one": "shop.example.com", "two": "localhost", "three": "other.example.com", "four": "localhost"}


def test_shown_settings_have_no_secrets_at_any_depth(load):
    own = {
        "env": {"PASSWORD": "hunter2"},
        "tls": {"certificate": "/etc/ssl/a.pem", "key": "-----BEGIN hunter2"},
        "basic_auth": {"realm": "Staff", "users": {"ann": "$6$a$hunter2"}},
    }
    settings = load({"apps": {"shop": {**HELLO, **own}}})
    assert settings.messages == []
    shown = schema.hide_secrets(settings.apps["shop"], APP)
    assert "hunter2" not in str(shown)
    assert shown["tls"]["certificate"] == "/etc/ssl/a.pem"
    assert shown["basic_auth"] == {"realm": "Staff", "users": {"ann": "***"}, "except": []}


@pytest.mark.parametrize("server", ["mod_wsgi", "passenger"])
def test_max_requests_defaults_to_off_if_a_worker_ends_before_its_successor_serves(load, server):
    settings = load({"apps": {"shop": {**HELLO, "server": server}, "blog": {**HELLO, "domains": ["blog.example.com"]}}})
    assert settings.messages == []
    assert [settings.apps[name]["max_requests"] for name in ("shop", "blog")] == [0, 1000]


@pytest.mark.parametrize("defaults", [{}, {"max_requests": 500}])
@pytest.mark.parametrize("server", ["mod_wsgi", "passenger"])
def test_max_requests_is_refused_for_one_worker_that_ends_before_its_successor_serves(load, server, defaults):
    own = {**HELLO, "server": server, "workers": 1, **({} if defaults else {"max_requests": 500})}
    problem = (
        "wsgi:apps:shop:max_requests: 500 with workers: 1 would leave no worker to serve while the next one loads the "
        f"app, because {server} stops the old one first; set workers to 2 or more, or max_requests to 0"
    )
    assert load({"defaults": defaults, "apps": {"shop": own}}).messages == [problem]
    for mended in ({"workers": 2}, {"max_requests": 0}):
        assert load({"defaults": defaults, "apps": {"shop": {**own, **mended}}}).messages == []


def test_max_requests_defaults_to_off_for_uwsgi_with_threads_or_cheaper(load):
    own = {**HELLO, "server": "uwsgi"}
    for late in ({"server_options": {"uwsgi": {"cheaper": 1}}}, {"threads": 2}):
        assert load({"apps": {"shop": {**own, **late}}}).apps["shop"]["max_requests"] == 0
    assert load({"apps": {"shop": own}}).apps["shop"]["max_requests"] == 1000


def test_max_requests_defaults_to_off_for_a_command_that_counts_requests(load):
    command = ["/opt/serve", "--max={max_requests}", "--unix={socket}"]
    own = {**HELLO, "server": "command", "command": command, "workers": 1}
    assert load({"apps": {"shop": own}}).apps["shop"]["max_requests"] == 0
    problems = load({"apps": {"shop": {**own, "max_requests": 9}}}).messages
    assert [problem.split(" would ")[0] for problem in problems] == ["wsgi:apps:shop:max_requests: 9 with workers: 1"]
