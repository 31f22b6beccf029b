"""
Check values of pillar against their rules.

This module is pure: it reads no file and starts nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from ..errors import Problem
from .rules import MAPPING, Rule, describe, describe_name, find_excess, find_flaw
from .source import parse_source


class Checker:
    """
    Compares values with their rules and collects the problems.

    Its functions return the part of a value that has no problem, so that whatever is done with it later finds only
    values that their rules allow.

    problems : list of Problem
    """

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def report(self, key: str, message: str) -> None:
        """Add a problem of a pillar key."""
        self.problems.append(Problem(key, message))

    def has_problem(self, key: str) -> bool:
        """Return whether a pillar key, or one below it, has a problem."""
        return any(problem.is_below(key) for problem in self.problems)

    def check_settings(self, key: str, mapping: Any, rules: Mapping[str, Rule]) -> dict[str, Any]:
        """
        Check a mapping each of whose keys has a rule. A value of None counts as none.

        key : str
            The pillar key of the mapping.
        mapping : Any
            The value, which may be no mapping.
        rules : dict
            The rules by key.
        """
        mapping = self.check_mapping(key, mapping)
        self.check_names(key, mapping, rules)
        valid = {}
        for name, value in mapping.items():
            if name not in rules or value is None:
                continue
            flaw = find_flaw(value)
            if flaw:
                place, message = flaw
                self.report(":".join([key, name, *place]), message)
                continue
            part = self.check_value(f"{key}:{name}", name, value, rules[name])
            if part is not None:
                valid[name] = part
        return valid

    def check_value(self, key: str, name: str, value: Any, rule: Rule) -> Any:
        """
        Check a value against its rule. Return None where nothing of it is left.

        key : str
            The pillar key of the value.
        name : str
            The last part of that key.
        """
        excess = find_excess(value, rule)
        if excess:
            self.report(key, excess)
            return None
        if not rule.test(value):
            if rule.allowed == MAPPING.allowed:
                self.check_mapping(key, value)
            else:
                self.report(key, _refusal(name, value, rule))
            return None
        if rule.keys and isinstance(value, Mapping):
            return self.check_settings(key, value, rule.keys)
        if rule.each:
            return self._check_collection(key, value, rule)
        return value

    def _check_collection(self, key: str, collection: Mapping[Any, Any], rule: Rule) -> dict[str, Any]:
        """Check a mapping whose keys the user chooses."""
        valid = {}
        for name, value in collection.items():
            excess = find_excess(name, rule.names)
            if excess or not rule.names.test(name):
                shown = "a name" if rule.names.secret else describe(name)
                where = key if rule.names.secret else f"{key}:{describe_name(name)}"
                self.report(where, excess or f"{shown} must be {rule.names.allowed}")
            elif value is not None:
                valid[name] = self.check_value(f"{key}:{name}", name, value, rule.each)
        return {name: value for name, value in valid.items() if value is not None}

    def check_names(self, key: str, mapping: Mapping[Any, Any], known: Collection[str], noun: str = "key") -> None:
        """
        Check that each key of a mapping is a known one.

        noun : str
            The kind of the keys, for the message.
        """
        for name in mapping:
            if name not in known:
                self.report(f"{key}:{describe_name(name)}", f"unknown {noun}" + nearest(name, known))

    def check_mapping(self, key: str, value: Any) -> Mapping[Any, Any]:
        """
        Return a value that is a mapping; an empty mapping for any other value.

        The message has only the kind of the value, since it may be a secret in the wrong place.
        """
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            self.report(key, f"is {kind_of(value)}; it must be a mapping")
            return {}
        return value


def nearest(found: Any, known: Collection[Any]) -> str:
    """
    Return the end of a message about an unknown name: the nearest known one, and all known ones.

    .. code-block:: python

        >>> nearest("unicorn", ["uwsgi", "gunicorn"])
        "; did you mean 'gunicorn'? (uwsgi, gunicorn)"
    """
    names = [str(name) for name in known]
    near = difflib.get_close_matches(describe_name(found).lower(), names, n=1, cutoff=0.5)
    return (f"; did you mean {near[0]!r}?" if near else "") + f" ({', '.join(names)})"


def kind_of(value: Any) -> str:
    """Return the kind of a value, as YAML names it."""
    kinds = {
        type(None): "null",
        bool: "true or false",
        int: "an integer",
        float: "a number",
        str: "a string",
        list: "a list",
    }
    return "a mapping" if isinstance(value, Mapping) else kinds.get(type(value), f"a {type(value).__name__}")


def _refusal(name: str, value: Any, rule: Rule) -> str:
    if rule.secret or "PRIVATE KEY" in str(value):
        return f"is {kind_of(value)}; it must be {rule.allowed}"
    shown = describe(value)
    if name == "source" and isinstance(value, str):
        try:
            parse_source(value)
        except ValueError as error:
            return f"{shown} {error}"
    return f"{shown} must be {rule.allowed}"
