"""Imports a library that is not installed."""

import a_library_that_nobody_installed  # noqa: F401


def application(environ, start_response):
    start_response("200 OK", [])
    return []
