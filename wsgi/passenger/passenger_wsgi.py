# A generation is never edited: change pillar, and a new one takes its place.
"""
Passenger's startup file, which has the app's callable. Run as a program, it starts Passenger's core for this one app
only: `passenger start` would put daemons in between, which outlive it when it is killed, and break off requests when it
is stopped.
"""

import logging
import os
import shutil
import sys
import urllib.parse

# Passenger loads this file by its path alone.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from wsgi_worker import SETTINGS


def start():
    """Become Passenger's core."""
    work_dir = f"{SETTINGS.server_dir}/passenger"
    shutil.rmtree(work_dir, ignore_errors=True)  # of a start that was killed
    os.mkdir(work_dir, 0o700)
    for name in ("apps.s", "spawn"):
        os.mkdir(f"{work_dir}/{name}")
    agent, workers = SETTINGS.distribution["agent"], str(SETTINGS.workers)
    words = [
        agent,
        "core",
        *SETTINGS.option_words,
        "--passenger-root",
        SETTINGS.distribution["root"],
        "--ctl",
        f"instance_dir={work_dir}",
        "--ctl",
        f"spawn_dir={work_dir}/spawn",
        "--listen",
        f"unix:{SETTINGS.socket}",
        "--no-user-switching",
        "--disable-security-update-check",
        "--disable-anonymous-telemetry",
        "--disable-friendly-error-pages",
        "--disable-turbocaching",
        "--no-show-version-in-header",
        "--app-type",
        "wsgi",
        "--startup-file",
        __file__,
        "--python",
        f"{SETTINGS.environment}/bin/python",
        "--spawn-method",
        "direct",
        "--max-pool-size",
        workers,
        "--min-instances",
        workers,
        # The processes stay, however long no request comes.
        "--pool-idle-time",
        "0",
        # The default of 100 answers a burst with 503.
        "--max-request-queue-size",
        "0",
        "--max-requests",
        str(SETTINGS.max_requests),
        SETTINGS.code,
    ]
    os.execv(agent, words)


def load():
    """Return the app's callable, under guard."""
    # Passenger's loader has set up logging, and logging.basicConfig() of the app would do nothing.
    logging.captureWarnings(False)
    for handler in logging.root.handlers[:]:
        logging.root.removeHandler(handler)
    from wsgi_application import application as guarded

    def application(environ, start_response):
        environ.pop("PASSENGER_CONNECT_PASSWORD", None)
        # PEP 3333 wants the path decoded, and Passenger does not decode it.
        environ["PATH_INFO"] = urllib.parse.unquote(environ["PATH_INFO"], "latin-1")
        return guarded(environ, start_response)

    return application


if __name__ == "__main__":
    start()
application = load()
