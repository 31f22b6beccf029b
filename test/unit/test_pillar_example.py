"""pillar.example names every key of the pillar, each with its default."""

import re
from pathlib import Path

import pytest
import yaml
from wsgi_formula.pillar import edge, schema
from wsgi_formula.pillar.edge import NGINX, RAW, STATUS_PAGE
from wsgi_formula.pillar.schema import APP, HEALTH, MAINTENANCE, TOP

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "pillar.example").read_text()
PILLAR = yaml.safe_load(TEXT)["wsgi"]
DEFAULTS = yaml.safe_load((ROOT / "wsgi/defaults.yaml").read_text())
MAPPINGS = [
    getattr(schema, name)
    for name in ("HEALTH", "HOOKS", "HOOK", "PROCESS", "SCHEDULED", "MAINTENANCE", "SOURCE_LIMITS")
]
EDGE = ("TLS", "LIMIT", "BASIC_AUTH", "CACHE", "CORS", "RAW", "ACME", "NGINX", "STATUS_PAGE")
MAPPINGS += [getattr(edge, name) for name in EDGE]
KEYS = sorted({*TOP, *APP, *(key for mapping in MAPPINGS for key in mapping)})
# An app has to say these, or fills these mappings itself.
NO_DEFAULT = ("application", "source", "env", "health", "server_options", "maintenance", "nginx")
SHIPPED = {**DEFAULTS["app"], **DEFAULTS["app"]["health"], **DEFAULTS["app"]["maintenance"], **DEFAULTS["app"]["nginx"]}
# What is said of apps, of the shared proxy, of the status page.
OF_APPS, OF_NGINX, OF_STATUS_PAGE = re.split(r"^  nginx: |^  # status_page: ", TEXT, flags=re.MULTILINE)


def stated(key, text=OF_APPS):
    """Return the default that a part of the reference states: in `# key: default`, in `key: value  # default: default`
    or below wsgi:defaults; None if it states none."""
    in_comment = re.search(rf"^ *# *{key}: +([^#\n]+)", text, re.MULTILINE)
    beside = re.search(rf"^ *{key}: +[^#\n]+# default: ([^\n]+)", text, re.MULTILINE)
    found = in_comment or beside
    return found[1].strip() if found else yaml.safe_dump(PILLAR["defaults"].get(key)).split("\n")[0]


def test_example_is_a_valid_pillar(load):
    settings = load(PILLAR)
    assert settings.messages == []
    assert settings.apps


@pytest.mark.parametrize("key", KEYS)
def test_example_has_every_key(key):
    assert re.search(rf"(^[ #]*|[{{,] *){key}:", TEXT, re.MULTILINE)


@pytest.mark.parametrize("key", sorted({*SHIPPED} - {*NO_DEFAULT}))
def test_example_states_every_shipped_default(key):
    assert yaml.safe_load(stated(key)) == SHIPPED[key], stated(key)


@pytest.mark.parametrize("part", ["nginx", "status_page"])
def test_example_states_the_defaults_of_shared_settings(part):
    text = {"nginx": OF_NGINX, "status_page": OF_STATUS_PAGE}[part]
    assert {key: yaml.safe_load(stated(key, text)) for key in DEFAULTS[part]} == DEFAULTS[part]


def test_shipped_defaults_have_exactly_the_keys_of_the_schema():
    assert {*DEFAULTS["app"]} == {*APP}
    assert {*DEFAULTS["nginx"]} == {*NGINX}
    assert {*DEFAULTS["app"]["nginx"]} == {*RAW}
    assert {*DEFAULTS["status_page"]} == {*STATUS_PAGE}
    # The host is the first domain, which no default can know.
    assert {*DEFAULTS["app"]["maintenance"]} == {*MAINTENANCE}
    assert {*DEFAULTS["app"]["health"]} == {*HEALTH} - {"host"}


def test_shipped_defaults_pass_the_rules_of_the_schema(load):
    own = {key: value for key, value in DEFAULTS["app"].items() if value is not None}
    assert load({"apps": {}, "defaults": own, "nginx": DEFAULTS["nginx"]}).messages == []
