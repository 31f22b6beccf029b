# A generation is never edited: change pillar, and a new one takes its place.
"""A worker of granian, which has a master of its own; its contract is in wsgi_worker.py."""

import os
import sys

from wsgi_worker import FOLDER, SETTINGS


def main():
    granian = f"{SETTINGS.environment}/bin/granian"
    words = [
        granian,
        *SETTINGS.option_words,
        f"--uds={sys.argv[1]}",
        "--uds-permissions=0660",
        f"--interface={SETTINGS.interface}",
        # nginx speaks no newer version to it.
        "--http=1",
        "--workers=1",
        *([f"--blocking-threads={SETTINGS.threads}"] if SETTINGS.interface == "wsgi" else []),
        f"{FOLDER}/wsgi_application.py:application",
    ]
    os.execv(granian, words)


if __name__ == "__main__":
    main()
