"""Every server that circus can hold keeps the contract."""

from checks import *

PROCESS_MANAGER = "circus"
