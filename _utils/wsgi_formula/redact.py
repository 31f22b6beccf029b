"""
Output of programs: without the secrets in it, and cut to the part that tells of a failure.
"""

import re
from urllib.parse import unquote

# From the scheme's first letter on: else a long word takes the square of its length.
# From the scheme's first letter on: else a long word takes the square of its length.
CREDENTIALS = re.compile(r"(?<![a-z+])(?P<scheme>[a-z+]+)://(?P<user>[^/\s:]*)(?P<password>:[^/\s]*)?@")


def without_credentials(text):
    """
    A text whose URLs have no password and no token any more.

    .. code-block:: python

        >>> without_credentials("https://me:secret@example.com/simple and ssh://git@example.com/x")
        'https://me:***@example.com/simple and ssh://git@example.com/x'
    """

    def hidden(found):
        if found["password"]:
            return f"{found['scheme']}://{found['user']}:***@"
        return f"{found['scheme']}://***@" if "http" in found["scheme"] else found[0]

    return CREDENTIALS.sub(hidden, text)


# A value this long is struck from what is shown of a log.
SECRET = 6  # characters

TRACEBACK = "Traceback (most recent call last)"


def redact(text, secrets):
    """A text without these values, nor any credentials in its URLs."""
    for value in sorted({str(value) for value in secrets}, key=len, reverse=True):
        if len(value) >= SECRET:
            text = text.replace(value, "***")
    return without_credentials(text)


def tail(text, lines=15):
    """The last lines of a text, indented, for a comment."""
    return _indented(text.rstrip().splitlines()[-lines:])


def failure_excerpt(text, lines, end=15):
    """
    What tells why a program failed, indented, for a comment.

    text : str
        All that it said.
    lines, end : int

    Returns its last ``lines``; where its first traceback is further up, as many from there on, and the last
    ``end``: those whom a worker takes with it when it fails have tracebacks of their own.
    """
    said = text.rstrip().splitlines()
    before = range(max(len(said) - lines, 0))
    first = next((number for number in before if TRACEBACK in said[number]), before.stop)
    told = said[first:]
    if len(told) > lines + end:
        told[lines:-end] = ["…"]
    return _indented(told)


def _indented(lines):
    return "\n".join("  " + line for line in lines)


def passwords_of(texts):
    """The passwords and tokens of the URLs in some texts, as they stand and as they are meant."""
    urls = [found for text in texts for found in CREDENTIALS.finditer(text)]
    found = {(url["password"] or "")[1:] or url["user"] for url in urls}
    return found | {unquote(each) for each in found}
