"""
The change of a configuration file in few lines.

People read a run's output for many minions at once: the statements that changed have to stand out from all that
follows from them. The whole diff is logged at level debug.
"""

from __future__ import annotations

import difflib
import logging

MOST_LINES = 12  # that are shown of one file


logger = logging.getLogger(__name__)


def brief(path: str, before: str, after: str) -> str:
    """
    Return the lines by which a file changed, each once.

    path : str
        The file, for the log. It must not hold secrets, as its diff is logged.
    before, after : str
        Its text.

    Comments, empty lines, indentation, and lines that only moved or are repeated are shown only where nothing else
    changed.

    .. code-block:: python

        >>> brief("x.conf", "# of shop\\nlisten 80;\\nserver_name a;\\n", "# of cart\\nlisten 80;\\nserver_name b;\\n")
        '-server_name a;\\n+server_name b;\\n'
    """
    if logger.isEnabledFor(logging.DEBUG):
        old_lines, new_lines = before.splitlines(keepends=True), after.splitlines(keepends=True)
        logger.debug("%s", "".join(difflib.unified_diff(old_lines, new_lines, path, path)))
    old, new = _statements(before), _statements(after)
    in_both = {*old} & {*new}
    changed = _changed_lines(old, new)
    shown = (
        [line for line in changed if line[1:] not in in_both]
        or changed
        or _changed_lines(before.splitlines(), after.splitlines())
    )
    return _shortened(list(dict.fromkeys(shown)))


def first_lines(path: str, diff: str) -> str:
    """Return the first lines of a diff that another state made, and log the whole of it."""
    logger.debug("%s:\n%s", path, diff)
    return _shortened(diff.splitlines())


def _shortened(lines: list[str]) -> str:
    more = len(lines) - MOST_LINES
    # The line that says so takes the room of one more.
    if more > 1:
        lines = [*lines[:MOST_LINES], f"… {more} more lines: see Salt's log at level debug"]
    return "".join(f"{line}\n" for line in lines)


def _statements(text: str) -> list[str]:
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _changed_lines(old: list[str], new: list[str]) -> list[str]:
    # The first two lines of a diff name the files; those with @@ give line numbers.
    return [line for line in list(difflib.unified_diff(old, new, n=0, lineterm=""))[2:] if not line.startswith("@@")]
