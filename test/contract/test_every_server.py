"""The whole contract of every server, each under one process manager so that all managers occur, installed by pip."""

# ruff: noqa: I001  process_checks.py explains the order of the tests
from fleet import once
from request_checks import *
from process_checks import *
from limit_checks import *

MANAGERS = once()
INSTALLER = "pip"
