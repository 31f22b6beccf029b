"""Contract of the servers under emperor, for those that test_every_server.py runs under another process manager."""

from fleet import rest_of
from process_checks import *

MANAGERS = rest_of("emperor")
