"""
The one kind of error that the formula raises for an administrator to read.
"""


class Problem(Exception):
    """What went wrong, in a sentence for the administrator who reads the state's comment."""
