# A generation is never edited: change pillar, and a new one takes its place.
"""gunicorn's configuration: of these names it takes those of its settings, and of its hooks."""

import os
import sys

sys.path[:0] = [os.path.dirname(os.path.abspath(__file__)), "/usr/local/lib/wsgi"]

# These hooks start the successor of a worker that is due for replacement before that worker ends.
from wsgi_successor import child_exit, nworkers_changed, post_worker_init, pre_fork  # noqa: F401
from wsgi_worker import FOLDER, SETTINGS, refuse_unknown_options

sys.path.remove(FOLDER)  # gunicorn puts its pythonpath before the app's code, unless it is there already

wsgi_app = "wsgi_application:application"
pythonpath = FOLDER
chdir = SETTINGS.code
bind = f"unix:{SETTINGS.socket}"
# Of the socket only. Its folder is closed to other users.
umask = 0o007
proc_name = SETTINGS.unit

workers = SETTINGS.workers
threads = SETTINGS.threads
worker_class = "asgi" if SETTINGS.interface == "asgi" else "sync" if threads == 1 else "gthread"
preload_app = SETTINGS.preload
# The guard ends a hung request after request_timeout; this is for when it can't.
timeout = SETTINGS.request_timeout + 5
graceful_timeout = SETTINGS.graceful_timeout
# Longer than nginx's own, so that it is never the server that hangs up.
keepalive = 15

# In memory: a heartbeat must not wait for a disk.
worker_tmp_dir = "/dev/shm"
# Masters of one user would share it.
control_socket_disable = True
if SETTINGS.statsd:
    statsd_host = SETTINGS.statsd
    statsd_prefix = SETTINGS.app
# Nobody but nginx can reach the socket, and nginx sets these headers itself.
forwarded_allow_ips = "*"


def pre_request(worker, request):
    """Have nginx hang up once another generation is live: its next connection goes there."""
    try:
        live = os.readlink(SETTINGS.live_link)
    except FileNotFoundError:
        live = None
    if live != SETTINGS.runtime_dir:
        request.must_close = True


if SETTINGS.server_options:
    # gunicorn passes over a name that it does not know.
    from gunicorn.config import KNOWN_SETTINGS

    refuse_unknown_options([setting.name for setting in KNOWN_SETTINGS])
    globals().update(SETTINGS.server_options)
    chosen = SETTINGS.server_options.get("worker_class", "gthread")
    if threads > 1 and chosen not in ("gthread", "gunicorn.workers.gthread.ThreadWorker"):
        sys.exit(
            f"wsgi:apps:{SETTINGS.app}:server_options:gunicorn:worker_class: {chosen!r} "
            f"does not support threads, of which there are {threads}; only 'gthread' does"
        )
