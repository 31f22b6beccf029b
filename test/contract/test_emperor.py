"""Every server that emperor can hold keeps the contract."""

from checks import *

PROCESS_MANAGER = "emperor"
