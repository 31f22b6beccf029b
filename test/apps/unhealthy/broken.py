"""Starts, and answers, but never says that it is well."""


def application(environ, start_response):
    start_response("503 Service Unavailable", [("Content-Length", "0")])
    return []
