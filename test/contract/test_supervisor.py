"""Every server that supervisor can hold keeps the contract."""

from checks import *

PROCESS_MANAGER = "supervisor"
