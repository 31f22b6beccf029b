"""Contract of the servers under supervisor, for those that test_every_server.py runs under another process manager."""

from fleet import rest_of
from process_checks import *

MANAGERS = rest_of("supervisor")
