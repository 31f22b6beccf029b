"""
Pillar as plain data.

Salt hands out pillar in classes of its own, and in other ones through a master than without it: Salt 3008 has
``MaskedDict`` and ``MaskedList``, whose ``repr`` is asterisks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def plain(value: Any) -> Any:
    """
    Return a copy of a value in which every mapping is a dict, every sequence a list, and every text a str.

    Any other value stays as it is. Where YAML's anchors repeat a value or put it into itself, the copy does so too.
    """
    # The id of each mapping and sequence to its copy. Held beside it, the original keeps its id.
    copies: dict[int, tuple[Any, Any]] = {}
    unfilled: list[tuple[Any, Any]] = []

    def copy_of(value: Any) -> Any:
        if isinstance(value, str):
            return _text(value)
        if isinstance(value, Mapping):
            empty: Any = {}
        elif isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
            empty = []
        else:
            return value
        if id(value) not in copies:
            copies[id(value)] = empty, value
            unfilled.append((empty, value))
        return copies[id(value)][0]

    whole = copy_of(value)
    # No recursion: a value may be nested deeper than Python can descend, and needs a readable problem.
    while unfilled:
        copy, original = unfilled.pop()
        if isinstance(copy, dict):
            for key, each in original.items():
                copy[_text(key) if isinstance(key, str) else key] = copy_of(each)
        else:
            copy.extend(map(copy_of, original))
    return whole


def _text(text: str) -> str:
    # A subclass may have a __str__ that shows asterisks.
    return str.__str__(text)
