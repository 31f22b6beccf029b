"""
Output of programs for a comment: without secrets, and cut to the part that explains a failure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote

# The match starts at the scheme's first letter: starting anywhere, a long word would take quadratic time.
CREDENTIALS = re.compile(r"(?<![a-z+])(?P<scheme>[a-z+]+)://(?P<user>[^/\s:]*)(?P<password>:[^/\s]*)?@")

# Shorter values are not redacted: they are part of ordinary words.
SECRET_LENGTH = 6  # characters

TRACEBACK = "Traceback (most recent call last)"


def without_credentials(text: str) -> str:
    """
    Return a text with the passwords and tokens of its URLs replaced by ``***``.

    .. code-block:: python

        >>> without_credentials("https://me:secret@example.com/simple and ssh://git@example.com/x")
        'https://me:***@example.com/simple and ssh://git@example.com/x'
    """

    def hidden(url: re.Match[str]) -> str:
        if url["password"]:
            return f"{url['scheme']}://{url['user']}:***@"
        # The user of an https URL may be a token.
        return f"{url['scheme']}://***@" if "http" in url["scheme"] else url[0]

    return CREDENTIALS.sub(hidden, text)


def redact(text: str, secrets: Iterable[object]) -> str:
    """
    Return a text with these secrets, and the credentials of its URLs, replaced by ``***``.

    secrets : iterable
        Values of any type, as the program printed them with ``str()``; those of less than 6 characters stay.
    """
    for value in sorted({str(value) for value in secrets}, key=len, reverse=True):
        if len(value) >= SECRET_LENGTH:
            text = text.replace(value, "***")
    return without_credentials(text)


def tail(text: str, lines: int = 15) -> str:
    """Return the last lines of a text, indented."""
    return _indented(text.rstrip().splitlines()[-lines:])


def failure_excerpt(text: str, lines: int, end: int = 15) -> str:
    """
    Return the part of a program's output that explains why it failed, indented.

    text : str
        All that the program printed.
    lines : int
        How many lines are shown: the last ones, or, where the first traceback is further up, those from there on.
    end : int
        How many of the last lines are shown beside such a traceback: the processes that a failing worker takes with it
        print tracebacks of their own.
    """
    printed = text.rstrip().splitlines()
    before = range(max(len(printed) - lines, 0))
    first = next((number for number in before if TRACEBACK in printed[number]), before.stop)
    shown = printed[first:]
    if len(shown) > lines + end:
        shown[lines:-end] = ["…"]
    return _indented(shown)


def passwords_of(texts: Iterable[str]) -> set[str]:
    """Return the passwords and tokens of the URLs in some texts, both as they are written there and decoded."""
    urls = [url for text in texts for url in CREDENTIALS.finditer(text)]
    passwords = {(url["password"] or "")[1:] or url["user"] for url in urls}
    return passwords | {unquote(password) for password in passwords}


def _indented(lines: list[str]) -> str:
    return "\n".join("  " + line for line in lines)
