# A generation is never edited: change pillar, and a new one takes its place.
"""A worker of waitress; its contract is in wsgi_worker.py."""

import logging
import sys

import waitress
from wsgi_worker import SETTINGS


def main():
    from wsgi_application import application

    # waitress would log each request that waits for a thread.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    waitress.serve(
        application,
        unix_socket=sys.argv[1],
        unix_socket_perms="660",
        threads=SETTINGS.threads,
        # Nobody but nginx can reach the socket, and nginx sets these headers itself.
        clear_untrusted_proxy_headers=False,
        **SETTINGS.server_options,
    )


if __name__ == "__main__":
    main()
