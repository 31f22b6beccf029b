"""
Installers: pip and uv, and how each is called.
"""

import configparser
import os

from .. import step
from ..errors import WsgiError

# The formula's own uv, which wsgi/uv/init.sls installs.
UV = "/usr/local/lib/wsgi/uv/bin/uv"

# Where uv looks for the machine's configuration. It would look into the app's code, too.
UV_CONFIGURATION = "/etc/uv/uv.toml"

# Where pip looks for it, in its order: the last one wins.
PIP_CONFIGURATION = ("/etc/xdg/pip/pip.conf", "/etc/pip.conf")

# What uv, which reads none of pip's configuration, calls it, and what stands between two values.
PIP_AS_UV = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "cert": ("SSL_CERT_FILE", " "),
}


class Pip:
    """
    pip, which each environment has its own of.

    index : str, False or None
        The index's URL; False for none, and None for what the machine's configuration says.
    extra_index : list of str
        Further ones.

    variables : dict
        What its processes find in their environment, where nobody else can read it.

    Its cache is in the build user's home, where the app can't alter it.
    """

    def __init__(self, index, extra_index):
        said = {"PIP_INDEX_URL": index, "PIP_EXTRA_INDEX_URL": " ".join(extra_index)}
        self.variables = {name: value for name, value in said.items() if value}

    def make(self, python, path):
        """The words that make an environment in an empty folder."""
        return [python, "-I", "-m", "venv", path]

    def install(self, path):
        """The words before what is to be installed. -I: else modules of the code stand before pip's own."""
        pip = [f"{path}/bin/python", "-I", "-m", "pip"]
        return [*pip, "install", "--quiet", "--no-input", "--disable-pip-version-check"]

    def hashed(self, requirements):
        """The words that ask for a hash of each; pip does so by itself where there is one."""
        return []


class Uv:
    """
    uv, told to do as pip does, so that machines with and without it make the same of one pillar:
    the best version of all indexes, the machine's configuration and certificates, no interpreter
    that is not there, no configuration out of the code. Its attributes are ``Pip``'s.

    program : str
        Its path.
    """

    def __init__(self, program, index, extra_index):
        self.program = program
        has_own = os.path.exists(UV_CONFIGURATION)
        configured = {} if has_own else pip_configuration()
        none = configured.get("no-index", "").lower() in ("1", "on", "t", "true", "y", "yes")
        said = {"UV_DEFAULT_INDEX": index, "UV_INDEX": " ".join(extra_index)}
        self.no_index = ["--no-index"] if index is None and none else []
        self.variables = {
            "UV_INDEX_STRATEGY": "unsafe-best-match",
            "UV_PYTHON_DOWNLOADS": "never",
            "UV_SYSTEM_CERTS": "true",
            **({"UV_CONFIG_FILE": UV_CONFIGURATION} if has_own else {"UV_NO_CONFIG": "true"}),
            **{
                variable: between.join(configured[name].split())
                for name, (variable, between) in PIP_AS_UV.items()
                if name in configured
            },
            **step.index_environment(),
            **{name: value for name, value in said.items() if value},
        }

    def make(self, python, path):
        return [self.program, "venv", "--quiet", "--python", python, path]

    def install(self, path):
        # A hard link into the cache would be a second name, in a folder of the build user's, for a file of root's.
        return [
            *(self.program, "pip", "install", "--quiet", "--python", path),
            *("--link-mode", "copy", "--compile-bytecode", *self.no_index),
        ]

    def hashed(self, requirements):
        return ["--require-hashes"] if requirements.hashed else []

    def export(self, python):
        """The words that make requirements of a ``uv.lock``: those that the app runs with."""
        what = ["--frozen", "--no-dev", "--no-emit-project", "--no-editable"]
        return [self.program, "export", "--quiet", "--python", python, *what]


def pip_configuration():
    """
    The machine's configuration of pip, for an installer that does not read it.

    Returns a dict of option to str. Raises ``WsgiError`` where a file of it is none.
    """
    files = configparser.RawConfigParser()
    try:
        files.read([*PIP_CONFIGURATION, os.environ.get("PIP_CONFIG_FILE", "")])
    except (configparser.Error, UnicodeDecodeError) as error:
        # Never the line: it may hold a password.
        raise WsgiError(f"pip's configuration can't be read: {type(error).__name__}") from None
    found = {}
    for section in ("global", "install"):
        if files.has_section(section):
            found.update(files.items(section))
    for variable, value in os.environ.items():
        if variable.startswith("PIP_") and value:
            found[variable[len("PIP_") :].lower().replace("_", "-")] = value
    return found
