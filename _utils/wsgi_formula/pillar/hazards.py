"""
Packages that an app's settings are likely to break.
"""

import re

# Packages that, by their own documentation or their maintainers, break when what they made
# crosses a fork().
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

# Those that break when threads share it.
THREAD_HOSTILE = {"pyzmq": "https://github.com/zeromq/libzmq/blob/master/doc/zmq_socket.txt"}


def hazards(key, app, requirements):
    """
    What an app may have and is likely to break it.

    key : str
        The app's pillar key.
    app : dict
        As ``Settings.apps`` holds it.
    requirements : list of str
        The lines of its requirements.

    Returns a list of sentences, each beginning with the pillar key it is about.

    .. code-block:: python

        >>> warnings("wsgi:apps:shop", {**app, "threads": 4, "preload": False}, ["pyzmq==27.1.0"])
        ['wsgi:apps:shop:threads: pyzmq may break where threads share what it made; 1 is safe']
    """
    packages = {package_name(line) for line in requirements}
    threads = [name for name in THREAD_HOSTILE if name in packages and app["threads"] > 1]
    preload = [name for name in FORK_HOSTILE if name in packages and app["preload"]]
    found = [f"{key}:threads: {name} may break where threads share what it made; 1 is safe" for name in threads]
    found += [f"{key}:preload: {name} may break when what it made crosses a fork; false is safe" for name in preload]
    return found


def package_name(requirement):
    """
    The name of the package that a requirement asks for, as
    https://packaging.python.org/en/latest/specifications/name-normalization/ has it; an empty
    str for a line that names none.
    """
    found = re.match(r"[A-Za-z0-9][\w.-]*", requirement.strip())
    return re.sub(r"[-_.]+", "-", found[0]).lower() if found else ""
