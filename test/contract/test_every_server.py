"""Every server keeps the whole contract, each under one process manager, each of which has some; pip installs them."""

# ruff: noqa: I001  process_checks.py says why the tests come in this order
from fleet import once
from request_checks import *
from process_checks import *
from limit_checks import *

MANAGERS = once()
INSTALLER = "pip"
