"""
The pillar of a call, and the environment that Salt serves the formula from.

A state run brings both. A function that is called outside of a state run gets them as ``state.apply`` would: the pillar
compiled now, since the minion's memory holds the one of its start, and the environments of the last state run, unless
one is given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import salt.pillar
import salt.utils.state
from salt.exceptions import CommandExecutionError, SaltClientError
from salt.loader.dunder import __file_client__

from . import files
from .paths import LIB

RECORD = f"{LIB}/environments.json"


def in_state_run() -> bool:
    """
    Return whether a state run, or the rendering of a pillar, calls the module.

    Salt's loaders have a file client of their own in both. A pillar that is being rendered must not be compiled again.
    """
    return bool(__file_client__.value())


def remember(opts: Mapping[str, Any], saltenv: str) -> None:
    """
    Record the environments of a state run, for the functions that are called after it.

    opts : mapping
        The run's ``__opts__``.
    saltenv : str
        The environment that serves the formula. In a highstate the top file sets it, and no option.
    """
    # state.apply sets `base` where a highstate sets nothing; both mean the same.
    options = {
        "saltenv": None if opts.get("saltenv") == "base" else opts.get("saltenv"),
        "pillarenv": opts.get("pillarenv"),
    }
    record = {"saltenv": saltenv, "options": options}
    if files.read_json(RECORD) != record:
        files.ensure_dir(LIB, 0o755)
        files.write(RECORD, json.dumps(record), 0o644)


def saltenv_of(saltenv: str | None) -> str:
    """
    Return the environment that serves the formula in a state run.

    saltenv : str or None
        The run's environment. For ``base``, which Salt also sets where none is given, it is that of the last state run.
    """
    saltenv = saltenv or "base"
    return saltenv if saltenv != "base" else _last().get("saltenv", saltenv)


def compile_pillar(
    opts: Mapping[str, Any], grains: Mapping[str, Any], pillar: Mapping[str, Any], saltenv: str | None = None
) -> tuple[Mapping[str, Any], str]:
    """
    Compile the pillar as ``state.apply`` would.

    opts, grains : mapping
        ``__opts__`` and ``__grains__``.
    pillar : mapping
        ``__pillar__``, which is returned under ``salt-call``, as that has just compiled it.
    saltenv : str
        The environment, as ``state.apply`` takes it; that of the last state run when not given.

    Returns the pillar, with the errors of its rendering under ``_errors``, and the environment that serves the formula.
    Raises ``CommandExecutionError`` where the master does not answer.
    """
    last = {} if saltenv or opts.get("lock_saltenv") else _last()
    options = salt.utils.state.get_sls_opts(opts, **({"saltenv": saltenv} if saltenv else last.get("options", {})))
    saltenv = last.get("saltenv") or options["saltenv"] or "base"
    if opts.get("__cli") == "salt-call" and options["pillarenv"] == opts["pillarenv"]:
        return pillar, saltenv
    try:
        source = salt.pillar.get_pillar(
            options, dict(grains), options["id"], options["saltenv"], pillarenv=options["pillarenv"]
        )
        try:
            return source.compile_pillar(), saltenv
        finally:
            source.destroy()
    except SaltClientError as error:
        raise CommandExecutionError(f"The pillar could not be compiled, and nothing was changed: {error}") from error


def _last() -> dict[str, Any]:
    consequence = "the environment base is used until the next state run"
    return files.read_json(RECORD, {"saltenv": str, "options": dict}, consequence) or {}
