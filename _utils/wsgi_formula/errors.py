"""
The one kind of error that the formula raises for an administrator to read.
"""

from salt.exceptions import CommandExecutionError


class WsgiError(CommandExecutionError):
    """
    What went wrong, in a sentence for the administrator who reads the state's comment.

    Salt shows it as one, with no traceback, where a function that was asked from outside raises it.
    """
