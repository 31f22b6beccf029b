"""Answers its Python implementation and the installed packages as JSON."""

import json
import platform
from importlib.metadata import distributions


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    packages = {each.metadata["Name"].lower(): each.version for each in distributions()}
    return [json.dumps({"python": platform.python_implementation(), "packages": packages}).encode()]
