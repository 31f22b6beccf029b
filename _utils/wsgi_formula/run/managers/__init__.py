"""
Process managers: what keeps a generation's programs alive, one class each, all with one interface.

A *unit* is a ``Program`` as its process manager knows it: a generation's server is
named ``<app>.<generation>``, the others ``<app>.<generation>.<name>.<number>``.
"""

from .circus import Circus
from .emperor import Emperor
from .gaffer import Gaffer
from .supervisor import Supervisor
from .systemd import Systemd

MANAGERS = {"emperor": Emperor, "supervisor": Supervisor, "systemd": Systemd, "circus": Circus, "gaffer": Gaffer}


def manager_of(host, name):
    """
    A process manager.

    host : Host
    name : str
        A key of ``MANAGERS``.

    Returns an object with ``templates``, ``files`` and ``start``, which take a program, and ``stop``,
    ``failed``, ``pid`` and ``registered``, which take a unit.
    """
    return MANAGERS[name](host)
