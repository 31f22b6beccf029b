"""
What a call is based on: its pillar, and the environment that Salt serves the formula from.

A state run brings both. A function that is asked from outside of one gets them as ``state.apply`` would: the pillar
compiled now, as the minion has in memory what it compiled when it started; and the environments of the last state
run, unless it is given one.
"""

import json
import os

import salt.pillar
import salt.utils.state
from salt.exceptions import CommandExecutionError, SaltClientError
from salt.loader.dunder import __file_client__

from . import files
from .paths import LIB

RECORD = f"{LIB}/environments.json"


def in_state_run() -> bool:
    """
    Return whether a state run is asking.

    Salt's loaders have a file client of their own in a state run, and where a pillar is being rendered, which must not
    be compiled for that once more.
    """
    return bool(__file_client__.value())


def check_transport(opts) -> None:
    """
    Refuse to be asked through salt-ssh, which sends a function neither pillar nor the formula's files.

    opts : mapping
        ``__opts__``, in which it has a root directory of its own.
    """
    if os.path.basename(opts.get("root_dir", "")) == "running_data":
        raise CommandExecutionError(
            "wsgi does not run through salt-ssh: install salt-minion on the machine and accept its key, or run "
            "salt-call --local there"
        )


def remember(opts, saltenv: str) -> None:
    """
    Keep the environments of a state run, for the functions that are asked after it.

    opts : mapping
        The run's ``__opts__``.
    saltenv : str
        The environment that serves the formula. In a highstate it is the top file's, and no option.
    """
    # state.apply says base where a highstate says nothing, and means the same.
    options = {
        "saltenv": None if opts.get("saltenv") == "base" else opts.get("saltenv"),
        "pillarenv": opts.get("pillarenv"),
    }
    found = {"saltenv": saltenv, "options": options}
    if files.read_json(RECORD) != found:
        files.ensure_dir(LIB, 0o755)
        files.write(RECORD, json.dumps(found), 0o644)


def saltenv_of(saltenv) -> str:
    """
    Return the environment that serves the formula in a state run.

    saltenv : str or None
        The run's. ``base`` says nothing: Salt takes it where it is given none.
    """
    saltenv = saltenv or "base"
    return saltenv if saltenv != "base" else _last().get("saltenv", saltenv)


def compile_pillar(opts, grains, pillar, saltenv=None):
    """
    Compile the pillar as ``state.apply`` would.

    opts, grains : mapping
        ``__opts__`` and ``__grains__``.
    pillar : mapping
        ``__pillar__``, which ``salt-call`` has just compiled.
    saltenv : str
        As ``state.apply`` takes it; the last state run's when not given.

    Returns the pillar, in which ``_errors`` says what did not render, and the environment that serves the formula.
    Raises CommandExecutionError where the master does not answer.
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


def _last():
    lost = "the environment base is taken until the next state run"
    return files.read_json(RECORD, {"saltenv": str, "options": dict}, lost) or {}
