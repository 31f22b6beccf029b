"""Every server that systemd can hold keeps the contract."""

from checks import *

PROCESS_MANAGER = "systemd"
