"""
Virtual environments of the formula's own programs, such as supervisor and uv.
"""

from __future__ import annotations

import json
import os

from .. import files, step
from .environment import COMPLETE


class Tool:
    """
    A program of the formula's own, in a virtual environment that root makes and runs it from.

    path : str
        The environment's folder.
    requirements : list of str
        The packages that pip installs, each with its version.
    python : str
        The interpreter's path.
    """

    def __init__(self, path: str, requirements: list[str], python: str) -> None:
        self.path = path
        self.requirements = requirements
        self.python = python
        self._stamp = json.dumps([os.path.realpath(python), requirements]) + "\n"

    def built(self) -> bool:
        """Return whether the environment was built from these requirements and this interpreter."""
        return files.read(f"{self.path}/{COMPLETE}") == self._stamp

    def build(self) -> None:
        """Build the environment, over an older one. Raises ``WsgiError`` with the last lines of a failed step."""
        files.remove(f"{self.path}/{COMPLETE}")
        os.makedirs(self.path, mode=0o755, exist_ok=True)
        pip = [f"{self.path}/bin/python", "-m", "pip", "install", "--quiet", "--no-input"]
        make = [self.python, "-m", "venv"]
        if os.path.basename(self.python).startswith("python2"):
            make = ["virtualenv", "--quiet", "--python", self.python]
        for command in (
            [*make, self.path],
            [*pip, "--disable-pip-version-check", "--no-cache-dir", "--no-deps", *self.requirements],
        ):
            step.run(command, "")
        files.write(f"{self.path}/{COMPLETE}", self._stamp, 0o644)
