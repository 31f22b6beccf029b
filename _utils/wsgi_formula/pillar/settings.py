"""
The settings of a machine: pillar, merged and checked.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import Problem
from .app import App
from .sites import Site


@dataclass
class Settings:
    """
    The settings of a machine.

    apps
        The apps without a problem, by name.
    absent
        The apps with ``state: absent`` and without a problem, by name.
    sites
        nginx's server blocks, by id.
    nginx
        The settings of nginx that all apps share.
    status_page
        The settings of the status page, or None.
    defaults
        The settings of an app that sets nothing itself.
    problems
        All problems of the pillar.
    broken
        The names of the apps that have a problem.
    host_wide
        Whether a problem concerns the whole machine, so that nothing may be changed.
    """

    apps: dict[str, App] = field(default_factory=dict)
    absent: dict[str, App] = field(default_factory=dict)
    sites: dict[str, Site] = field(default_factory=dict)
    nginx: dict[str, Any] = field(default_factory=dict)
    status_page: dict[str, Any] | None = None
    defaults: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    host_wide: bool = False

    @property
    def messages(self) -> list[str]:
        """The problems as lines of text, each beginning with its pillar key."""
        return [str(problem) for problem in self.problems]


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """
    Merge mappings into a new one; a later one wins, and mappings in them are merged too.

    layers : Mapping
        The lowest precedence first. A list replaces a list; None replaces nothing.

    Returns a dict that shares no value with the layers.

    .. code-block:: python

        >>> merge({"health": {"path": "/", "status": 200}}, {"health": {"path": "/up"}})
        {'health': {'path': '/up', 'status': 200}}
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if value is None:
                merged.setdefault(key)
            elif isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
                merged[key] = merge(merged[key], value)
            else:
                merged[key] = copy.deepcopy(value)
    return merged
