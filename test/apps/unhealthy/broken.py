"""Starts and answers, but its health check never passes."""


def application(environ, start_response):
    start_response("503 Service Unavailable", [("Content-Length", "0")])
    return []
