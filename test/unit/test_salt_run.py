"""Salt runs: the pillar and the environments of functions that are called outside of a state run."""

import json

import pytest
import salt.pillar
from salt.exceptions import CommandExecutionError, SaltClientError
from wsgi_formula import files, salt_run

OPTS = {"id": "one", "saltenv": None, "pillarenv": None, "lock_saltenv": False, "pillarenv_from_saltenv": False}


class Source:
    """The parts of Salt's pillar drivers that are used."""

    def __init__(self, compiled, asked):
        self.compiled, self.asked, self.destroyed = compiled, asked, False

    def compile_pillar(self):
        if isinstance(self.compiled, Exception):
            raise self.compiled
        return self.compiled

    def destroy(self):
        self.destroyed = True


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """compiled(pillar, saltenv=None, record=None, opts=()) returns what compile_pillar returns, and its Sources."""
    monkeypatch.setattr(salt_run, "RECORD", str(tmp_path / "environments.json"))

    def compile_with(pillar, saltenv=None, record=None, opts=()):
        sources = []

        def get_pillar(options, grains, minion_id, saltenv, pillarenv):
            assert (options["saltenv"], options["pillarenv"]) == (saltenv, pillarenv)
            sources.append(Source(pillar, (saltenv, pillarenv)))
            return sources[-1]

        monkeypatch.setattr(salt.pillar, "get_pillar", get_pillar)
        if record:
            (tmp_path / "environments.json").write_text(json.dumps(record))
        return salt_run.compile_pillar({**OPTS, **dict(opts)}, {}, {"old": True}, saltenv), sources

    return compile_with


def record(files, saltenv=None, pillarenv=None):
    return {"saltenv": files, "options": {"saltenv": saltenv, "pillarenv": pillarenv}}


def test_pillar_is_compiled_and_the_connection_is_closed(compiled):
    found, (source,) = compiled({"new": True})
    assert found == ({"new": True}, "base")
    assert source.destroyed


def test_unreachable_master_is_an_error_and_not_an_empty_pillar(compiled):
    with pytest.raises(CommandExecutionError, match="could not be compiled, and nothing was changed: .*timed out"):
        compiled(SaltClientError("Pillar timed out after 60 seconds"))


@pytest.mark.parametrize(
    ("saltenv", "kept", "opts", "served_from", "asked"),
    [
        (None, None, {}, "base", (None, None)),
        (None, None, {"saltenv": "prod", "pillarenv": "prod"}, "prod", ("prod", "prod")),
        (None, record("dev", "dev", "secret"), {"saltenv": "prod"}, "dev", ("dev", "secret")),
        (None, record("dev"), {}, "dev", (None, None)),  # a highstate, whose top file says dev
        ("test", record("dev", "dev", "dev"), {"pillarenv": "prod"}, "test", ("test", "prod")),
        ("test", None, {"pillarenv_from_saltenv": True}, "test", ("test", "test")),
        (None, record("dev", "dev"), {"saltenv": "prod", "lock_saltenv": True}, "prod", ("prod", None)),
    ],
)
def test_saltenv_comes_from_the_call_or_the_last_run_or_the_minion(compiled, saltenv, kept, opts, served_from, asked):
    (_, found), (source,) = compiled({}, saltenv, kept, opts)
    assert (found, source.asked) == (served_from, asked)


@pytest.mark.parametrize(("pillarenv", "times"), [(None, 0), ("dev", 1)])
def test_pillar_that_salt_call_compiled_is_used_unless_the_pillarenv_differs(compiled, pillarenv, times):
    _, sources = compiled({}, None, record("dev", "dev", pillarenv), {"__cli": "salt-call"})
    assert len(sources) == times


def test_environments_of_a_run_are_recorded_only_when_they_change(compiled, monkeypatch, tmp_path):
    written = []
    monkeypatch.setattr(files, "ensure_dir", lambda *_: None)
    monkeypatch.setattr(files, "write", lambda path, text, mode: written.append((text, mode)))
    salt_run.remember({**OPTS, "saltenv": "dev"}, "dev")
    assert written == [(json.dumps(record("dev", "dev")), 0o644)]
    (tmp_path / "environments.json").write_text(written.pop()[0])
    salt_run.remember({**OPTS, "saltenv": "dev"}, "dev")
    assert written == []


def test_highstate_and_state_apply_in_base_are_recorded_alike(compiled, monkeypatch, tmp_path):
    (tmp_path / "environments.json").write_text(json.dumps(record("base")))
    monkeypatch.setattr(files, "write", lambda *_: pytest.fail("written"))
    for saltenv in (None, "base"):
        salt_run.remember({**OPTS, "saltenv": saltenv}, "base")


@pytest.mark.parametrize(
    ("named", "kept", "found"),
    [("dev", None, "dev"), ("dev", "prod", "dev"), ("base", "prod", "prod"), (None, None, "base")],
)
def test_base_is_not_recorded_as_the_saltenv_of_the_formula(compiled, named, kept, found):
    compiled({}, record=kept and record(kept))
    assert salt_run.saltenv_of(named) == found


def test_caller_outside_of_salt_is_not_a_state_run():
    assert not salt_run.in_state_run()
