"""
The errors that the formula raises, and the problems of pillar, which are collected.
"""

from __future__ import annotations

from dataclasses import dataclass

from salt.exceptions import CommandExecutionError


class WsgiError(CommandExecutionError):
    """
    An error whose message is for the administrator who reads the state's comment.

    Salt shows the message alone, without a traceback, where a function was called from outside of a state run.
    """


@dataclass(frozen=True)
class Problem:
    """
    A problem of the pillar.

    key : str
        The pillar key, such as ``wsgi:apps:shop:workers``.
    message : str
        The value found, what is allowed, and the nearest valid choice.

    .. code-block:: python

        >>> str(Problem("wsgi:apps:shop:workers", "0 must be an integer from 1 to 1024"))
        'wsgi:apps:shop:workers: 0 must be an integer from 1 to 1024'
    """

    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message}"

    @property
    def app(self) -> str:
        """The name of the app that has the problem, or "" where it is not that of one app."""
        parts = self.key.split(":")
        return parts[2] if parts[:2] == ["wsgi", "apps"] and len(parts) > 2 else ""

    def is_below(self, key: str) -> bool:
        """Return whether the problem is about a pillar key, or about one below it."""
        return f"{self.key}:".startswith(f"{key}:")
