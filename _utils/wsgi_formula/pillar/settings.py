"""
The settings of a machine: pillar, merged and validated.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Settings:
    """
    What pillar came to.

    apps
        Every app without a problem, by name: a dict with a value for each key of ``APP``.
    absent
        The names of those marked ``state: absent``, to their merged settings.
    sites
        nginx's server blocks, ``Site`` by id.
    nginx
        The shared proxy's settings.
    status_page
        Where the status page is, or None.
    defaults
        What an app gets that says nothing.
    problems
        Sentences, each beginning with the pillar key it is about.
    broken
        The names of the apps that have a problem.
    host_wide
        Whether a problem concerns the whole host, so that nothing may be touched.
    """

    apps: dict = field(default_factory=dict)
    absent: dict = field(default_factory=dict)
    sites: dict = field(default_factory=dict)
    nginx: dict = field(default_factory=dict)
    status_page: Any = None
    defaults: dict = field(default_factory=dict)
    problems: list = field(default_factory=list)
    broken: set = field(default_factory=set)
    host_wide: bool = False


def merge(*layers):
    """
    Merge mappings into a new one; a later one wins, mappings within are merged in turn.

    layers : Mapping
        Lowest precedence first. A list replaces a list; None replaces nothing.

    Returns a dict that shares nothing with the layers.

    .. code-block:: python

        >>> merge({"health": {"path": "/", "status": 200}}, {"health": {"path": "/up"}})
        {'health': {'path': '/up', 'status': 200}}
    """
    merged = {}
    for layer in layers:
        for key, value in layer.items():
            if value is None:
                merged.setdefault(key)
            elif isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
                merged[key] = merge(merged[key], value)
            else:
                merged[key] = copy.deepcopy(value)
    return merged
