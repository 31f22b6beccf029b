"""
The removal of an app from this machine.
"""

from .. import files
from ..edge.nginx import Nginx
from ..lock import app_lock
from ..paths import LIB, RUN
from ..run.generation import generation_ids, live_generation, retire_generation
from . import switch


def remove_app(host, name):
    """
    Take an app off this machine, its site first: its traffic ends, then its processes.

    Code, logs and its home folder stay.
    """
    with app_lock(name, "its removal"):
        host.once(Nginx).remove_site(name)
        last = live_generation(host, name)
        if last:
            switch._drain(last)
        files.remove(f"{LIB}/live/{name}")
        files.remove(f"{LIB}/live/{name}.new")
        for id in generation_ids(host, name):
            retire_generation(host, name, id)
        files.remove(f"{RUN}/{name}")
