"""
The machine that is being converged: where things lie on it, and what is there now.

One ``Host`` serves a whole Salt run, so that pillar is validated, each template compiled
and each table of the kernel read once, however many apps there are.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from functools import cached_property

import jinja2
import salt.utils.files
import salt.utils.yaml
import wsgi_settings

ETC = "/etc/wsgi"  # <app>/<generation>: configuration and environment
SRV = "/srv/wsgi"  # <app>/releases, <app>/environments
RUN = "/run/wsgi"  # <app>/<generation>: sockets, as nginx finds them; <app>/<generation>.own: the app's
LOG = "/var/log/wsgi"  # <app>/<generation>.log
LIB = "/var/lib/wsgi"  # live/<app>: the link to the live generation's sockets; home/<app>
TMPFILES = "/etc/tmpfiles.d"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Problem(Exception):
    """What went wrong, in a sentence for the administrator who reads the state's comment."""


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
            loader=jinja2.FunctionLoader(self._template),
            undefined=jinja2.StrictUndefined,
            keep_trailing_newline=True,
            trim_blocks=True,
            lstrip_blocks=True,
            autoescape=lambda name: name.endswith(".html.jinja"),
            bytecode_cache=self._bytecode_cache(),
        )
        self._template_text = {}
        self._sources = {}
        self._served = {}
        # What others look up once per run: sources and interpreters; what is wanted of each app, and said instead of pillar.
        self.resolved = {}
        self.wanted = {}
        self.overrides = {}
        self.overrides_read = {}  # as they were on the disk
        self.certificates = {}  # of wsgi_tls.texts
        self.nginx_files = None  # wsgi_nginx.on_disk
        self.nginx_built = None  # wsgi_nginx.built

    def _bytecode_cache(self):
        """Most of what a run with nothing to do costs would be to compile the templates once more."""
        if not os.path.isdir(self.opts.get("cachedir") or ""):
            return None
        path = os.path.join(self.opts["cachedir"], "wsgi_templates")
        folder(path, 0o700, os.geteuid(), os.getegid())
        return jinja2.FileSystemBytecodeCache(path)

    @classmethod
    def of_run(cls, context, salt, pillar, grains, opts, saltenv):
        """
        The run's host, made at its first use.

        context : dict
            ``__context__``, which Salt shares among all modules of a run.

        Returns a ``Host``.
        """
        host = context.get("wsgi.host")
        if host is None:
            host = context["wsgi.host"] = cls(salt, pillar, grains, saltenv or "base", opts)
        host.salt = salt
        return host

    @cached_property
    def family(self):
        """What ``wsgi/os_family/<family>.yaml`` says; a ``Problem`` where there is none."""
        name = self.grains["os_family"]
        return self._yaml(f"os_family/{name}.yaml", f"the OS family {name} is not supported")

    @cached_property
    def servers(self):
        """The rows of ``wsgi/servers.yaml``."""
        return self._yaml("servers.yaml")

    @cached_property
    def settings(self):
        """The run's ``wsgi_settings.Settings``."""
        defaults, system = self._yaml("defaults.yaml"), self.grains.get("osfinger", "")
        return wsgi_settings.load(self.pillar.get("wsgi"), defaults, self.family, self.servers, system)

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

    def template_text(self, template):
        """The source of one of the formula's templates, for ids that must change with it."""
        self._templates.get_template(template)
        return self._template_text[template]

    def served(self, url):
        """The local path of a file that Salt serves, asked for once; empty where there is none."""
        if url not in self._served:
            self._served[url] = self.salt["cp.cache_file"](url, self.saltenv)
        return self._served[url]

    def source_files(self, url):
        """
        The files of a folder that Salt serves.

        url : str
            ``salt://folder``.

        Returns two dicts: paths in the folder to local paths, and to SHA-256 sums. Raises
        ``Problem`` when there is none.
        """
        if url not in self._sources:
            folder = url[len("salt://") :].strip("/")
            files = {}
            for path in self.salt["cp.list_master"](self.saltenv, prefix=folder):
                inner = os.path.relpath(path, folder)
                parts = inner.split("/")
                if parts[0] == ".." or "__pycache__" in parts or ".git" in parts:
                    continue
                files[inner] = self.salt["cp.cache_file"](f"salt://{path}", self.saltenv)
            if not files or not all(files.values()):
                raise Problem(f"{url} holds no file; is it below a folder in file_roots, or in gitfs?")
            self._sources[url] = files, {inner: sha256(path) for inner, path in sorted(files.items())}
        return self._sources[url]

    @cached_property
    def listening(self):
        """The paths of the unix sockets that something listens on, as the run first saw them."""
        return {path for path, listens in unix_sockets() if listens}

    def known_apps(self):
        """The names of the apps that have something on this machine that runs."""
        return sorted(name for name in listdir(ETC) if os.path.isfile(f"{ETC}/{name}/app.json"))

    def _template(self, name):
        with salt.utils.files.fopen(self._cached(name)) as file:
            self._template_text[name] = file.read()
        return self._template_text[name]

    def _yaml(self, name, otherwise=None):
        with salt.utils.files.fopen(self._cached(name, otherwise)) as file:
            return salt.utils.yaml.safe_load(file)

    def _cached(self, name, otherwise=None):
        path = self.served(f"salt://wsgi/{name}")
        if not path:
            raise Problem(otherwise or f"salt://wsgi/{name} is not served")
        return path


class _Macros:
    """A template's macros, as attributes."""

    def __init__(self, environment, path, values):
        self._make = lambda: environment.get_template(path).make_module(values, shared=True)

    @cached_property
    def _module(self):
        return self._make()

    def __getattr__(self, macro):
        return getattr(self._module, macro)


def unix_sockets():
    """
    The unix sockets of this machine that have a path.

    Yields ``(path, listens)``; a connection stands there under its server's path, from the
    moment of connect(), accepted or not.
    """
    with open("/proc/net/unix") as table:
        next(table)
        for line in table:
            fields = line.split(maxsplit=7)
            if len(fields) == 8:
                # __SO_ACCEPTCON of linux/net.h marks a listening socket.
                yield fields[7].rstrip("\n"), bool(int(fields[3], 16) & 0x10000)


def pids():
    """The PIDs of all processes that there are, a list of int."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def write(path, text, mode, uid=0, gid=0):
    """
    Put a file in place whole, never readable by more than in the end.

    path, text : str
    mode : int
        Its permission bits.
    uid, gid : int
        Its owner.
    """
    handle, staged = tempfile.mkstemp(prefix=".", dir=os.path.dirname(path))
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchown(handle, uid, gid)
            os.fchmod(handle, mode)
        os.rename(staged, path)
    except BaseException:
        os.unlink(staged)
        raise


def folder(path, mode, uid=0, gid=0):
    """Make a folder with these permission bits and this owner, or give them to the one there."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path)
    found = os.lstat(path)
    if (found.st_uid, found.st_gid) != (uid, gid):
        os.chown(path, uid, gid, follow_symlinks=False)
    if found.st_mode & 0o7777 != mode:
        os.chmod(path, mode)


def link(target, path, uid=0, gid=0):
    """Make a symbolic link, or point the one there elsewhere, in one atomic step."""
    staged = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(staged)
    os.symlink(target, staged)
    os.chown(staged, uid, gid, follow_symlinks=False)
    os.rename(staged, path)


def remove(path):
    """Remove a file, a link or a whole folder, if it is there; returns whether it was."""
    if not os.path.lexists(path):
        return False
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):  # another hand was quicker
            os.unlink(path)
    return True


def read(path):
    """The text of a file, or None where there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):  # the latter from /proc
        return None


def sha256(path):
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def digest(*parts):
    """A short id: ten hexadecimal digits of the SHA-256 of some JSON-able values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:10]


def tree_sums(path):
    """The SHA-256 sums of the files in a folder, by their paths in it; of a link, where it leads."""
    sums = {}
    for parent, folders, files in os.walk(path):
        for name in files + [folder for folder in folders if os.path.islink(f"{parent}/{folder}")]:
            found = f"{parent}/{name}"
            inner = os.path.relpath(found, path)
            sums[inner] = f"-> {os.readlink(found)}" if os.path.islink(found) else sha256(found)
    return dict(sorted(sums.items()))


def group(path):
    """The numeric id of a file's group, or None where there is no file."""
    try:
        return os.lstat(path).st_gid
    except FileNotFoundError:
        return None


def own(path, uid, gid):
    """
    Give a tree to its owner, from the top, following no link: whoever owned it before can't
    change any more what is below what has been given away. Nobody else may write to it.
    """
    os.chown(path, uid, gid, follow_symlinks=False)
    for parent, folders, files in os.walk(path):
        for name in folders + files:
            inner = os.path.join(parent, name)
            os.chown(inner, uid, gid, follow_symlinks=False)
            if not os.path.islink(inner):
                os.chmod(inner, os.lstat(inner).st_mode & 0o755)


def read_json(path):
    """The contents of a JSON file, or None where there is none."""
    text = read(path)
    return None if text is None else json.loads(text)


def listdir(path):
    """The names in a folder; none where there is no folder."""
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []
