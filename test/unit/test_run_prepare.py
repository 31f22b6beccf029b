"""New generations: the files of the server, its process manager and environment, the site, and what changes the id."""

import json
import os
import pwd
import re
import runpy
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import jinja2
import pytest
from conftest import nginx_files_of
from pillars import HELLO
from wsgi_formula import files
from wsgi_formula.app.desired import desired_release
from wsgi_formula.app.release import Release
from wsgi_formula.edge import maintenance
from wsgi_formula.edge.maintenance import MARKERS
from wsgi_formula.edge.nginx import Nginx
from wsgi_formula.edge.site_files import MACROS, known_domains
from wsgi_formula.errors import WsgiError
from wsgi_formula.pillar.schema import APP
from wsgi_formula.pillar.servers import long_options
from wsgi_formula.run.generation import Generation
from wsgi_formula.run.prepare import desired_id, generation_files
from wsgi_formula.run.record import new_record, settings_record

ROOT = Path(__file__).resolve().parents[2]
SERVERS = ["uwsgi", "gunicorn"]


@pytest.fixture
def make_app(make_host, monkeypatch):
    """make_app({key: value, …}) returns a host, its app `shop` with these settings, and the app's release."""

    def app_of(own=None):
        host = make_host({"apps": {"shop": {**HELLO, **(own or {})}}})
        assert host.settings.messages == []
        app = host.settings.apps["shop"]
        release = desired_release(host, "shop")
        # As if it were built.
        monkeypatch.setattr(Release, "record", {"environment": "abcdef0123"})
        return host, app, release

    return app_of


@pytest.fixture
def make_id(make_app):
    """make_id({key: value, …}) returns the id of the desired generation of such an app."""
    return lambda own=None: desired_id(*make_app(own))


@pytest.fixture
def make_files(make_app, tmp_path, monkeypatch):
    """make_files({key: value, …}) returns all files of such an app's generation and its site: name to text."""
    nobody = pwd.struct_passwd(("nobody", "x", 65534, 65534, "", "/", "/bin/false"))
    monkeypatch.setattr(pwd, "getpwnam", lambda name: nobody)

    def files_of(own=None, version="1.0"):
        host, app, release = make_app(own)
        host.family["nginx"].update(conf_dir=f"{tmp_path}/conf.d", own_dir=f"{tmp_path}/own")
        record = new_record(app, release, version)
        generation = Generation(host, "shop", "0123456789", record)
        site = nginx_files_of(host)
        return {
            **{
                os.path.join("tmpfiles.d" if "tmpfiles" in path else "", os.path.basename(path)): text
                for path, text in generation_files(generation, app).items()
            },
            "wsgi.conf": site.pop("wsgi.conf"),
            "site": "\n".join(site.values()),
        }

    return files_of


def options_of(text):
    """Return the lines of an ini file, in their order, as a list of (key, value)."""
    lines = [line for line in text.splitlines() if line and line[0] not in ";["]
    return [tuple(line.split(" = " if " = " in line else "=", 1)) for line in lines]


def command_of(files):
    """Return the arguments with which supervisor starts a server, joined by spaces."""
    return " ".join(shlex.split(dict(options_of(files["wsgi-shop.0123456789.conf"]))["command"]))


@pytest.fixture
def make_conf(make_files, tmp_path, monkeypatch):
    """make_conf({key: value, …}) returns the settings that gunicorn reads from such an app's configuration."""

    monkeypatch.syspath_prepend(ROOT / "wsgi/common")

    def conf_of(own=None):
        files = make_files(own)
        for name in ("gunicorn.conf.py", "wsgi_worker.py", "settings.json"):
            (tmp_path / name).write_text(files[name], encoding="utf-8")
        monkeypatch.delitem(sys.modules, "wsgi_worker", raising=False)
        return runpy.run_path(str(tmp_path / "gunicorn.conf.py"))

    return conf_of


def program_settings(files):
    """What a generation's programs read."""
    return json.loads(files["settings.json"])


# The server's configuration


def test_portable_settings_are_rendered_for_gunicorn(make_conf, tmp_path):
    own = {"workers": 3, "threads": 2, "request_timeout": 7, "graceful_timeout": 8}
    conf = make_conf(own)
    assert (conf["wsgi_app"], conf["pythonpath"]) == ("wsgi_application:application", str(tmp_path))
    assert conf["bind"] == "unix:/run/wsgi/shop/0123456789.own/http.sock"
    assert (conf["workers"], conf["threads"], conf["worker_class"]) == (3, 2, "gthread")
    # The guard comes first.
    assert (conf["timeout"], conf["graceful_timeout"]) == (12, 8)


def test_portable_settings_are_rendered_for_uwsgi(make_files):
    own = {"workers": 3, "request_timeout": 7, "graceful_timeout": 8}
    options = dict(options_of(make_files({**own, "server": "uwsgi"})["uwsgi.ini"]))
    assert (options["module"], options["pythonpath"]) == ("wsgi_application:application", "/etc/wsgi/shop/0123456789")
    assert options["socket"] == "/run/wsgi/shop/0123456789.own/uwsgi.sock"
    # One more is the place of a successor.
    assert (options["cheaper"], options["processes"], options["threads"]) == ("3", "4", "1")
    assert (options["harakiri"], options["worker-reload-mercy"]) == ("7", "8")


def test_uwsgi_with_threads_recycles_workers_itself(make_files):
    own = {"server": "uwsgi", "workers": 3, "threads": 2, "max_requests": 90, "memory_limit": 200}
    files = make_files(own)
    options = dict(options_of(files["uwsgi.ini"]))
    assert (options["processes"], options["threads"], options["max-requests"]) == ("3", "2", "90")
    assert (options["reload-on-rss"], options["evil-reload-on-rss"]) == ("200", "400")
    assert not {"cheaper", "master-fifo"} & {*options}
    assert program_settings(files)["guarded"] == []


def test_cheaper_option_of_pillar_is_kept_for_uwsgi(make_files):
    own = {"server": "uwsgi", "workers": 3, "server_options": {"uwsgi": {"cheaper": 1, "cheaper-algo": "busyness"}}}
    options = options_of(make_files(own)["uwsgi.ini"])
    assert [value for option, value in options if option in ("processes", "cheaper", "cheaper-algo")] == [
        "3",
        "1",
        "busyness",
    ]
    assert "master-fifo" not in dict(options)


def test_gunicorn_with_one_thread_uses_the_sync_worker(make_conf):
    assert make_conf({"threads": 1})["worker_class"] == "sync"


@pytest.mark.parametrize(
    "value", [True, False, 0, -1.5, "", 'it\'s "quoted" \\ {{ 7 }} %s', "ünïcode", "x " * 99, [1, "a b", True]]
)
def test_options_reach_gunicorn_unchanged(make_conf, value):
    conf = make_conf({"server_options": {"gunicorn": {"statsd_prefix": value}}})
    assert conf["statsd_prefix"] == value
    assert type(conf["statsd_prefix"]) is type(value)


def test_unknown_option_is_refused_by_the_configuration_of_gunicorn(make_conf):
    with pytest.raises(SystemExit, match="wsgi:apps:shop:server_options:gunicorn: gunicorn has no such settings: wro"):
        make_conf({"server_options": {"gunicorn": {"wrong": 1, "backlog": 64}}})


def test_worker_class_of_gunicorn_without_threads_is_refused_with_threads(make_conf):
    options = {"server_options": {"gunicorn": {"worker_class": "gevent"}}}
    assert make_conf(options)["worker_class"] == "gevent"
    with pytest.raises(SystemExit, match="wsgi:apps:shop:server_options:gunicorn:worker_class: 'gevent' does not"):
        make_conf({**options, "threads": 2})


def test_options_are_rendered_for_uwsgi_and_lists_are_repeated(make_files):
    own = {
        "post-buffering": 65536,
        "memory-report": True,
        "vacuum": False,
        "static-map": ["/a=/b", "/c=/d"],
        "mime": [],
    }
    options = options_of(make_files({"server": "uwsgi", "server_options": {"uwsgi": own}})["uwsgi.ini"])
    assert options[-5:] == [
        ("post-buffering", "65536"),
        ("memory-report", "true"),
        ("vacuum", "false"),
        ("static-map", "/a=/b"),
        ("static-map", "/c=/d"),
    ]


@pytest.mark.parametrize(("server", "other"), [SERVERS, SERVERS[::-1]])
def test_options_of_another_server_change_nothing(make_files, server, other):
    plain = make_files({"server": server})
    assert make_files({"server": server, "server_options": {other: {"nothing-of": "this"}}}) == plain


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("setting", ["workers", "threads", "graceful_timeout"])
def test_option_that_a_setting_renders_is_reserved(make_host, make_files, make_conf, server, setting):
    own, row = {"server": server, setting: 777}, make_host({}).servers[server]
    options = make_conf(own) if server == "gunicorn" else dict(options_of(make_files(own)["uwsgi.ini"]))
    # 778: with a place for a successor
    holding = [option for option, value in options.items() if str(value) in ("777", "778")]
    assert setting in [row["reserved"].get(option) for option in holding], holding


# Process managers


def test_supervisor_runs_the_server_as_the_user_of_the_app(make_files):
    program = dict(options_of(make_files({"user": "www"})["wsgi-shop.0123456789.conf"]))
    launch, wrapped = program["command"].split(" -- ")
    assert launch.startswith("/usr/local/lib/wsgi/launch --unit shop.0123456789 --user www ")
    wrapper, folder, command = wrapped.split(" ", 2)
    assert (wrapper, folder) == ("/usr/local/lib/wsgi/with-environment", "/etc/wsgi/shop/0123456789")
    assert command.endswith("/bin/gunicorn --config /etc/wsgi/shop/0123456789/gunicorn.conf.py")


def test_published_sockets_are_in_a_folder_that_no_app_can_write_to(make_files):
    text = make_files({"server": "uwsgi", "metrics": True})["tmpfiles.d/wsgi-shop.0123456789.conf"]
    lines = {path: rest for _, path, *rest in (line.split() for line in text.splitlines())}
    assert lines["/run/wsgi/shop/0123456789"][:2] == ["0750", "0"]
    assert lines["/run/wsgi/shop/0123456789.own"][0] == "0700"
    (launch,) = [text for path, text in make_files({"server": "uwsgi", "metrics": True}).items() if path == "launch"]
    assert " --own /run/wsgi/shop/0123456789.own --into /run/wsgi/shop/0123456789 --publish uwsgi.sock" in launch
    assert "--publish stats.sock" in launch
    assert "stats.sock" not in make_files({"server": "uwsgi"})["launch"]


def test_vassal_names_the_uwsgi_to_run(make_files):
    files = make_files({"server": "uwsgi"})
    assert set(files) == {
        "uwsgi.ini",
        "settings.json",
        "wsgi_worker.py",
        "wsgi_application.py",
        "launch",
        "env",
        "tmpfiles.d/wsgi-shop.0123456789.conf",
        "site",
        "wsgi.conf",
    }
    assert files["launch"].endswith(
        ' -- /usr/local/lib/wsgi/with-environment /etc/wsgi/shop/0123456789 /usr/bin/uwsgi "$@"\n'
    )


@pytest.mark.parametrize(
    ("version", "hook"),
    [
        (None, "py-call-osafterfork"),
        ("2.0.21-debian", "py-call-osafterfork"),
        ("2.0.28-debian", "py-call-uwsgi-fork-hooks"),
        ("2.0.30.post1", "py-call-uwsgi-fork-hooks"),
    ],
)
def test_fork_hook_option_fits_the_version_of_uwsgi(make_files, version, hook):
    options = options_of(make_files({"server": "uwsgi"}, version)["uwsgi.ini"])
    assert [option for option in options if "fork" in option[0]] == [(hook, "true")]


@pytest.mark.parametrize("server", SERVERS)
def test_timeouts_are_ordered_from_the_app_outwards(make_files, server):
    own = {"server": server, "process_manager": "supervisor", "request_timeout": 70, "graceful_timeout": 90}
    files = make_files(own)
    program = dict(options_of(files["wsgi-shop.0123456789.conf"]))
    assert int(program["stopwaitsecs"]) > 90
    for protocol in ("proxy", "uwsgi"):
        assert directive(files["site"], f"{protocol}_read_timeout") == ["75s"] * 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, []),
        ({"backlog": 2048}, ["--backlog", "2048"]),
        ({"ws": False, "access-log": True}, ["--no-ws", "--access-log"]),
        ({"include-file": ["/a b", "/c"]}, ["--include-file", "/a b", "--include-file", "/c"]),
    ],
    ids=str,
)
def test_options_of_a_server_without_a_file_become_arguments(options, words):
    assert long_options(options) == words


# The formula's programs


def test_guard_enforces_limits_that_the_server_does_not_support(make_files):
    own = {"request_timeout": 7, "graceful_timeout": 8, "max_requests": 90, "memory_limit": 200}
    kept = {
        server: {*program_settings(make_files({**own, "server": server}))["guarded"]}
        for server in ("uwsgi", "gunicorn", "waitress")
    }
    assert kept == {
        "uwsgi": {"max_requests", "memory_limit"},
        "gunicorn": {"request_timeout", "max_requests", "memory_limit"},
        "waitress": {"request_timeout", "max_requests"},
    }


def test_guard_ignores_settings_that_are_off(make_files):
    assert program_settings(make_files({"max_requests": 0}))["guarded"] == ["request_timeout"]


@pytest.mark.parametrize("server", ["gunicorn", "waitress", "passenger"])
def test_worker_program_reads_each_of_its_settings(make_files, tmp_path, server):
    files = make_files({"server": server})
    for name in ("wsgi_worker.py", "settings.json"):
        (tmp_path / name).write_text(files[name])
    worker = runpy.run_path(str(tmp_path / "wsgi_worker.py"))
    assert vars(worker["SETTINGS"]) == program_settings(files)
    assert (worker["SETTINGS"].server, worker["SETTINGS"].ping_interval) == (server, 20)
    assert (worker["SETTINGS"].socket is None) == (server == "waitress")
    assert bool(worker["SETTINGS"].distribution) == (server == "passenger")


@pytest.mark.parametrize("server", ["bjoern", "waitress"])
def test_worker_program_of_a_server_is_copied_unchanged(make_files, server):
    name = f"{server}_worker.py"
    assert make_files({"server": server})[name] == (ROOT / "wsgi" / server / name).read_text()


def test_server_of_one_process_is_spawned_once_per_worker(make_files):
    files = make_files({"server": "waitress", "workers": 3, "graceful_timeout": 8, "memory_limit": 200})
    command = command_of(files)
    assert (
        " /usr/local/lib/wsgi/spawn --workers 3 --link /run/wsgi/shop/0123456789.own/http --patience 8 "
        "--accept-timeout 45 --memory-limit 200 -- "
    ) in command
    assert command.endswith("/bin/python /etc/wsgi/shop/0123456789/waitress_worker.py {socket}")
    assert "f /run/wsgi/shop/0123456789/workers " in files["tmpfiles.d/wsgi-shop.0123456789.conf"]
    assert directive(files["site"], "server unix:/var/lib/wsgi/live/shop/http-3.sock") == ["max_fails=0"]


def test_unused_command_key_does_not_change_another_server(make_files):
    waiting = ["/opt/run", "{socket}", "{workers}"]
    assert "/spawn --workers 4 " in command_of(make_files({"server": "waitress", "command": waiting}))


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (
            ["/opt/run", "--on", "unix:{socket}"],
            "4 --link {run}/http --patience 30 --health-path / --health-host localhost --accept-timeout 45 -- /opt/run --on unix:{{socket}}",
        ),
        (["/opt/run", "{socket}", "{workers}", "{threads}"], "/opt/run {run}/http.sock 4 2"),
    ],
)
def test_command_placeholders_are_filled_in(make_files, words, command):
    own = {"server": "command", "command": words, "application": None, "threads": 2 if "{threads}" in words else 1}
    assert command_of(make_files(own)).endswith(" " + command.format(run="/run/wsgi/shop/0123456789.own"))


# Environment variables

NASTY = {
    "QUOTES": """it's "so" `id` $(id) $HOME ${HOME}""",
    "LINES": "first\nsecond\n\n",
    "SPACES": "  leading and trailing  ",
    "PERCENT": "100%s %(here)s %%",
    "BACKSLASHES": "\\n \\\\ \\",
    "UNICODE": "naïve ☃ 😀",
    "CONTROL": "\x01\x1b[0m\t\r",
    "EMPTY": "",
    "HASH": "# not a comment",
    "LOOKS_LIKE": "a\nPATH=/nowhere",
    "NUMBER": 7,
    "FRACTION": 0.5,
}


def environment_after(text, folder):
    """Return the environment of a command that with-environment runs with such a file."""
    (folder / "env").write_text(text, encoding="utf-8")
    command = ["sh", ROOT / "wsgi/common/with-environment", folder, "/usr/bin/env", "-0"]
    seen = subprocess.run(command, check=True, env={}, capture_output=True).stdout.decode()
    return dict(variable.split("=", 1) for variable in seen.split("\0") if variable)


def test_value_of_a_variable_reaches_the_app_unchanged(make_files, tmp_path):
    seen = environment_after(make_files({"env": NASTY})["env"], tmp_path)
    assert {name: seen[name] for name in NASTY} == {name: str(value) for name, value in NASTY.items()}


def test_home_user_and_path_are_those_of_the_app(make_files, tmp_path):
    seen = environment_after(make_files({"user": "www"})["env"], tmp_path)
    assert seen["HOME"] == "/var/lib/wsgi/home/shop"
    assert seen["USER"] == seen["LOGNAME"] == "www"
    assert seen["PATH"].startswith("/srv/wsgi/shop/environments/")


def test_variable_of_pillar_wins(make_files, tmp_path):
    own = {"PATH": "/opt/bin", "HOME": "/nowhere", "LANG": "de_DE.UTF-8"}
    seen = environment_after(make_files({"env": own})["env"], tmp_path)
    assert {name: seen[name] for name in own} == own


@pytest.mark.parametrize(
    "own", [{"server": "uwsgi"}, {"server": "uwsgi", "process_manager": "supervisor"}, {}], ids=str
)
def test_values_of_variables_are_in_no_other_file(make_files, own):
    files = make_files({**own, "env": {"PASSWORD": "hunter2"}})
    assert [name for name, text in files.items() if "hunter2" in text] == ["env"]


def test_record_of_a_generation_has_no_values_of_variables(make_app):
    _, app, _ = make_app({"env": {"PASSWORD": "hunter2"}})
    assert "hunter2" not in str(settings_record(app))


# The site


def directive(site, name):
    """Return the arguments of each directive of this name."""
    lines = [line.strip() for line in site.splitlines()]
    return [line[len(name) + 1 : -1] for line in lines if line.startswith(f"{name} ")]


def test_site_has_the_domains_and_the_port_of_the_app(make_files):
    site = make_files({"domains": ["shop.example.com", "*.example.org"], "listen": 8080})["site"]
    assert directive(site, "server_name") == ["shop.example.com *.example.org"]
    assert directive(site, "listen")[0] == "8080"
    assert "default_server" not in site


def test_app_without_domains_is_the_default_site_of_its_port(make_files):
    files = make_files({"listen": 8080})
    assert directive(files["site"], "listen")[0] == "8080 default_server"
    assert "listen" not in files["wsgi.conf"]


def test_unknown_hosts_get_no_response_without_a_default_site(make_files):
    default = make_files({"domains": ["shop.example.com"], "listen": 8080})["wsgi.conf"]
    assert directive(default, "listen")[0] == "8080 default_server"
    assert directive(default, "return") == ["444"]


def test_default_site_can_be_disabled(make_host, tmp_path):
    host = make_host({"nginx": {"default_site": False}, "apps": {"shop": {**HELLO, "domains": ["shop.example.com"]}}})
    host.family["nginx"]["conf_dir"] = str(tmp_path)
    assert "server {" not in host.once(Nginx).needed_changes("shop")[f"{tmp_path}/wsgi.conf"]


def test_known_domains_are_those_that_fit_the_hash_of_nginx():
    names = ["shop.test", "*.shop.test", "localhost", f"{'a' * 41}.test", f"{'a' * 42}.test", r"~^(?<word>.+)\.test$"]
    sites = [f"server {{\n    server_name {' '.join(names)};\n}}\n", 'server {\n    server_name "";\n}\n']
    assert known_domains(sites) == [f"{'a' * 41}.test", "shop.test"]


@pytest.mark.parametrize("server", SERVERS)
def test_site_is_the_same_under_every_server(make_files, server):
    """Therefore a switch of the server needs no reload."""
    assert make_files({"server": server})["site"] == make_files()["site"]


@pytest.mark.parametrize(
    "header", ["X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Real-IP", "Forwarded", "Proxy"]
)
def test_forwarded_headers_of_clients_are_not_passed_on(make_files, header):
    site = make_files()["site"]
    assert directive(site, f"proxy_set_header {header}")
    assert directive(site, f"uwsgi_param HTTP_{header.upper().replace('-', '_')}")
    assert "$http_x_" not in site
    assert "add_x_forwarded_for" not in site


def test_maintenance_is_checked_before_the_request_is_proxied(make_files):
    site = make_files({"maintenance": {"retry_after": 77}})["site"]
    locations = re.findall(r"(?ms)^location .*?^}", site)
    before = [location.partition("proxy_pass")[0] for location in locations]
    looks = "if (-f /var/lib/wsgi/maintenance/shop) {"
    # The first location checks the fast path, which is absent in maintenance.
    assert [looks in location for location in before] == [False, True, True, False, False]
    assert directive(site, "add_header Retry-After") == ["77 always"]


def test_usual_request_takes_the_fast_path_and_others_are_checked(make_files):
    first, unusual = re.findall(r"(?ms)^location .*?^}", make_files()["site"])[:2]
    shortcuts = [f"/var/lib/wsgi/short/shop.{marker}" for marker in MARKERS]
    assert re.findall(r"\(-f (.*)\)", first) == shortcuts
    assert first.endswith("\n    return 427;\n}")
    assert re.findall(r"\(-f (.*)\)", unusual)[:3] == [
        "/run/wsgi/nginx.closing",
        "/var/lib/wsgi/maintenance/shop",
        "/var/lib/wsgi/live/shop/uwsgi",
    ]


@pytest.mark.parametrize(
    "own", [{"cors": {"origins": ["*"]}}, {"request_buffering": False}, {"nginx": {"location": "return 402;"}}]
)
def test_app_with_access_rules_has_no_fast_path(make_files, own):
    first = re.search(r"(?ms)^location .*?^}", make_files(own)["site"])[0]
    assert re.search(r"if \((.*)\)", first)[1] == "-f /run/wsgi/nginx.closing"
    assert "/short/" not in make_files(own)["site"]


def test_server_with_keepalive_has_one_socket(make_host):
    """nginx checks one marker after the other, and takes the first."""
    rows = make_host({"apps": {}}).servers
    assert [name for name, row in rows.items() if row.get("keepalive") and row.get("spawned")] == []


def test_own_maintenance_page_wins_and_does_not_change_the_site(make_files):
    site = make_files()["site"]
    pages = "/var/lib/wsgi/maintenance/shop.html /usr/local/lib/wsgi/maintenance.html"
    assert directive(site, "try_files") == [f"{pages} =503"]
    assert make_files({"maintenance": {"page": "salt://shop/down.html"}})["site"] == site


def test_other_503_responses_are_left_alone(make_files):
    site = make_files()["site"]
    assert not [words for words in directive(site, "error_page") if words.startswith("503 ")]


def test_default_maintenance_page_loads_nothing():
    page = (ROOT / "wsgi/nginx/maintenance.html").read_text()
    assert re.search(r"(?:src|href|url\(|@import|//)", page) is None


@pytest.mark.parametrize("what", ["maintenance", "a change"])
def test_change_during_the_creation_of_the_fast_path_wins(tmp_path, monkeypatch, what):
    for name in ("FOLDER", "FAST_PATHS", "LIB"):
        monkeypatch.setattr(maintenance, name, f"{tmp_path}/{name}")
    live = tmp_path / "LIB" / "live" / "shop"
    live.mkdir(parents=True)
    (live / "uwsgi").touch()
    write, written = files.write, []

    def interrupted(path, *args):
        written.append(path)
        if what == "maintenance":
            files.ensure_dir(maintenance.FOLDER, 0o755, os.getuid(), os.getgid())
            write(maintenance.marker_path("shop"), "", 0o644)
        else:
            (live / "uwsgi").unlink()
        write(path, *args)

    monkeypatch.setattr(files, "write", interrupted)
    maintenance.enable_fast_path("shop")
    assert written == [f"{tmp_path}/FAST_PATHS/shop.uwsgi"]
    assert list((tmp_path / "FAST_PATHS").iterdir()) == []


def test_fast_path_markers_are_those_of_the_live_generation(tmp_path, monkeypatch):
    monkeypatch.setattr(maintenance, "FOLDER", f"{tmp_path}/maintenance")
    monkeypatch.setattr(maintenance, "FAST_PATHS", f"{tmp_path}/shortcuts")
    monkeypatch.setattr(maintenance, "LIB", str(tmp_path))
    live = tmp_path / "live" / "shop"
    live.mkdir(parents=True)
    for there in (["uwsgi"], ["http", "keepalive"], []):
        for marker in MARKERS:
            (live / marker).unlink(missing_ok=True)
        for marker in there:
            (live / marker).touch()
        maintenance.enable_fast_path("shop")
        found = sorted(path.name for path in (tmp_path / "shortcuts").iterdir())
        assert found == [f"shop.{marker}" for marker in there]
    maintenance.disable_fast_path("shop")
    assert not list((tmp_path / "shortcuts").iterdir())


def test_maintenance_page_that_salt_does_not_serve_is_refused(make_host):
    host = make_host({"apps": {"shop": {**HELLO, "maintenance": {"page": "salt://wsgi/nginx/nothing.html"}}}})
    with pytest.raises(WsgiError, match=r"wsgi:apps:shop:maintenance:page: salt://wsgi/nginx/nothing\.html is"):
        maintenance.page_changes(host, "shop")


def test_maintenance_page_is_installed_if_it_differs_and_removed_if_unset(make_host, tmp_path, monkeypatch):
    monkeypatch.setattr(maintenance, "FOLDER", str(tmp_path))
    served, there = ROOT / "wsgi/nginx/maintenance.html", tmp_path / "shop.html"
    url = f"salt://{served.relative_to(ROOT)}"

    def pending(page):
        host = make_host({"apps": {"shop": {**HELLO, "maintenance": {"page": page}}}})
        return maintenance.page_changes(host, "shop")

    assert (pending(None), pending(url)) == ({}, {str(there): str(served)})
    there.write_bytes(served.read_bytes())
    assert (pending(None), pending(url)) == ({str(there): None}, {})
    there.write_bytes(served.read_bytes().replace(b"\n", b"\r\n"))
    assert pending(url) == {str(there): str(served)}


# Ids of generations

BASE = {
    "server": "uwsgi",
    "env": {"A": "1", "B": "2"},
    "server_options": {"uwsgi": {"cheaper": 2, "ignore-sigpipe": True}},
    "domains": ["shop.example.com"],
}


def test_equal_settings_give_the_same_id(make_id):
    assert make_id(BASE) == make_id(BASE)


def test_order_of_keys_does_not_change_the_id(make_id):
    def backwards(value):
        if not isinstance(value, dict):
            return value
        return {key: backwards(value[key]) for key in reversed(value)}

    assert backwards(BASE) == BASE
    assert list(backwards(BASE)) != list(BASE)
    assert make_id(backwards(BASE)) == make_id(BASE)


PROCESS = {
    "server": "gunicorn",
    "process_manager": "supervisor",
    "application": "hello:other",
    "user": "www",
    "workers": 5,
    "threads": 2,
    "request_timeout": 31,
    "graceful_timeout": 31,
    "max_requests": 999,
    "env": {"A": "1", "B": "3"},
    "metrics": True,
    "server_options": {"uwsgi": {"cheaper": 3}},
    "requirements": ["flask==3.1.3"],
    "python": "python3.99",
    "source": "salt://wsgi/examples/flask",
    "install": "environment",
    "version": "26.0.0",
    "interface": "asgi",
    "command": ["/usr/bin/other", "{socket}"],
    "preload": True,
    "memory_limit": 300,
    "wheels": "/srv/wheels",
    "index": "https://pypi.example.com/simple",
    "extra_index": ["https://pypi.example.com/simple"],
    "hooks": {"build": ["make assets"]},
    "processes": {"worker": {"command": "work"}},
    "schedule": {"cleanup": {"command": "clean", "calendar": "daily"}},
}
# Other settings that an app needs for a setting to have an effect.
BESIDE = {
    "version": {"server": "gunicorn"},
    "interface": {"server": "gunicorn"},
    "command": {"server": "command", "command": ["/usr/bin/one", "{socket}"]},
}
NO_PROCESS = {
    "domains": ["other.example.com"],
    "redirect_domains": ["www.example.com"],
    "listen": 8080,
    "mount": "/shop",
    "tls": "self_signed",
    "static": {"/static/": "static/"},
    "internal": {"/internal/": "/srv/internal"},
    "error_pages": {404: "404.html"},
    "client_max_body_size": "1m",
    "buffering": False,
    "request_buffering": False,
    "allow": ["127.0.0.1"],
    "limits": {"all": {"rate": "9r/s"}},
    "basic_auth": {"users": {"ann": "$6$a$b"}},
    "cache": {"valid": "1m"},
    "compression": True,
    "security_headers": True,
    "response_headers": {"X-Shop": "1"},
    "cors": {"origins": ["*"]},
    "access_log": "none",
    "source_limits": {"size": "1g"},
    "nginx": {"location": "gzip on;"},
    "health": {"path": "/up", "deadline": 1},
    "keep_releases": 9,
    "purge": True,
    "allow_vulnerable": True,
    "deploy_key": "-----BEGIN OPENSSH PRIVATE KEY-----\n-----END OPENSSH PRIVATE KEY-----\n",
    "known_hosts": "git.example.com ssh-ed25519 AAAA",
    "installer": "pip",
    "rollback_on_failure": True,
    "maintenance": {"retry_after": 5},
}


def test_every_key_is_listed_here():
    assert {*PROCESS, *NO_PROCESS, "env_files"} == {*APP} - {"state"}


@pytest.mark.parametrize("key", PROCESS)
def test_setting_that_reaches_the_process_makes_a_new_generation(make_id, key):
    base = {**BASE, **BESIDE.get(key, {})}
    assert make_id({**base, key: PROCESS[key]}) != make_id(base)


@pytest.mark.parametrize("key", NO_PROCESS)
def test_other_setting_makes_no_new_generation(make_id, key):
    assert make_id({**BASE, key: NO_PROCESS[key]}) == make_id(BASE)


def test_options_of_another_server_make_no_new_generation(make_id):
    options = {**BASE["server_options"], "gunicorn": {"backlog": 64}}
    assert make_id({**BASE, "server_options": options}) == make_id(BASE)


def test_removed_variable_makes_a_new_generation(make_id):
    assert make_id({**BASE, "env": {"A": "1"}}) != make_id(BASE)


@pytest.mark.parametrize(
    ("server", "source"),
    [
        ("uwsgi", "uwsgi/uwsgi.ini.jinja"),
        ("uwsgi", "supervisor/program.conf.jinja"),
        ("uwsgi", "common/wsgi_application.py"),
        ("waitress", "common/wsgi_worker.py"),
        ("waitress", "waitress/waitress_worker.py"),
    ],
)
def test_changed_template_or_program_makes_a_new_generation(make_app, server, source):
    host, app, release = make_app({**BASE, "server": server, "process_manager": "supervisor"})
    before = desired_id(host, app, release)
    assert host.file_text(source)
    host._file_texts[source] += "\n"
    assert desired_id(host, app, release) != before


def test_changed_command_of_a_server_makes_a_new_generation(make_app):
    host, app, release = make_app(BASE)
    before = desired_id(host, app, release)
    host.servers["uwsgi"]["command"].append("--of-a-later-version")
    assert desired_id(host, app, release) != before


def test_shared_configuration_is_valid_without_any_app(make_host):
    host = make_host({"apps": {}})
    text = host.once(Nginx).needed_changes()[host.once(Nginx).files.entry]
    known = re.findall(r"^(?:map|geo) .*\$(wsgi_\w+) \{|\?<(wsgi_\w+)>", text, re.MULTILINE)
    assert {*re.findall(r"\$(wsgi_\w+)", text)} <= {name for names in known for name in names}


def test_macros_are_compiled_once_per_app(make_app, monkeypatch):
    made, make_module = Counter(), jinja2.Template.make_module

    def observed(template, *args, **more):
        made[template.name] += 1
        return make_module(template, *args, **more)

    host, _, _ = make_app({"static": {"/static/": "static/"}})
    monkeypatch.setattr(jinja2.Template, "make_module", observed)
    host.once(Nginx).desired_files("shop")
    assert made["nginx/macros/headers.jinja"]
    assert {name: times for name, times in made.items() if times > 1} == {}


def test_each_nginx_feature_has_a_template():
    templates = {path.stem for path in (ROOT / "wsgi/nginx/macros").iterdir()}
    assert {*MACROS} == templates


def test_blocks_are_indented(make_files):
    own = {
        "mount": "/shop",
        "tls": "self_signed",
        "static": {"/static/": "static/"},
        "error_pages": {404: "errors/404.html"},
        "cors": {"origins": ["https://example.net"]},
        "request_buffering": False,
    }
    files = make_files(own)
    for text in (files["wsgi.conf"], files["site"]):
        depth = 0
        for line in filter(None, text.splitlines()):
            depth -= line.strip().startswith("}")
            assert len(line) - len(line.lstrip()) >= 4 * depth, line
            depth += line.endswith("{")
