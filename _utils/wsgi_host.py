"""
The machine that is being converged: where things lie on it, and what is there now.

One ``Host`` serves a whole Salt run, so that pillar is validated, each template compiled
and each table of the kernel read once, however many apps there are.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import secrets
import shutil
import signal
import subprocess
from functools import cached_property

import jinja2
import salt.utils.yaml
import wsgi_pillar
import wsgi_served
import wsgi_settings
import wsgi_source_tree
from wsgi_errors import Problem

ETC = "/etc/wsgi"  # <app>/<generation>: configuration and environment
SRV = "/srv/wsgi"  # <app>/releases, <app>/environments
RUN = "/run/wsgi"  # <app>/<generation>: sockets, as nginx finds them; <app>/<generation>.own: the app's
LOG = "/var/log/wsgi"  # <app>/<generation>.log
LIB = "/var/lib/wsgi"  # live/<app>: the link to the live generation's sockets; home/<app>
TMPFILES = "/etc/tmpfiles.d"
# What is being written has such a name until it is whole. Of a run that was killed it stays, for `sweep`.
STAGED = ".wsgi-staged-"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

logger = logging.getLogger(__name__)
# Records that could not be read and are still there, path to a sentence; and the sentences that no state has told yet.
damaged = {}
_untold = []


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
        self.served = wsgi_served.Served(self)
        # What others look up once per run: sources and interpreters; what is wanted of each app, and said instead of pillar.
        self.resolved = {}
        self.wanted = {}
        self.overrides = {}
        self.overrides_read = {}  # as they were on the disk
        self.certificates = {}  # of wsgi_tls.texts
        self.nginx_files = self.nginx_version = None  # wsgi_nginx.on_disk
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

        Returns a ``Host``. Raises ``Problem`` as another user than root.
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

        Raises ``Problem`` as another user than root.
        """
        if os.geteuid():
            raise Problem(f"wsgi must run as root, and this is the user with the UID {os.geteuid()}: use sudo")
        damaged.clear()
        _untold.clear()
        return cls(salt, pillar, grains, saltenv or "base", opts)

    @cached_property
    def family(self):
        """What ``wsgi/os_family/<family>.yaml`` says; a ``Problem`` where there is none."""
        name = self.grains["os_family"]
        return self._yaml(f"os_family/{name}.yaml", f"the OS family {name} is not supported")

    @cached_property
    def servers(self):
        """The rows of ``wsgi/servers.yaml``, with what ``wsgi/os_family/<family>.yaml`` says of this system's."""
        on_system = self.family.get("servers", {}).get(self.grains.get("osfinger"), {})
        return wsgi_settings.merge(self._yaml("servers.yaml"), on_system)

    @cached_property
    def settings(self):
        """The run's ``wsgi_settings.Settings``."""
        defaults, system = self._yaml("defaults.yaml"), self.grains.get("osfinger", "")
        said = wsgi_pillar.plain(self.pillar.get("wsgi"))
        return wsgi_settings.load(said, defaults, self.family, self.servers, system)

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
        """Return the text of one of the formula's files; raises ``Problem`` where it is not served."""
        path = self.served.file(url)
        if not path:
            raise Problem(self.served.missing(url))
        return read(path)

    @cached_property
    def listening(self):
        """The paths of the unix sockets that something listens on, as the run first saw them."""
        return {path for path, listens in unix_sockets() if listens}

    @staticmethod
    def known_apps():
        """The names of the apps that have something on this machine that runs."""
        return sorted(name for name in listdir(ETC) if os.path.isfile(f"{ETC}/{name}/app.json"))

    def _yaml(self, name, otherwise=None):
        url = f"salt://wsgi/{name}"
        if otherwise and not self.served.file(url):
            raise Problem(otherwise)
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


def unix_sockets():
    """
    The unix sockets of this machine that have a path.

    Yields ``(path, listens)``; a connection stands there under its server's path, from the
    moment of connect(), accepted or not.
    """
    # A path may hold any bytes.
    with open("/proc/net/unix", errors="surrogateescape") as table:
        next(table)
        for line in table:
            fields = line.split(maxsplit=7)
            if len(fields) == 8:
                # __SO_ACCEPTCON of linux/net.h marks a listening socket.
                yield fields[7].rstrip("\n"), bool(int(fields[3], 16) & 0x10000)


def pids() -> "list[int]":
    """
    Return the PIDs of this machine's processes.

    A host sees those of its containers in ``/proc``, too: they are another machine's, and are left out.
    """
    return [pid for pid in all_pids() if is_of_this_machine(status_of(pid))]


def all_pids() -> "list[int]":
    """Return the PIDs of all processes that can be seen, containers' among them."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def kill(pid: int, is_meant) -> None:
    """
    Kill a process, and no other that took over its PID.

    is_meant : callable
        Takes the PID; asked once the PID can't be given to another process unnoticed.
    """
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except (AttributeError, OSError):  # Salt's Python, or the kernel, has no such call
        handle = None
    try:
        if is_meant(pid):
            with contextlib.suppress(ProcessLookupError):
                if handle is None:
                    os.kill(pid, signal.SIGKILL)
                else:
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
    finally:
        if handle is not None:
            os.close(handle)


def status_of(pid) -> dict:
    """Return the fields of ``/proc/<pid>/status``, bytes to bytes; an empty dict where the process is gone."""
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            return dict(line.split(b":", 1) for line in status.read().splitlines() if b":" in line)
    except (FileNotFoundError, ProcessLookupError):
        return {}


def is_of_this_machine(status: dict) -> bool:
    """Return whether a process with this ``status_of`` is there and in the PID namespace that ``/proc`` is of."""
    # It has a PID in each namespace from that one on: in a container, two.
    return bool(status) and len(status.get(b"NSpid", b"0").split()) == 1


def is_local(pid, status: dict) -> bool:
    """
    Return whether a process with this ``status_of`` is this machine's, in whatever PID namespace.

    Unlike a container, what an ordinary user put into a PID namespace has a user namespace of its own, too: nothing
    else lets such a user make one.
    """
    return is_of_this_machine(status) or _uid_map(pid) != _uid_map("self")


def _uid_map(pid):
    return read(f"/proc/{pid}/uid_map")


def write(path, text, mode, uid=0, gid=0):
    """
    Put a file in place whole, never readable by more than in the end. It is on the disk when this returns.

    path, text : str
    mode : int
        Its permission bits.
    uid, gid : int
        Its owner.
    """
    with _replacing(path) as staged:
        handle = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchown(handle, uid, gid)
            os.fchmod(handle, mode)
            os.fsync(handle)
        set_aside(path)


@contextlib.contextmanager
def _replacing(path):
    """Yield a name beside a path. What is made under it takes the place of what is there, in one atomic step."""
    folder = os.path.dirname(path)
    pid = os.getpid()
    staged = f"{folder}/{STAGED}{pid}-{_born(pid)}-{secrets.token_hex(4)}"
    try:
        yield staged
        os.rename(staged, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(staged)
        raise
    # It is in place whatever the disk says to this.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sweep(*folders):
    """Remove what runs that were killed were just writing in some folders. Other runs may be writing there."""
    for folder in folders:
        for name in listdir(folder):
            if name.startswith(STAGED):
                pid, born, _ = f"{name[len(STAGED) :]}--".split("-", 2)
                if not pid.isdigit() or _born(pid) != born:
                    remove(f"{folder}/{name}")


def _born(pid):
    """When a process began, which tells it from another one that has its PID later; None where it is gone."""
    stat = read(f"/proc/{pid}/stat", errors="replace")  # a process may call itself anything
    return stat and stat.rpartition(")")[2].split()[19]


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
    with _replacing(path) as staged:
        os.symlink(target, staged)
        os.chown(staged, uid, gid, follow_symlinks=False)


def remove(path):
    """Remove a file, a link or a whole folder, if it is there; returns whether it was."""
    if not os.path.lexists(path):
        return False
    if os.path.isdir(path) and not os.path.islink(path):
        _remove_tree(path)
    else:
        with contextlib.suppress(FileNotFoundError):  # another hand was quicker
            os.unlink(path)
    return True


def _remove_tree(path):
    try:
        shutil.rmtree(path)
    except (RecursionError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EMFILE:
            raise
        # A build can leave more folders in each other than Python can descend into.
        done = subprocess.run(["rm", "-rf", "--", path], check=False, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise Problem(f"{path} could not be removed: {done.stderr.strip()[-500:]}") from None


def holds(path, text, mode):
    """Return whether a regular file has this text and these permission bits, and is root's."""
    with contextlib.suppress(OSError), wsgi_source_tree.regular(path) as file:
        found = os.fstat(file.fileno())
        there = file.read(len(text.encode()) + 1)
        return (found.st_uid, found.st_gid, found.st_mode & 0o7777, there) == (0, 0, mode, text.encode())
    return False


def read(path, errors="strict"):
    """The text of a file, or None where there is none; ``errors`` is for bytes that are no UTF-8, as ``open`` has it."""
    try:
        with open(path, encoding="utf-8", errors=errors) as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):  # the latter from /proc
        return None


def digest(*parts):
    """A short id: ten hexadecimal digits of the SHA-256 of some JSON-able values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:10]


def group(path):
    """The numeric id of a file's group, or None where there is no file."""
    try:
        return os.lstat(path).st_gid
    except FileNotFoundError:
        return None


def read_json(path, needs=None, lost="it is made again"):
    """
    Read a record.

    path : str
    needs : dict
        The keys that a whole one has, to their types.
    lost : str
        What follows where it is damaged, for the administrator.

    Returns a dict; None where there is none, or where it is damaged. That is logged, told by the next
    state, and left as it is until ``set_aside`` or ``write``.
    """
    text = None
    try:
        text = read(path)
        if text is None:
            return None
        found = json.loads(text)
        lacking = "is no object" if not isinstance(found, dict) else ""
        for key, type_ in {} if lacking else (needs or {}).items():
            if not isinstance(found.get(key), type_):
                lacking = f"has no {key!r}"
        if not lacking:
            return found
        why = f"what it holds {lacking}"
    except (ValueError, RecursionError) as error:
        why = "it is empty" if text == "" else str(error)
    note_damage(path, why, lost)
    return None


def note_damage(path, why, lost):
    """
    Remember that a record is damaged, once per run.

    path, why, lost : str
        Which one; what is wrong with it, with nothing of its contents; what follows from that.
    """
    if path not in damaged:
        damaged[path] = f"{path} is damaged ({why}): {lost}."
        _untold.append(damaged[path])
        logger.warning(damaged[path])


def set_aside(path):
    """Give a record that was found damaged another name, in the place of the one that was so before."""
    if damaged.pop(path, None):
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, f"{path}.damaged")


def told_damage():
    """The sentences on damaged records that no state has told yet; from now on it has."""
    found = [*_untold]
    _untold.clear()
    return found


def live_id(name):
    """The id of the generation that receives an app's traffic, or None."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.basename(os.readlink(f"{LIB}/live/{name}"))
    return None


def listdir(path):
    """The names in a folder; none where there is no folder."""
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []
