"""
The change of a configuration file, told in few lines.

A run's output is read by people, for many minions at once: what they changed has to stand out, not all that
follows from it. The whole diff is logged at level debug.
"""

import difflib
import logging

MOST = 12  # lines that are shown of one file


logger = logging.getLogger(__name__)


def brief(path, before, after):
    """
    Return the lines by which a file changed, each once.

    path : str
        The file, for the log. Nothing secret may be in it.
    before, after : str
        Its text.

    Comments, empty lines, indentation, and lines that only moved or are repeated count where nothing else changed.

    .. code-block:: python

        >>> brief("x.conf", "# of shop\\nlisten 80;\\nserver_name a;\\n", "# of cart\\nlisten 80;\\nserver_name b;\\n")
        '-server_name a;\\n+server_name b;\\n'
    """
    if logger.isEnabledFor(logging.DEBUG):
        texts = (text.splitlines(keepends=True) for text in (before, after))
        logger.debug("%s", "".join(difflib.unified_diff(*texts, path, path)))
    old, new = _statements(before), _statements(after)
    known = {*old} & {*new}
    changed = _changed(old, new)
    told = (
        [line for line in changed if line[1:] not in known]
        or changed
        or _changed(before.splitlines(), after.splitlines())
    )
    return _first(list(dict.fromkeys(told)))


def first_lines(path, diff):
    """Return the first lines of a diff that another state made, and log the whole of it."""
    logger.debug("%s:\n%s", path, diff)
    return _first(diff.splitlines())


def _first(lines):
    more = len(lines) - MOST
    # One line more takes no more room than to say so.
    if more > 1:
        lines = [*lines[:MOST], f"… {more} more lines: see Salt's log at level debug"]
    return "".join(f"{line}\n" for line in lines)


def _statements(text):
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _changed(old, new):
    """Return the lines of a diff without their surroundings."""
    # The first two name the files, and some say where a change is.
    return [line for line in list(difflib.unified_diff(old, new, n=0, lineterm=""))[2:] if not line.startswith("@@")]
