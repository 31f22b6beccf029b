"""Servers keep the contract under circus: those that test_every_server.py has under another process manager."""

from fleet import rest_of
from process_checks import *

MANAGERS = rest_of("circus")
