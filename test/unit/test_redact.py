"""Secrets are redacted, and the excerpt of a failure shows its cause."""

import pytest
from wsgi_formula.redact import failure_excerpt, redact


def test_short_values_are_not_redacted():
    assert redact("a 1 b", ["1"]) == "a 1 b"


def test_longer_secrets_are_redacted_first():
    assert redact("hunter2-and-more", ["hunter2", "hunter2-and-more"]) == "***"


BANNER = [f"banner {number}" for number in range(100)]
FIRST = ["Traceback (most recent call last):", '  File "shop.py", line 1, in <module>', "ImportError: this is why"]
INTERRUPTED = ["Traceback (most recent call last):", '  File "shop.py", line 0, in <module>', "KeyboardInterrupt"]


def cause(*said):
    return [line[2:] for line in failure_excerpt("\n".join([*BANNER, *said]), 60).splitlines()]


def test_excerpt_has_the_first_traceback_and_the_end():
    told = cause(*FIRST, *INTERRUPTED * 30, "goodbye")
    assert told[:4] == [*FIRST, INTERRUPTED[0]]
    assert told[59:62] == [INTERRUPTED[2], "…", INTERRUPTED[1]]
    assert told[-1] == "goodbye"
    assert len(told) == 60 + 1 + 15


def test_excerpt_is_complete_if_the_end_is_near_the_first_traceback():
    said = [*FIRST, *INTERRUPTED * 23, "goodbye"]
    assert cause(*said) == said


@pytest.mark.parametrize("said", [["goodbye"], [*FIRST, *INTERRUPTED, "goodbye"]])
def test_excerpt_is_the_end_of_the_output_if_nothing_follows_the_traceback(said):
    assert cause(*said) == [*BANNER, *said][-60:]
