"""The settings of an app as an object: pillar's keys as a mapping, and what follows from the row of its server."""

import copy
import json

import pytest
from pillars import HELLO
from wsgi_formula.errors import Problem
from wsgi_formula.files import digest
from wsgi_formula.pillar.app import App
from wsgi_formula.pillar.schema import APP

# Apps of many kinds, and the digests of their process settings in version 1.0.
APPS = {
    "shop": {"source": "/srv/shop", "application": "shop:app"},
    "blog": {
        "source": "/srv/blog",
        "application": "blog:app",
        "server": "gunicorn",
        "workers": 4,
        "threads": 2,
        "env": {"PASSWORD": "hunter2", "N": 1},
        "server_options": {"gunicorn": {"backlog": 100}, "uwsgi": {"cheaper": 2}},
    },
    "chat": {
        "source": "/srv/chat",
        "application": "chat:app",
        "interface": "asgi",
        "server": "uvicorn",
        "process_manager": {"uvicorn": "systemd"},
        "user": "www",
        "metrics": True,
    },
    "late": {
        "source": "/srv/late",
        "application": "late:app",
        "server": "uwsgi",
        "threads": 4,
        "install": "environment",
    },
    "tool": {
        "source": "/srv/tool",
        "server": "command",
        "command": ["tool", "--port", "{socket}", "{workers}"],
        "workers": 2,
        "processes": {"mail": {"command": "mail"}},
        "schedule": {"nightly": {"command": "report", "calendar": "daily"}},
    },
}
DIGESTS = {
    "shop": "46a2950c36",
    "blog": "6e20ef78e6",
    "chat": "3cf904d039",
    "late": "4a76df9ee8",
    "tool": "7da735b453",
}


@pytest.fixture
def shop(load):
    return load({"apps": {"shop": HELLO}}).apps["shop"]


@pytest.mark.parametrize("name", APPS)
def test_equal_process_settings_keep_their_digest_in_every_version(load, name):
    """Otherwise a new version of the formula would replace the generations of all apps."""
    settings = load({"defaults": {"graceful_timeout": 40}, "apps": {name: APPS[name]}})
    assert settings.messages == []
    assert digest(settings.apps[name].process_settings) == DIGESTS[name]


@pytest.mark.parametrize("key", APP)
def test_no_attribute_hides_a_key_from_a_template(shop, key):
    """Jinja's `app.workers` looks for an attribute first."""
    assert not hasattr(shop, key)
    assert key in shop


def test_an_app_is_a_mapping_of_pillars_keys(shop):
    assert set(shop) == set(APP)
    assert shop == {**shop}
    assert json.loads(json.dumps({**shop}))["workers"] == shop["workers"]
    assert copy.deepcopy(shop) == shop
    with pytest.raises(TypeError):
        shop["workers"] = 1


def test_replaced_server_brings_its_row(shop):
    other = shop.replace(server="uwsgi", workers=7)
    assert (shop["server"], other["server"], other["workers"], other.name) == ("gunicorn", "uwsgi", 7, "shop")
    assert (shop.row["protocol"], other.row["protocol"]) == ("http", "uwsgi")
    assert (shop.supported["workers"], other.supported["workers"]) == ("workers", "processes")


def test_own_options_are_those_of_the_server(load):
    blog = load({"apps": {"blog": APPS["blog"]}}).apps["blog"]
    assert blog.own_options == {"backlog": 100}
    assert blog.replace(server="uwsgi").own_options == {"cheaper": 2}
    assert blog.replace(server="waitress").own_options == {}


def test_settings_of_an_app_are_not_in_its_repr():
    assert "hunter2" not in repr(App("shop", {"env": {"PASSWORD": "hunter2"}}, {}))


@pytest.mark.parametrize(
    "key, app",
    [("wsgi:apps:shop:tls:key", "shop"), ("wsgi:apps:shop", "shop"), ("wsgi:apps", ""), ("wsgi:nginx:a", "")],
)
def test_problem_knows_its_app(key, app):
    assert Problem(key, "missing").app == app


def test_problem_is_below_its_key_and_not_below_a_longer_name():
    problem = Problem("wsgi:apps:shop:cache:valid", "missing")
    assert str(problem) == "wsgi:apps:shop:cache:valid: missing"
    assert [problem.is_below(f"wsgi:apps:{key}") for key in ("shop", "shop:cache:valid", "sho", "shop:cach")] == [
        True,
        True,
        False,
        False,
    ]
