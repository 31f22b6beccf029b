"""Pillar in any classes of Salt becomes plain data, and no text shows its secrets."""

from collections import OrderedDict, UserList
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from salt.loader.context import LoaderContext
from salt.utils.context import NamespacedDictWrapper
from salt.utils.immutabletypes import freeze
from salt.utils.jinja import PrintableDict
from wsgi_formula.pillar import plain, schema
from wsgi_formula.pillar.schema import APP
from wsgi_formula.redact import without_credentials

PLAIN = (dict, list, str, int, float, bool, type(None))


class Shown(str):
    """A str that shows another text than its own."""

    def __str__(self):
        return "**********"

    __repr__ = __str__


def types(value):
    yield type(value)
    for each in [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []:
        yield from types(each)


def check_plain(value):
    assert {*types(value)} <= {*PLAIN}
    return value


SAID = {"apps": {"shop": {"domains": ["a.test", "b.test"], "env": {"A": "1"}, "workers": 2}}}


@pytest.mark.parametrize(
    "given",
    [
        SAID,
        OrderedDict(SAID),
        PrintableDict(SAID),
        MappingProxyType(SAID),
        freeze(SAID),
        NamespacedDictWrapper({"pillar": SAID}, "pillar"),
        {"apps": {"shop": {**SAID["apps"]["shop"], "domains": ("a.test", "b.test")}}},
        {"apps": {"shop": {**SAID["apps"]["shop"], "domains": UserList(["a.test", Shown("b.test")])}}},
        {Shown("apps"): SAID["apps"]},
    ],
    ids=lambda given: type(given).__name__,
)
def test_mappings_sequences_and_texts_of_any_class_become_plain(given):
    assert check_plain(plain.plain(given)) == SAID


def test_pillar_of_the_loader_of_salt_becomes_plain():
    named = LoaderContext().named_context("__pillar__", default=SAID)
    assert check_plain(plain.plain(named)) == SAID


ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=10,
)


@given(ANYTHING)
@settings(derandomize=True, database=None, deadline=None)
def test_masked_value_is_unmasked(anything):
    secret = pytest.importorskip("salt.utils.secret", reason="this Salt masks no pillar")
    found = check_plain(plain.plain(secret.hide(anything)))
    assert found == anything
    assert repr(found) == repr(anything)


def test_other_values_stay_unchanged():
    values = [b"bytes", {1, 2}, 1.5, None, True, object()]
    assert all(found is value for found, value in zip(plain.plain(values), values))


def test_recursive_and_deeply_nested_values_are_copied():
    itself = []
    itself.append(itself)
    found = plain.plain(itself)
    assert found is not itself
    assert found[0] is found
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert len(plain.plain(deep)) == 1


def test_anchored_value_is_copied_once():
    laughs = ["lol"]
    for _ in range(60):
        laughs = [laughs, laughs]
    found = plain.plain(laughs)
    assert found[0] is found[1]


SECRET = "hunter2"


def test_no_secret_is_in_problems_or_shown_settings(load):
    app = {
        "server": "gunicorn",
        "source": f"git+https://me:{SECRET}@example.com/shop.git@v1",
        "application": "shop:application",
        "domains": ["shop.test"],
        "env": {"PASSWORD": SECRET},
        "basic_auth": {"users": {"ann": f"$6$a${SECRET}"}},
        "index": f"https://me:{SECRET}@example.com/simple",
        "deploy_key": f"-----BEGIN OPENSSH PRIVATE KEY-----\n{SECRET}\n-----END OPENSSH PRIVATE KEY-----\n",
    }
    sound = load({"apps": {"shop": app}})
    assert sound.messages == []
    shown = without_credentials(repr(schema.hide_secrets(sound.apps["shop"], APP)))
    assert "shop:application" in shown
    assert SECRET not in shown
    wrong = {key: value + [1] if isinstance(value, list) else [value] for key, value in app.items()}
    problems = load({"apps": {"shop": wrong}}).messages
    assert any(problem.startswith("wsgi:apps:shop:env: ") for problem in problems)
    assert SECRET not in "\n".join(problems)
