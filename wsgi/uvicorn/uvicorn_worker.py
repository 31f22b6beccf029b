# A generation is never edited: change pillar, and a new one takes its place.
"""A worker of uvicorn; its contract is in wsgi_worker.py."""

import inspect
import signal
import socket
import sys

import uvicorn
from wsgi_worker import SETTINGS, SHUTDOWN_TIMEOUT, asgi_application, refuse_unknown_options


def main():
    refuse_unknown_options(inspect.signature(uvicorn.Config).parameters)
    application = asgi_application(f"uvicorn/{uvicorn.__version__}")
    options = {"log_level": "warning", "ws_ping_interval": SETTINGS.ping_interval, **SETTINGS.server_options}
    config = uvicorn.Config(
        application,
        workers=1,
        access_log=False,
        # The guard reads the client's address from nginx's headers; uvicorn trusts none that come over a unix socket.
        proxy_headers=False,
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT,
        **options,
    )
    # uvicorn would set the mode 0666 on a socket that it binds itself.
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1])
    # After its shutdown uvicorn sends itself the signal again, whose default would end Python at once.
    signal.signal(signal.SIGTERM, lambda *_: None)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
