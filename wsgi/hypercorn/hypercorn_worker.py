# A generation is never edited: change pillar, and a new one takes its place.
"""A worker of hypercorn; its contract is in wsgi_worker.py."""

import asyncio
import sys
from importlib.metadata import version

from hypercorn.asyncio import serve
from hypercorn.config import Config
from wsgi_worker import BACKLOG, SETTINGS, SHUTDOWN_TIMEOUT, asgi_application, refuse_unknown_options


def main():
    refuse_unknown_options([name for name in dir(Config) if not callable(getattr(Config, name))])
    application = asgi_application(f"hypercorn/{version('hypercorn')}")
    options = {
        "loglevel": "WARNING",
        "backlog": BACKLOG,
        "websocket_ping_interval": SETTINGS.ping_interval,
        **SETTINGS.server_options,
    }
    config = Config.from_mapping(options, bind=[f"unix:{sys.argv[1]}"], graceful_timeout=SHUTDOWN_TIMEOUT)
    asyncio.run(serve(application, config, mode="asgi"))


if __name__ == "__main__":
    main()
