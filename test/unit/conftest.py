"""Fixtures for tests without a machine: hosts that are made of the checkout's files."""

import importlib.util
import os
import pickle
import pwd
import re
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Salt adds this folder, too.
sys.path.insert(0, str(ROOT / "_utils"))

from pillars import HELLO
from wsgi_formula.edge.nginx import Nginx
from wsgi_formula.edge.nginx_build import NginxBuild, installed_nginx
from wsgi_formula.host import Host
from wsgi_formula.run.generation import Generation
from wsgi_formula.run.record import LAYOUT, settings_record


def list_master(saltenv, prefix=""):
    """Replace Salt's cp.list_master: list the files of the checkout."""
    files = (path for path in (ROOT / prefix).rglob("*") if path.is_file())
    return [str(path.relative_to(ROOT)) for path in files]


def cache_file(url, saltenv):
    """Replace Salt's cp.cache_file: return the path in the checkout, or "" if there is no such file."""
    path = ROOT / url[len("salt://") :]
    return str(path) if path.is_file() else ""


PARSED = {}


class CachingHost(Host):
    """A host that parses each of the formula's YAML files once for all tests, since parsing is slower than most tests."""

    def _yaml(self, name, otherwise=None):
        if name not in PARSED:
            PARSED[name] = pickle.dumps(super()._yaml(name, otherwise))
        return pickle.loads(PARSED[name])


def host_of(wsgi, system="Debian-12", opts=None):
    """Return a Debian host with this pillar below `wsgi`."""
    salt = {"cp.list_master": list_master, "cp.cache_file": cache_file}
    grains = {"os_family": "Debian", "osfinger": system}
    host = CachingHost(salt, pillar={"wsgi": wsgi}, grains=grains, saltenv="base", opts=opts)
    host.made[installed_nginx] = NginxBuild((1, 22, 1), ("http_v2_module", "http_gzip_static_module"))
    return host


def as_nginx_reads(files):
    """Return nginx's files, path to text, with the files of an app that its locations include in the place of each include."""
    kinds = ("proxied", "dispatch")
    # Their titles are not indented.
    included = {path: text.partition("\n\n")[2] for path, text in files.items() if path.split("/")[-2] in kinds}

    def inlined(text):
        return re.sub(r"^ *include (\S+);\n", lambda found: included.get(found[1], found[0]), text, flags=re.MULTILINE)

    others = {path: text for path, text in files.items() if path not in included}
    return {path: inlined(text) if isinstance(text, str) else text for path, text in others.items()}


@pytest.fixture(params=["plain pillar", "masked pillar"])
def make_host(request):
    """make_host(wsgi, system="Debian-12") returns a Debian host with this pillar below `wsgi`: with a plain pillar, as
    without a master, and with the masking classes in which Salt 3008 hands out a master's pillar."""
    if request.param == "plain pillar":
        return host_of
    secret = pytest.importorskip("salt.utils.secret", reason="this Salt masks no pillar")
    return lambda wsgi, **more: host_of(secret.hide(wsgi), **more)


@pytest.fixture
def load(make_host):
    """load(wsgi) returns the Settings of a Debian host with this pillar."""
    known = make_host({})

    def settings(wsgi):
        host = make_host(wsgi)
        # These do not depend on pillar, and reading them takes longest.
        host.family, host.servers = known.family, known.servers
        return host.settings

    return settings


@pytest.fixture
def make_nginx_host(make_host, tmp_path):
    """make_nginx_host({app: {key: value}}, build=None, **pillar) returns a host whose apps are HELLO with these settings,
    under an nginx of such a build, whose files are below tmp_path."""

    def host_of(apps, build=None, **pillar):
        host = make_host({**pillar, "apps": {name: {**HELLO, **own} for name, own in apps.items()}})
        assert host.settings.messages == []
        host.family["nginx"].update(conf_dir=f"{tmp_path}/conf.d", own_dir=f"{tmp_path}/own")
        if build:
            host.made[installed_nginx] = build
        return host

    return host_of


def nginx_files_of(host):
    """
    Return nginx's files of a host, by their paths below nginx's own folder.

    What the locations of an app include of its own files stands in the place of each include.
    """
    own = f"{host.family['nginx']['own_dir']}/"
    files = as_nginx_reads(host.once(Nginx).needed_changes(*host.settings.apps))
    return {path[len(own) :]: text for path, text in files.items() if path.startswith(own)}


@pytest.fixture
def make_nginx_files(make_nginx_host):
    """make_nginx_files takes what make_nginx_host takes, and returns the host's nginx_files_of."""
    return lambda apps, **more: nginx_files_of(make_nginx_host(apps, **more))


@pytest.fixture
def make_generation(make_host, monkeypatch):
    """make_generation({key: value, …}, *forgotten) returns a generation of such an app, whose record lacks those settings."""
    nobody = pwd.struct_passwd(("nobody", "x", 65534, 65534, "", "/", "/bin/false"))
    monkeypatch.setattr(pwd, "getpwnam", lambda name: nobody)

    def generation_of(own, *forgotten):
        host = make_host({"apps": {"shop": {**HELLO, "graceful_timeout": 20, **own}}})
        assert host.settings.messages == []
        settings = settings_record(host.settings.apps["shop"])
        record = {
            "layout": LAYOUT,
            "server": settings["server"],
            "process_manager": settings["process_manager"],
            "protocol": "http",
            "user": "wsgi-shop",
            "release": "abcdef0123",
            "environment": "abcdef0123",
            "settings": {key: value for key, value in settings.items() if key not in forgotten},
        }
        return Generation(host, "shop", "0123456789", record)

    return generation_of


def files_of(generation):
    """Return the files of a generation's programs and scheduled commands, path to text."""
    return {path: text for part in generation.parts for path, text in part.files().items()}


def unit_options(text):
    """Return the options of a systemd unit, which may not be repeated."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and line[0] not in "#;")


@pytest.fixture
def load_program(monkeypatch):
    """load_program(name) returns a fresh module of wsgi/common/<name>.py; its `killed` records what it would kill."""

    def loaded(name):
        spec = importlib.util.spec_from_file_location(name, ROOT / f"wsgi/common/{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.killed = []
        monkeypatch.setattr(os, "kill", lambda pid, number: module.killed.append((pid, number)))
        monkeypatch.setattr(signal, "raise_signal", lambda number: module.killed.append((os.getpid(), number)))
        monkeypatch.setattr(signal, "pthread_kill", lambda _, number: module.killed.append((os.getpid(), number)))
        monkeypatch.delenv("WSGI_SPAWN_LINK", raising=False)
        return module

    return loaded
