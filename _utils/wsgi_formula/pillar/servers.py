"""
What follows from a server's row in ``wsgi/servers.yaml`` and from its own options.

This module is pure: it reads no file and starts nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def long_options(options: Mapping[str, Any]) -> list[str]:
    """
    Return a server's own options as words of its command line.

    options : dict
        ``server_options`` of one server.

    .. code-block:: python

        >>> long_options({"backlog": 2048, "ws": False, "access-log": True})
        ['--backlog', '2048', '--no-ws', '--access-log']
    """
    words = []
    for name, value in options.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, bool):
                words.append(f"--{name}" if item else f"--no-{name}")
            else:
                words += [f"--{name}", str(item)]
    return words


def vulnerabilities(row: Mapping[str, Any], version: str) -> list[str]:
    """
    Return the CVE numbers of the known vulnerabilities in a version of a server.

    row : dict
        The server's row in ``wsgi/servers.yaml``.
    version : str

    .. code-block:: python

        >>> vulnerabilities(servers["waitress"], "3.0.0")
        ['CVE-2024-49768', 'CVE-2024-49769']
    """
    fixes = row.get("vulnerable", {}).items()
    return [cve for cve, fixed in fixes if _release_number(version) < _release_number(fixed)]


def describe_vulnerabilities(server: str, version: str, row: Mapping[str, Any]) -> str:
    """
    Return the message about a version with known vulnerabilities, or "" for one without.

    server : str
    version : str
    row : dict
        The server's row in ``wsgi/servers.yaml``.

    .. code-block:: python

        >>> describe_vulnerabilities("waitress", "3.0.0", servers["waitress"])
        'waitress 3.0.0 has CVE-2024-49768, CVE-2024-49769; use 3.0.2, the default, or set allow_vulnerable: true'
    """
    found = vulnerabilities(row, version)
    if not found:
        return ""
    return (
        f"{server} {version} has {', '.join(found)}; use {row['version']}, the default, or set allow_vulnerable: true"
    )


def _release_number(version: str) -> tuple[int, ...]:
    """Return (2, 0, 30) for 2.0.30.post1, which is enough to compare with the version that has a fix."""
    digits = re.match(r"[0-9.]*", version)
    numbers = [int(number) for number in (digits[0] if digits else "").split(".") if number]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
