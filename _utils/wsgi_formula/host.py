"""
The machine that is being converged, as one Salt run sees it: its settings, its templates, its tables.

One ``Host`` serves a whole Salt run, so that pillar is validated, each template compiled
and each table of the kernel read once, however many apps there are.
"""

import os
from functools import cached_property

import jinja2
import salt.utils.yaml

from . import files, process
from .errors import WsgiError
from .paths import ETC
from .pillar import load, plain
from .pillar.settings import merge
from .served import Served


class Host:
    """
    The machine, as one Salt run sees it.

    salt : mapping
        Salt's execution functions, ``__salt__``.
    pillar, grains : dict
        ``__pillar__`` and ``__grains__``.
    saltenv : str
        The environment that the formula's files are served from.
    opts : dict
        ``__opts__``.
    """

    def __init__(self, salt, pillar, grains, saltenv, opts=None):
        self.salt = salt
        self.pillar = pillar
        self.grains = grains
        self.saltenv = saltenv
        self.opts = opts or {}
        self._templates = jinja2.Environment(
            loader=jinja2.FunctionLoader(self.file_text),
            undefined=jinja2.StrictUndefined,
            keep_trailing_newline=True,
            trim_blocks=True,
            lstrip_blocks=True,
            autoescape=lambda name: name.endswith(".html.jinja"),
            bytecode_cache=self._bytecode_cache(),
        )
        self._file_texts = {}
        self.served = Served(self)
        # What others look up once per run: sources and interpreters; what is wanted of each app, and said instead of pillar.
        self.resolved = {}
        self.wanted = {}
        self.overrides = {}
        self.overrides_read = {}  # as they were on the disk
        self.made = {}  # by `once`

    def _bytecode_cache(self):
        """Most of what a run with nothing to do costs would be to compile the templates once more."""
        if not os.path.isdir(self.opts.get("cachedir") or ""):
            return None
        path = os.path.join(self.opts["cachedir"], "wsgi_templates")
        files.ensure_dir(path, 0o700, os.geteuid(), os.getegid())
        return jinja2.FileSystemBytecodeCache(path)

    @classmethod
    def of_run(cls, context, salt, pillar, grains, opts, saltenv):
        """
        The run's host, made at its first use.

        context : dict
            ``__context__``, which Salt shares among all modules of a run.

        Returns a ``Host``. Raises ``WsgiError`` as another user than root.
        """
        host = context.get("wsgi.host")
        if host is None:
            host = context["wsgi.host"] = cls.of_call(salt, pillar, grains, opts, saltenv)
        host.salt = salt
        return host

    @classmethod
    def of_call(cls, salt, pillar, grains, opts, saltenv):
        """
        Make a new ``Host``: a state run's, or that of one call of a function from outside of a state run.

        Raises ``WsgiError`` as another user than root.
        """
        if os.geteuid():
            raise WsgiError(f"wsgi must run as root, and this is the user with the UID {os.geteuid()}: use sudo")
        files.damaged_records.clear()
        files._untold.clear()
        return cls(salt, pillar, grains, saltenv or "base", opts)

    @cached_property
    def family(self):
        """What ``wsgi/os_family/<family>.yaml`` says; a ``WsgiError`` where there is none."""
        name = self.grains["os_family"]
        return self._yaml(f"os_family/{name}.yaml", f"the OS family {name} is not supported")

    @cached_property
    def servers(self):
        """The rows of ``wsgi/servers.yaml``, with what ``wsgi/os_family/<family>.yaml`` says of this system's."""
        on_system = self.family.get("servers", {}).get(self.grains.get("osfinger"), {})
        return merge(self._yaml("servers.yaml"), on_system)

    @cached_property
    def settings(self):
        """The run's ``Settings``."""
        defaults, system = self._yaml("defaults.yaml"), self.grains.get("osfinger", "")
        said = plain.plain(self.pillar.get("wsgi"))
        return load.load(said, defaults, self.family, self.servers, system)

    def once(self, make):
        """
        Return what a function or a class makes of this host; it is made once per run.

        make : callable
            Takes the host: ``host.once(Nginx)`` is the run's ``Nginx``.
        """
        if make not in self.made:
            self.made[make] = make(self)
        return self.made[make]

    def render(self, template, **values):
        """
        Render one of the formula's templates.

        template : str
            Its path below ``wsgi/``.

        Returns the text.
        """
        return self._templates.get_template(template).render(**values)

    def with_macros(self, templates, values):
        """
        What templates know whose macros call each other's.

        templates : dict
            Names to paths below ``wsgi/``: with ``{"log": "nginx/log.jinja"}``, ``{{ log.location() }}`` is that
            file's macro.
        values : dict
            What they know beside.

        Returns a dict for ``render``. The macros are made once, at the first use of one: an ``import`` with context
        makes them anew in each template that it stands in, which took more than half of the time of an app.
        """
        known = {**self._templates.globals, **values}
        known.update((name, _Macros(self._templates, path, known)) for name, path in templates.items())
        return known

    def file_text(self, path):
        """Return the text of a file below ``wsgi/``, read once in a run; raise ``Problem`` where it is not served."""
        if path not in self._file_texts:
            self._file_texts[path] = self.text(f"salt://wsgi/{path}")
        return self._file_texts[path]

    def text(self, url):
        """Return the text of one of the formula's files; raises ``WsgiError`` where it is not served."""
        path = self.served.file(url)
        if not path:
            raise WsgiError(self.served.missing(url))
        return files.read(path)

    @cached_property
    def listening(self):
        """The paths of the unix sockets that something listens on, as the run first saw them."""
        return {path for path, listens in process.unix_sockets() if listens}

    @staticmethod
    def known_apps():
        """The names of the apps that have something on this machine that runs."""
        return sorted(name for name in files.list_dir(ETC) if os.path.isfile(f"{ETC}/{name}/app.json"))

    def _yaml(self, name, otherwise=None):
        url = f"salt://wsgi/{name}"
        if otherwise and not self.served.file(url):
            raise WsgiError(otherwise)
        return salt.utils.yaml.safe_load(self.text(url))


class _Macros:
    """A template's macros, as attributes."""

    def __init__(self, environment, path, values):
        self._make = lambda: environment.get_template(path).make_module(values, shared=True)

    @cached_property
    def _module(self):
        return self._make()

    def __getattr__(self, macro):
        return getattr(self._module, macro)
