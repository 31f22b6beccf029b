"""
The outcome of a change of an app.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..errors import WsgiError
from ..run.generation import Generation


@dataclass
class Outcome:
    """
    What came of a change.

    generation
        The one that is live now.
    printed
        What the app's own commands printed, by command.
    failures
        What failed after the new generation was live, sentences: the change counts, and is not undone.
    """

    generation: Generation
    printed: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def attempt(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> bool:
        """Call a function that comes too late to fail the change. Return whether it succeeded; else note the failure."""
        try:
            function(*arguments, **named)
        except (WsgiError, OSError) as error:
            self.failures.append(str(error))
            return False
        return True
