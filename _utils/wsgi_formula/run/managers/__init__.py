"""
Process managers: what keeps a generation's programs running. ``base.ProcessManager`` is their interface.
"""

from __future__ import annotations

from ...host import Host
from .base import ProcessManager
from .circus import Circus
from .emperor import Emperor
from .gaffer import Gaffer
from .supervisor import Supervisor
from .systemd import Systemd

MANAGERS: dict[str, type[ProcessManager]] = {
    "emperor": Emperor,
    "supervisor": Supervisor,
    "systemd": Systemd,
    "circus": Circus,
    "gaffer": Gaffer,
}


def process_manager(host: Host, name: str) -> ProcessManager:
    """
    Return a process manager of a machine.

    host : Host
    name : str
        A key of ``MANAGERS``.
    """
    return MANAGERS[name](host)
