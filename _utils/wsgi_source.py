"""
Where an app's code comes from: each form of source resolved to what it is, the same on every host,
and fetched into a folder.
"""

import os
import shutil

import wsgi_host
import wsgi_schema
from wsgi_host import Problem


class Source:
    """
    A source, resolved.

    host : wsgi_host.Host
    name : str
        The app.
    app : dict
        Its settings, as ``wsgi_wanted.app`` gives them.

    text : str
        As pillar has it, without credentials.
    identity : list
        What it is, JSON-able: equal on every host, another one for other code.
    revision : dict
        What is told of it, such as ``{"commit": …}``.
    requirements : list of str
        What the environment must have for it.
    """

    def __init__(self, host, name, app):
        self.host = host
        self.name = name
        self.app = app
        self.text = wsgi_schema.without_credentials(app["source"])
        self.revision = {}
        self.requirements = []
        source = wsgi_schema.parse_source(app["source"])
        if source.kind != "salt":
            raise Problem(f"wsgi:apps:{name}:source: {source.kind} is not implemented")
        self.files, sums = host.source_files(f"salt://{source.location}")
        self.identity = ["salt", sums]

    def fetch(self, folder):
        """
        Put the code into an empty folder, root's; whose it becomes is the caller's.

        folder : str

        Raises ``Problem``.
        """
        for inner, path in self.files.items():
            target = f"{folder}/{inner}"
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copyfile(path, target)

    def read(self, path):
        """The text of one of its files, or None where that is not there, or not known without a fetch."""
        return wsgi_host.read(self.files[path]) if path in self.files else None


def of(host, name, app):
    """The app's source, resolved once per run."""
    known = host.resolved.get((name, app["source"]))
    if known is None:
        known = host.resolved[name, app["source"]] = Source(host, name, app)
    return known
