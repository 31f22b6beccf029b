"""The formula's Python without a machine: a host made of the checkout's own files."""

import importlib.util
import os
import pickle
import re
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Where Salt puts them, too: `import servers` is what they themselves say.
sys.path.insert(0, str(ROOT / "_utils"))

from wsgi_formula.edge.nginx_build import NginxBuild, installed_nginx
from wsgi_formula.host import Host


def list_master(saltenv, prefix=""):
    """Salt's cp.list_master over the checkout."""
    files = (path for path in (ROOT / prefix).rglob("*") if path.is_file())
    return [str(path.relative_to(ROOT)) for path in files]


def cache_file(url, saltenv):
    """Salt's cp.cache_file over the checkout: the file itself, or "" where there is none."""
    path = ROOT / url[len("salt://") :]
    return str(path) if path.is_file() else ""


PARSED = {}


class Host(Host):
    """A host that parses each of the formula's YAML files once for all tests: that takes longer than most tests do."""

    def _yaml(self, name, otherwise=None):
        if name not in PARSED:
            PARSED[name] = pickle.dumps(super()._yaml(name, otherwise))
        return pickle.loads(PARSED[name])


def host_of(wsgi, system="Debian-12", opts=None):
    """A Debian host whose pillar holds that below `wsgi`."""
    salt = {"cp.list_master": list_master, "cp.cache_file": cache_file}
    grains = {"os_family": "Debian", "osfinger": system}
    host = Host(salt, pillar={"wsgi": wsgi}, grains=grains, saltenv="base", opts=opts)
    host.made[installed_nginx] = NginxBuild((1, 22, 1), ("http_v2_module", "http_gzip_static_module"))
    return host


def as_nginx_reads(files):
    """nginx's files, path to text, with the files of an app that its locations include in the place of each include."""
    kinds = ("proxied", "dispatch")
    # Without their titles, which are not indented.
    included = {path: text.partition("\n\n")[2] for path, text in files.items() if path.split("/")[-2] in kinds}

    def inlined(text):
        return re.sub(r"^ *include (\S+);\n", lambda found: included.get(found[1], found[0]), text, flags=re.MULTILINE)

    others = {path: text for path, text in files.items() if path not in included}
    return {path: inlined(text) if isinstance(text, str) else text for path, text in others.items()}


@pytest.fixture(params=["plain pillar", "masked pillar"])
def make_host(request):
    """make_host(wsgi, system="Debian-12") is a Debian host whose pillar holds that below `wsgi`: as it is without a
    master, and in the classes that Salt 3008 has for what a master sends."""
    if request.param == "plain pillar":
        return host_of
    secret = pytest.importorskip("salt.utils.secret", reason="this Salt masks no pillar")
    return lambda wsgi, **more: host_of(secret.hide(wsgi), **more)


@pytest.fixture
def load(make_host):
    """load(wsgi) is the Settings that this pillar comes to, on Debian."""
    known = make_host({})

    def settings(wsgi):
        host = make_host(wsgi)
        # No pillar changes these, and to read them takes longer than all else.
        host.family, host.servers = known.family, known.servers
        return host.settings

    return settings


@pytest.fixture
def load_program(monkeypatch):
    """load_program(name) is a copy of wsgi/common/<name>.py of its own; what it would kill stands in its `killed`."""

    def loaded(name):
        spec = importlib.util.spec_from_file_location(name, ROOT / f"wsgi/common/{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.killed = []
        monkeypatch.setattr(os, "kill", lambda pid, number: module.killed.append((pid, number)))
        monkeypatch.setattr(signal, "pthread_kill", lambda _, number: module.killed.append((os.getpid(), number)))
        monkeypatch.delenv("WSGI_SPAWN_LINK", raising=False)
        return module

    return loaded
