# A generation is never edited: change pillar, and a new one takes its place.
"""Starts Apache with mod_wsgi, behind the bridge from the generation's unix socket to Apache's port."""

import os
import shutil

from wsgi_worker import FOLDER, LIBRARY, SETTINGS


def main():
    root, bridge = f"{SETTINGS.server_dir}/apache", f"{LIBRARY}/bridge"
    shutil.rmtree(root, ignore_errors=True)  # of a start that was killed
    # Apache refuses a path with %2F by default.
    with open(f"{root}.conf", "w") as config:
        config.write("AllowEncodedSlashes On\n")
    # Nothing below /run may be executed, so express only writes down what bash then runs.
    script = f'"$@" >/dev/null && exec bash {root}/apachectl start -DFOREGROUND'
    words = [
        bridge,
        "--socket",
        SETTINGS.socket,
        "--patience",
        str(SETTINGS.graceful_timeout),
        "--",
        "/bin/bash",
        "-c",
        script,
        "bash",
        f"{SETTINGS.environment}/bin/mod_wsgi-express",
        "start-server",
        "--setup-only",
        *SETTINGS.option_words,
        f"{FOLDER}/wsgi_application.py",
        # Apache can't listen on a unix socket.
        "--host=127.0.0.1",
        "--port={port}",  # the bridge fills in a free one
        f"--server-root={root}",
        f"--include-file={root}.conf",
        "--log-to-terminal",
        f"--working-directory={SETTINGS.code}",
        "--locale=C.UTF-8",
        "--disable-reloading",
        f"--processes={SETTINGS.workers}",
        f"--threads={SETTINGS.threads}",
        # Apache's own processes, which take turns at asking the app's, are all there from the start.
        "--initial-workers=1",
        "--minimum-spare-workers=0",
        "--maximum-spare-workers=1",
        f"--maximum-requests={SETTINGS.max_requests}",
        f"--graceful-timeout={SETTINGS.graceful_timeout}",
        f"--shutdown-timeout={SETTINGS.graceful_timeout}",
        # The guard ends a hung request after request_timeout, and nginx waits 5 s longer.
        "--request-timeout=0",
        f"--queue-timeout={SETTINGS.request_timeout + 5}",
        f"--socket-timeout={SETTINGS.request_timeout + 5}",
        # However long an app takes to load: its health check has a deadline of its own.
        "--startup-timeout=600",
        # nginx has a limit already.
        "--limit-request-body=0",
        # The defaults are refused connections in a burst.
        "--server-backlog=1024",
        "--daemon-backlog=1024",
    ]
    os.execv(bridge, words)


if __name__ == "__main__":
    main()
