"""pillar.example tells all that pillar may say, and each default as it is."""

import re
from pathlib import Path

import pytest
import wsgi_schema
import yaml

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "pillar.example").read_text()
PILLAR = yaml.safe_load(TEXT)["wsgi"]
DEFAULTS = yaml.safe_load((ROOT / "wsgi/defaults.yaml").read_text())
MAPPINGS = ("HEALTH", "HOOKS", "HOOK", "PROCESS", "SCHEDULED", "MAINTENANCE", "NGINX")
KEYS = sorted({*wsgi_schema.TOP, *wsgi_schema.APP, *(key for name in MAPPINGS for key in getattr(wsgi_schema, name))})
# An app has to say these, or fills these mappings itself.
NO_DEFAULT = ("application", "source", "env", "health", "server_options", "maintenance")
SHIPPED = {**DEFAULTS["app"], **DEFAULTS["app"]["health"], **DEFAULTS["app"]["maintenance"], **DEFAULTS["nginx"]}


def stated(key):
    """The default that the reference states: in `# key: default`, in `key: value  # default: default`,
    or below wsgi:defaults; None where it states none."""
    in_comment = re.search(rf"^ *# *{key}: +([^#\n]+)", TEXT, re.MULTILINE)
    beside = re.search(rf"^ *{key}: +[^#\n]+# default: ([^\n]+)", TEXT, re.MULTILINE)
    found = in_comment or beside
    return found[1].strip() if found else yaml.safe_dump(PILLAR["defaults"].get(key)).split("\n")[0]


def test_it_is_a_valid_pillar(load):
    settings = load(PILLAR)
    assert settings.problems == []
    assert settings.apps


@pytest.mark.parametrize("key", KEYS)
def test_it_names_every_key(key):
    assert re.search(rf"(^[ #]*|[{{,] *){key}:", TEXT, re.MULTILINE)


@pytest.mark.parametrize("key", sorted({*SHIPPED} - {*NO_DEFAULT}))
def test_it_states_every_default_as_it_is_shipped(key):
    assert yaml.safe_load(stated(key)) == SHIPPED[key], stated(key)


def test_the_shipped_defaults_have_every_key_of_the_schema_and_no_other():
    assert {*DEFAULTS["app"]} == {*wsgi_schema.APP}
    assert {*DEFAULTS["nginx"]} == {*wsgi_schema.NGINX}
    # The host is the first domain, which no default can know.
    assert {*DEFAULTS["app"]["maintenance"]} == {*wsgi_schema.MAINTENANCE}
    assert {*DEFAULTS["app"]["health"]} == {*wsgi_schema.HEALTH} - {"host"}


def test_the_shipped_defaults_keep_the_schemas_rules(load):
    own = {key: value for key, value in DEFAULTS["app"].items() if value is not None}
    assert load({"apps": {}, "defaults": own, "nginx": DEFAULTS["nginx"]}).problems == []
