"""
The installers pip and uv, and their command lines.
"""

from __future__ import annotations

import configparser
import os
from typing import TYPE_CHECKING

from .. import step
from ..errors import WsgiError

if TYPE_CHECKING:
    from .requirements import Requirements

# The formula's own uv, which wsgi/uv/init.sls installs.
UV = "/usr/local/lib/wsgi/uv/bin/uv"

# The machine's configuration of uv. By itself uv would also read one in the app's code.
UV_CONFIGURATION = "/etc/uv/uv.toml"

# The machine's configuration of pip, in pip's order: the last file wins.
PIP_CONFIGURATION = ("/etc/xdg/pip/pip.conf", "/etc/pip.conf")

# pip's options, which uv does not read, as uv's variables, with the separator of their values.
PIP_AS_UV = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "cert": ("SSL_CERT_FILE", " "),
}


class Pip:
    """
    pip, in each environment its own.

    index : str, False or None
        The index's URL; False for no index, and None for the one of the machine's configuration.
    extra_index : list of str
        The URLs of further indexes.

    Attributes:

    variables : dict
        The environment variables of its processes. They may hold passwords, which no other user can read there.

    Its cache is in the build user's home, where the app can't change it.
    """

    def __init__(self, index: str | bool | None, extra_index: list[str]) -> None:
        indexes = {"PIP_INDEX_URL": index, "PIP_EXTRA_INDEX_URL": " ".join(extra_index)}
        self.variables = {name: str(value) for name, value in indexes.items() if value}

    def make(self, python: str, path: str) -> list[str]:
        """Return the command that makes an environment in an empty folder."""
        return [python, "-I", "-m", "venv", path]

    def install(self, path: str) -> list[str]:
        """Return the command that installs into an environment, to which the requirements are appended."""
        # -I: modules of the app's code are not imported instead of pip's own.
        pip = [f"{path}/bin/python", "-I", "-m", "pip"]
        return [*pip, "install", "--quiet", "--no-input", "--disable-pip-version-check"]

    def hashed(self, requirements: Requirements) -> list[str]:
        """Return the options that demand a hash of each requirement; pip does so itself where one has a hash."""
        return []


class Uv:
    """
    uv, with the behaviour of pip, so that one pillar comes to the same environment on machines with and without uv.

    It takes the best version of all indexes, uses the machine's configuration and certificates, downloads no
    interpreter and reads no configuration in the app's code. Methods and attributes are those of ``Pip``.

    program : str
        uv's path.
    index, extra_index
        As ``Pip`` takes them.
    """

    def __init__(self, program: str, index: str | bool | None, extra_index: list[str]) -> None:
        self.program = program
        is_configured = os.path.exists(UV_CONFIGURATION)
        pip = {} if is_configured else pip_configuration()
        without_index = pip.get("no-index", "").lower() in ("1", "on", "t", "true", "y", "yes")
        indexes = {"UV_DEFAULT_INDEX": index, "UV_INDEX": " ".join(extra_index)}
        self.no_index = ["--no-index"] if index is None and without_index else []
        self.variables = {
            "UV_INDEX_STRATEGY": "unsafe-best-match",
            "UV_PYTHON_DOWNLOADS": "never",
            "UV_SYSTEM_CERTS": "true",
            **({"UV_CONFIG_FILE": UV_CONFIGURATION} if is_configured else {"UV_NO_CONFIG": "true"}),
            **{
                variable: separator.join(pip[name].split())
                for name, (variable, separator) in PIP_AS_UV.items()
                if name in pip
            },
            **step.index_environment(),
            **{name: str(value) for name, value in indexes.items() if value},
        }

    def make(self, python: str, path: str) -> list[str]:
        return [self.program, "venv", "--quiet", "--python", python, path]

    def install(self, path: str) -> list[str]:
        # Not by hard links: they would give root's files a second name in the build user's cache.
        return [
            *(self.program, "pip", "install", "--quiet", "--python", path),
            *("--link-mode", "copy", "--compile-bytecode", *self.no_index),
        ]

    def hashed(self, requirements: Requirements) -> list[str]:
        return ["--require-hashes"] if requirements.hashed else []

    def export(self, python: str) -> list[str]:
        """Return the command that prints the requirements that a ``uv.lock`` has for running the app."""
        options = ["--frozen", "--no-dev", "--no-emit-project", "--no-editable"]
        return [self.program, "export", "--quiet", "--python", python, *options]


def pip_configuration() -> dict[str, str]:
    """Return the machine's options for pip; raise ``WsgiError`` where a configuration file of pip is not valid."""
    parser = configparser.RawConfigParser()
    try:
        parser.read([*PIP_CONFIGURATION, os.environ.get("PIP_CONFIG_FILE", "")])
    except (configparser.Error, UnicodeDecodeError) as error:
        # Without the line, which may hold a password.
        raise WsgiError(f"pip's configuration could not be read: {type(error).__name__}") from None
    options: dict[str, str] = {}
    for section in ("global", "install"):
        if parser.has_section(section):
            options.update(parser.items(section))
    for variable, value in os.environ.items():
        if variable.startswith("PIP_") and value:
            options[variable[len("PIP_") :].lower().replace("_", "-")] = value
    return options
