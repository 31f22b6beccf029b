"""
The machine, as one Salt run sees it: its settings and its templates.

One ``Host`` serves a whole run, so that pillar is validated, each template compiled and each table of the kernel read
once, however many apps there are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, TypeVar

import jinja2
import salt.utils.yaml

from . import files, process
from .errors import WsgiError
from .paths import ETC
from .pillar import load, plain
from .pillar.settings import Settings, merge
from .served import Served

Made = TypeVar("Made")


class Host:
    """
    The machine, as one Salt run sees it.

    salt : mapping
        Salt's execution functions, ``__salt__``.
    pillar, grains : mapping
        ``__pillar__`` and ``__grains__``.
    saltenv : str
        The environment that the formula's files are served from.
    opts : mapping
        ``__opts__``.
    """

    def __init__(
        self,
        salt: Mapping[str, Any],
        pillar: Mapping[str, Any],
        grains: Mapping[str, Any],
        saltenv: str,
        opts: Mapping[str, Any] | None = None,
    ) -> None:
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
            autoescape=lambda name: name is not None and name.endswith(".html.jinja"),
            bytecode_cache=self._bytecode_cache(),
        )
        self._file_texts: dict[str, str] = {}
        self.served = Served(self)
        self.made: dict[Callable[..., Any], Any] = {}  # by `once`

    def _bytecode_cache(self) -> jinja2.BytecodeCache | None:
        """Return a cache on the disk: a run with nothing to do would spend most of its time on compiling templates."""
        if not os.path.isdir(self.opts.get("cachedir") or ""):
            return None
        path = os.path.join(self.opts["cachedir"], "wsgi_templates")
        files.ensure_dir(path, 0o700, os.geteuid(), os.getegid())
        return jinja2.FileSystemBytecodeCache(path)

    @classmethod
    def of_run(
        cls,
        context: dict[str, Any],
        salt: Mapping[str, Any],
        pillar: Mapping[str, Any],
        grains: Mapping[str, Any],
        opts: Mapping[str, Any],
        saltenv: str | None,
    ) -> Host:
        """
        Return a state run's host, made at its first use.

        context : dict
            ``__context__``, which Salt shares among all modules of a run.

        The other arguments are those of ``Host``. Raises ``WsgiError`` as another user than root.
        """
        host = context.get("wsgi.host")
        if host is None:
            host = context["wsgi.host"] = cls.of_call(salt, pillar, grains, opts, saltenv)
        host.salt = salt
        return host

    @classmethod
    def of_call(
        cls,
        salt: Mapping[str, Any],
        pillar: Mapping[str, Any],
        grains: Mapping[str, Any],
        opts: Mapping[str, Any],
        saltenv: str | None,
    ) -> Host:
        """
        Make the host of a state run, or of one function called outside of a state run.

        The arguments are those of ``Host``. Raises ``WsgiError`` as another user than root.
        """
        if os.geteuid():
            raise WsgiError(f"wsgi must run as root, and this is the user with the UID {os.geteuid()}: use sudo")
        files.damaged_records.clear()
        files.take_damage_reports()
        return cls(salt, pillar, grains, saltenv or "base", opts)

    @cached_property
    def family(self) -> dict[str, Any]:
        """The content of ``wsgi/os_family/<family>.yaml``; without such a file ``WsgiError`` is raised."""
        name = self.grains["os_family"]
        return self._yaml(f"os_family/{name}.yaml", f"the OS family {name} is not supported")

    @cached_property
    def servers(self) -> dict[str, Any]:
        """The rows of ``wsgi/servers.yaml``, with this system's values of ``wsgi/os_family/<family>.yaml``."""
        on_system = self.family.get("servers", {}).get(self.grains.get("osfinger"), {})
        return merge(self._yaml("servers.yaml"), on_system)

    @cached_property
    def settings(self) -> Settings:
        """The settings that the run's pillar comes to."""
        defaults, system = self._yaml("defaults.yaml"), self.grains.get("osfinger", "")
        pillar = plain.plain(self.pillar.get("wsgi"))
        return load.load(pillar, defaults, self.family, self.servers, system)

    def once(self, make: Callable[[Host], Made]) -> Made:
        """
        Return what a function or a class makes of this host; it is made once per run.

        make : callable
            Takes the host: ``host.once(Nginx)`` is the run's ``Nginx``.
        """
        if make not in self.made:
            self.made[make] = make(self)
        return self.made[make]

    def render(self, template: str, **values: Any) -> str:
        """
        Return the text of one of the formula's templates, rendered.

        template : str
            Its path below ``wsgi/``.
        values
            The template's variables.
        """
        return self._templates.get_template(template).render(**values)

    def with_macros(self, templates: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, Any]:
        """
        Return variables for ``render`` with which templates call each other's macros.

        templates : dict
            Names to paths below ``wsgi/``: with ``{"log": "nginx/log.jinja"}``, ``{{ log.location() }}`` calls that
            file's macro.
        values : dict
            The templates' other variables.

        The macros are made once, at the first use of one. An ``import`` with context would make them anew in each
        template, which took more than half of an app's time.
        """
        variables = {**self._templates.globals, **values}
        variables.update((name, _Macros(self._templates, path, variables)) for name, path in templates.items())
        return variables

    def file_text(self, path: str) -> str:
        """Return the text of a file below ``wsgi/``, read once in a run; raise ``WsgiError`` where it is not served."""
        if path not in self._file_texts:
            self._file_texts[path] = self.text(f"salt://wsgi/{path}")
        return self._file_texts[path]

    def text(self, url: str) -> str:
        """Return the text of one of the formula's files; raise ``WsgiError`` where it is not served."""
        path = self.served.file(url)
        if not path:
            raise WsgiError(self.served.missing(url))
        text = files.read(path)
        assert text is not None
        return text

    @cached_property
    def listening(self) -> set[str]:
        """The paths of the unix sockets that processes listened on when the run first asked for them."""
        return {path for path, listens in process.unix_sockets() if listens}

    @staticmethod
    def known_apps() -> list[str]:
        """Return the names of the apps that the formula has set up on this machine, sorted."""
        return sorted(name for name in files.list_dir(ETC) if os.path.isfile(f"{ETC}/{name}/app.json"))

    def _yaml(self, name: str, error: str | None = None) -> dict[str, Any]:
        url = f"salt://wsgi/{name}"
        if error and not self.served.file(url):
            raise WsgiError(error)
        return salt.utils.yaml.safe_load(self.text(url))


class _Macros:
    """The macros of a template, as attributes."""

    def __init__(self, environment: jinja2.Environment, path: str, values: dict[str, Any]) -> None:
        self._make = lambda: environment.get_template(path).make_module(values, shared=True)

    @cached_property
    def _module(self) -> Any:
        return self._make()

    def __getattr__(self, macro: str) -> Any:
        return getattr(self._module, macro)
