"""Test nginx's configuration, and explain to which app or pillar key a failure belongs."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

from .. import files
from ..errors import WsgiError
from ..host import Host
from ..paths import PATH
from ..redact import tail
from . import nginx_tree
from .site_files import FOLDERS, SiteFiles, members, text_of

# nginx's message for an error: the file and the line.
PLACE = re.compile(r"\[emerg\] .* in (/\S+):(\d+)$", re.MULTILINE)

# A path in such a message that has no line.
QUOTED = re.compile(r'"(/[^"]+)"')

# The user in the output of `nginx -T`, which begins with the main file.
USER = re.compile(r"^\s*user\s+([^\s;]+)", re.MULTILINE)

# The comment above raw directives is their pillar key.
RAW_CONTEXTS = ("http", "server", "location")

RAW = re.compile(rf"\s*# (wsgi:(?:apps:[a-z0-9_-]+:)?nginx:(?:{'|'.join(RAW_CONTEXTS)}))$")

# Mounts the staged files in the place of the live ones, in a mount namespace that ends with the command.
IN_PLACE = 'mount -n --bind "$1" "$2" && mount -n --bind "$3" "$4" || exit 70; shift 4; exec "$@"'

NOT_MOUNTED = 70


class Refused(WsgiError):
    """
    nginx does not accept its configuration.

    message : str
        nginx's own message.
    texts : dict
        Our files that nginx has read, paths to text.
    """

    def __init__(self, problem: str, message: str, texts: dict) -> None:
        super().__init__(problem)
        self.message = message
        self.texts = texts


def test(host: Host, installed: dict, staged: str | None = None, changes: Mapping[str, Any] | None = None) -> None:
    """
    Have nginx test its configuration.

    installed : dict
        Our files that are there, paths to text.
    staged : str
        The path of a tree that nginx is to read in the place of the live one.
    changes : dict
        The changes in that tree, paths to content.

    Raises ``Refused``, or ``WsgiError`` where nginx is missing or an nginx that is not managed does not fit.
    """
    nginx, manages = shutil.which("nginx", path=PATH), host.settings.nginx["manage"]
    if nginx is None:
        raise WsgiError("nginx is not installed" + ("" if manages else "; wsgi:nginx:manage: false leaves that to you"))
    changes, include = dict(changes or {}), SiteFiles(host).include
    with contextlib.ExitStack() as stack:
        prefix = stack.enter_context(_in_place(host, staged, changes.get(include))) if staged else []
        command = [*prefix, nginx, "-t" if manages else "-T"]
        env = {**os.environ, "PATH": PATH}
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=env, check=False)
    if staged and (done.returncode == NOT_MOUNTED or done.stderr.startswith("unshare: ")):
        raise WsgiError(f"nginx could not test the new files, which needs a mount namespace: {tail(done.stderr)}")
    if done.returncode:
        texts = {**installed, **{path: text_of(content) for path, content in changes.items()}}
        changed = [text for text in map(text_of, changes.values()) if text]
        raise Refused(f"{explain_failure(host, done.stderr, texts, changed)}:\n{tail(done.stderr)}", done.stderr, texts)
    if not manages:
        _check_unmanaged(host, include, done.stdout)


def _check_unmanaged(host, include, configuration):
    """Raise ``WsgiError`` where an nginx that is not managed lacks what the sites need."""
    family = host.family["nginx"]
    if f"# configuration file {include}:" not in configuration:
        raise WsgiError(
            f"wsgi:nginx:manage: false, and nginx does not read {include}: "
            f"it needs `include {family['conf_dir']}/*.conf;` in its http block"
        )
    user = USER.search(configuration)
    if user and user[1] != family["user"]:
        raise WsgiError(
            f"wsgi:nginx:manage: false, and nginx runs as {user[1]!r}, but the sockets of the apps belong to "
            f"{family['user']!r}: it needs `user {family['user']};`"
        )


@contextlib.contextmanager
def _in_place(host, staged, include_text):
    """Yield the beginning of a command whose program finds a staged tree in the place of the live one."""
    own, include, other = SiteFiles(host).own_dir, SiteFiles(host).include, f"{staged}.conf"
    with contextlib.ExitStack() as undone:
        # A mount needs something to be mounted on; nginx reads none of it as long as it is empty.
        if not os.path.isdir(own):
            files.remove(own)  # a dangling link
            os.mkdir(own, 0o755)
            undone.callback(files.remove, own)
        if not os.path.exists(include):
            os.makedirs(os.path.dirname(include), mode=0o755, exist_ok=True)
            nginx_tree.create(include, "")
            undone.callback(files.remove, include)
        nginx_tree.create(other, include_text or nginx_tree.read(include))
        undone.callback(files.remove, other)
        namespace = ["unshare", "--mount", "--propagation", "private", "sh", "-c", IN_PLACE, "sh"]
        yield [*namespace, staged, own, other, include]


def explain_failure(host: Host, message: str, texts: dict, changed: list) -> str:
    """
    Return what nginx refuses: the pillar key of the raw directives that its message points to, if it does so.

    message : str
        nginx's own message.
    texts : dict
        Our files that nginx has read, paths to text.
    changed : list of str
        The texts of those that have changed; without a place in the message, their raw directives are named.
    """
    place = PLACE.search(message)
    key = place and _raw_key(host, texts.get(place[1]), int(place[2]))
    if key:
        return f"{key}: nginx -t refuses it"
    keys = dict.fromkeys(key for _, key in _raw_keys("\n".join(changed).split("\n")))
    return "nginx -t refuses the configuration" + (f", which has {' and '.join(keys)}" if keys else "")


def refused_apps(host: Host, refused: Refused) -> list:
    """Return the names of the apps whose file nginx has refused; none for a shared file or a file that is not ours."""
    own, place, texts = SiteFiles(host).own_dir, PLACE.search(refused.message), refused.texts
    if place:
        key = _raw_key(host, texts.get(place[1]), int(place[2]))
        if key:
            return [key.split(":")[2]] if key.startswith("wsgi:apps:") else []
        found = [place[1]]
    else:
        named = QUOTED.findall(refused.message)
        found = [path for path, text in texts.items() if text and any(f" {name};" in text for name in named)]
    apps: list[str] = []
    for path in found:
        kind, _, name = path[len(own) + 1 :].rpartition("/") if path.startswith(f"{own}/") else ("", "", "")
        if kind == "sites":
            site = host.settings.sites.get(name[: -len(".conf")])
            apps += members(texts.get(path) or "") or (site.apps if site else [])
        elif kind in FOLDERS:
            apps.append(name.rpartition(".")[0])
    return list(dict.fromkeys(apps))


def _raw_key(host, text, line):
    """Return the pillar key of the raw directives that a line of a file belongs to, or None."""
    for number, key in _raw_keys((text or "").split("\n")[:line])[-1:]:
        if line - number <= _raw_lines(host, key):
            return key
    return None


def _raw_keys(lines):
    """Return the line numbers and pillar keys of the comments above raw directives."""
    found = [(number, RAW.match(line)) for number, line in enumerate(lines, 1)]
    return [(number, match[1]) for number, match in found if match]


def _raw_lines(host, key):
    """Return the number of lines of the raw directives under a pillar key."""
    parts = key.split(":")
    settings = host.settings.nginx if parts[1] == "nginx" else host.settings.apps.get(parts[2], {}).get("nginx", {})
    return len(settings.get(parts[-1], "").strip().split("\n"))
