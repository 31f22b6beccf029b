"""
Find packages that an app's settings are likely to break.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

# Packages whose documentation or maintainers say that their objects break when a process forks.
FORK_HOSTILE = {
    "cassandra-driver": "https://docs.datastax.com/en/drivers/python/3.1/_sources/faq.txt",
    "confluent-kafka": "https://github.com/confluentinc/confluent-kafka-python/issues/351",
    "grpcio": "https://github.com/grpc/grpc/blob/master/doc/fork_support.md",
    "jax": "https://github.com/google/jax/pull/18989",
    "kafka-python": "https://github.com/dpkp/kafka-python/issues/1732",
    "opentelemetry-sdk": "https://opentelemetry-python.readthedocs.io/en/latest/examples/fork-process-model/README.html",
    "polars": "https://docs.pola.rs/user-guide/misc/multiprocessing/",
    "psycopg": "https://github.com/psycopg/psycopg/blob/master/docs/advanced/async.rst",
    "psycopg2": "https://github.com/psycopg/psycopg2/blob/master/doc/src/usage.rst",
    "psycopg2-binary": "https://github.com/psycopg/psycopg2/blob/master/doc/src/usage.rst",
    "pymongo": "https://pymongo.readthedocs.io/en/4.7.1/faq.html",
    "pyzmq": "https://github.com/zeromq/pyzmq/blob/main/zmq/sugar/context.py",
    "scylla-driver": "https://python-driver.docs.scylladb.com/stable/faq.html",
    "torch": "https://github.com/pytorch/pytorch/blob/main/docs/source/notes/multiprocessing.rst",
}

# Packages whose objects break when threads share them.
THREAD_HOSTILE = {"pyzmq": "https://github.com/zeromq/libzmq/blob/master/doc/zmq_socket.txt"}


def hazards(key: str, app: Mapping[str, Any], requirements: Iterable[str]) -> list[str]:
    """
    Return warnings about settings that are allowed and likely to break an app, each beginning with its pillar key.

    key : str
        The app's pillar key.
    app : App
    requirements : list of str
        The lines of its requirements.

    .. code-block:: python

        >>> hazards("wsgi:apps:shop", app.replace(threads=4, preload=False), ["pyzmq==27.1.0"])
        ['wsgi:apps:shop:threads: pyzmq is not safe with several threads; use 1']
    """
    packages = {package_name(line) for line in requirements}
    threads = [name for name in THREAD_HOSTILE if name in packages and app["threads"] > 1]
    preload = [name for name in FORK_HOSTILE if name in packages and app["preload"]]
    warnings = [f"{key}:threads: {name} is not safe with several threads; use 1" for name in threads]
    warnings += [f"{key}:preload: {name} is not safe when a process forks after loading; use false" for name in preload]
    return warnings


def package_name(requirement: str) -> str:
    """
    Return the normalized name of the package of a requirement, or "" for a line without one.

    requirement : str
        A line of a requirements file. The normalization is that of
        https://packaging.python.org/en/latest/specifications/name-normalization/.
    """
    found = re.match(r"[A-Za-z0-9][\w.-]*", requirement.strip())
    return re.sub(r"[-_.]+", "-", found[0]).lower() if found else ""
