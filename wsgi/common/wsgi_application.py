# A generation is never edited: change pillar, and a new one takes its place.
"""The app's callable under guard, which the generation's server serves."""

import os
import sys

# mod_wsgi loads this file by its path alone.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from wsgi_worker import LIBRARY, SETTINGS

sys.path[:1] = [SETTINGS.code, LIBRARY]

from wsgi_guard import guarded

application = guarded(
    SETTINGS.application,
    interface=SETTINGS.interface,
    graceful_timeout=SETTINGS.graceful_timeout,
    live=SETTINGS.live_link,
    run=SETTINGS.runtime_dir,
    **{name: getattr(SETTINGS, name) for name in SETTINGS.guarded},
)
