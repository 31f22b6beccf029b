"""
Files that nginx serves itself: published folders and files of an app's releases, and folders of the machine.

nginx has no access to a release. So its public files are published as hard links below
``/srv/wsgi/<app>/static/<path>/``: a tree for each release that went live, and the link ``live`` to one of the trees.
A tree also has the files of older releases whose names are not in its own release, because pages of an old
generation refer to them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import re
import stat
from collections.abc import Mapping
from typing import Any

from .. import files
from ..app.release import Release
from ..build import ownership
from ..build.ownership import FILE
from ..errors import WsgiError
from ..host import Host
from ..paths import LIB, SRV
from ..pillar import sites

# The most files of one path of a release; more are a mistake, or links in a loop.
MOST_FILES = 100_000

COMPRESSED = (".gz", ".br")


def root(name: str) -> str:
    """Return the path of an app's published files."""
    return f"{SRV}/{name}/static"


def served(name: str, app: Mapping[str, Any]) -> dict:
    """
    Return the variables of the templates for the files of an app.

    Returns a dict: ``paths``, a list of dicts (``location``: the modifier of nginx's location; ``prefix``; ``alias``;
    ``internal``; ``caching``: public or private; ``unwanted``: a regular expression of paths that are not served),
    and ``pages``, a dict of statuses to files.
    """
    paths = []
    for kind in ("static", "internal"):
        for prefix, path in sorted(app[kind].items()):
            folder, seen = prefix.endswith("/"), sites.mounted(app, prefix)
            paths.append(
                {
                    "location": "^~" if folder else "=",
                    "prefix": seen,
                    # Both end in a slash or none does; otherwise /static../ would lead out of the folder.
                    "alias": _place(name, path, folder),
                    "internal": kind == "internal",
                    "caching": "private" if app["basic_auth"] or app["allow"] else "public",
                    "unwanted": rf"^{re.escape(seen)}(.*/)?\." if folder and path.startswith("/") else None,
                }
            )
    return {"paths": paths, "pages": {code: _place(name, path) for code, path in sorted(app["error_pages"].items())}}


def check(name: str, app: Mapping[str, Any], release: Release) -> None:
    """
    Raise ``WsgiError`` where a release that was never live lacks a path that nginx is to serve.

    release : Release
    """
    if not release.record.get("live"):
        _refuse(_lacking(name, app, release))


def outdated(name: str, app: Mapping[str, Any], release: Release) -> list:
    """Return the paths that nginx does not serve from this release yet."""
    return [path for path in release_paths(app) if (_live(name, path) or "").rpartition("-")[0] != release.id]


def build(host: Host, name: str, app: Mapping[str, Any], release: Release) -> dict[str, str]:
    """
    Make the trees that ``publish`` links to, where they are missing.

    Returns a dict of paths to trees, without the paths whose live tree is of this release. Raises ``WsgiError`` where
    neither this release nor the live tree has a path.
    """
    wanted = outdated(name, app, release)
    unknown = {path for path in wanted if _live(name, path) is None}
    if unknown:
        _refuse({path: why for path, why in _lacking(name, app, release).items() if path in unknown})
    others = release.others if wanted else []
    id = f"{release.id}-{files.digest([other.id for other in others])}"
    trees = {path: f"{_folder(name, path)}/{id}" for path in wanted}
    if trees:
        # Only nginx's user has access.
        files.ensure_dir(root(name), 0o750, 0, _nginx(host).pw_gid)
    for path, tree in trees.items():
        if not os.path.isdir(tree):
            files.ensure_dir(_folder(name, path), 0o755)
            _link_all(_union([release, *others], path), tree)
    return trees


def publish(host: Host, name: str, app: Mapping[str, Any], release: Release) -> None:
    """Have nginx serve the files of a release, and those of older releases whose names it does not have."""
    for path, tree in build(host, name, app, release).items():
        files.replace_symlink(os.path.basename(tree), f"{_folder(name, path)}/live")


def prune(name: str) -> None:
    """Remove the trees that are not live."""
    for folder in files.list_dir(root(name)):
        folder = f"{root(name)}/{folder}"
        live = _target(folder)
        for tree in files.list_dir(folder):
            if tree not in ("live", live):
                files.remove(f"{folder}/{tree}")


def forget(name: str, configuration: str) -> None:
    """
    Remove the published files of paths that nginx's configuration does not name any more.

    configuration : str
        The texts of all files that nginx has loaded.
    """
    for folder in files.list_dir(root(name)):
        if f" {root(name)}/{folder}/live/" not in configuration:
            files.remove(f"{root(name)}/{folder}")


def warnings(host: Host, name: str, app: Mapping[str, Any]) -> list:
    """Return sentences about paths of the machine that nginx cannot read, each with its pillar key."""
    user = host.family["nginx"]["user"]
    found = []
    for key, path, folder in _said(app):
        why = path.startswith("/") and _unreadable(_nginx(host), path.rstrip("/"), folder)
        if why:
            found.append(f"wsgi:apps:{name}:{key}: nginx's user {user} cannot read {path!r}: {why}")
    return found


def prepare_home(host: Host, name: str, app: Mapping[str, Any], user: pwd.struct_passwd) -> None:
    """
    Make an app's home, which only the app can write to, and the folders in it that nginx is to serve.

    user : pwd.struct_passwd
        The app's user.

    nginx gets access to these folders, with all files in them and new ones.
    """
    home, inner = _home(name), _in_home(name, app)
    if not inner:
        return files.ensure_dir(home, 0o750, user.pw_uid, user.pw_gid)
    nginx = _nginx(host).pw_gid
    files.ensure_dir(home, 0o710, user.pw_uid, nginx)
    for path in inner:
        # The app may change its home meanwhile, so no link in it is followed.
        with contextlib.ExitStack() as opened:
            here = _enter(opened, home)
            for part in path.split("/"):
                os.fchmod(here, stat.S_IMODE(os.fstat(here).st_mode) | 0o010)
                os.fchown(here, -1, nginx)
                here = _enter(opened, part, here, user.pw_uid)
            _share(here, f"{home}/{path}", user.pw_uid, nginx)


def home_differs(host: Host, name: str, app: Mapping[str, Any]) -> bool:
    """Return whether the folders in an app's home need ``prepare_home``. Their files are not checked."""
    return any(files.group_of(f"{_home(name)}/{path}") != _nginx(host).pw_gid for path in _in_home(name, app))


def _said(app):
    """Yield the key, the path and whether it is a folder, for each path that nginx is to serve."""
    for kind in ("static", "internal"):
        for prefix, path in sorted(app[kind].items()):
            yield f"{kind}:{prefix}", path, prefix.endswith("/")
    for code, path in sorted(app["error_pages"].items()):
        yield f"error_pages:{code}", path, False


def _home(name):
    return f"{LIB}/home/{name}"


def _in_home(name, app):
    """Return the folders to serve in an app's home, relative to it."""
    paths = [path.rstrip("/") for _, path, folder in _said(app) if folder]
    return [os.path.relpath(path, _home(name)) for path in paths if path.startswith(f"{_home(name)}/")]


def release_paths(app: Mapping[str, Any]) -> list:
    """Return the paths in an app's releases that nginx is to serve."""
    return list(dict.fromkeys(path.rstrip("/") for _, path, _ in _said(app) if not path.startswith("/")))


def _lacking(name, app, release):
    """Return the paths to serve that a release lacks, with a sentence each."""
    found = {}
    for key, path, folder in _said(app):
        if path.startswith("/"):
            continue
        real = _real(release, path)
        if not real or not (os.path.isdir if folder else os.path.isfile)(real):
            what = "folder" if folder else "file"
            found[path.rstrip("/")] = (
                f"wsgi:apps:{name}:{key}: {path!r} is not a {what} of release {release.id}; "
                "does a command of hooks:build have to make it?"
            )
    return found


def _refuse(lacking):
    if lacking:
        raise WsgiError("\n".join(lacking.values()))


def _folder(name, path):
    # No path has a colon.
    return f"{root(name)}/{path.rstrip('/').replace('/', ':')}"


def _place(name, path, folder=False):
    """Return the path where nginx reads a path to serve."""
    place = path.rstrip("/")
    if not path.startswith("/"):
        place = f"{_folder(name, path)}/live" + ("" if folder else f"/{os.path.basename(path)}")
    return f"{place}/" if folder else place


def _live(name, path):
    """Return the name of the live tree (the release, ``-``, and a hash of the older releases), or None."""
    return _target(_folder(name, path))


def _target(folder):
    try:
        return os.readlink(f"{folder}/live")
    except FileNotFoundError:
        return None


def _union(releases, path):
    """Return the files of a path in some releases, names to files; the first release with a name has precedence."""
    found: dict[str, str] = {}
    for release in releases:
        taken = {*found}
        folders = {folder for name in taken for folder in _above(name)}
        for name, file in _files(release, path):
            # A file and its compressed forms come from one release.
            plain = name[:-3] if name.endswith(COMPRESSED) else name
            together = {plain, *(plain + suffix for suffix in COMPRESSED)}
            if not taken & {*together, *_above(name)} and name not in folders:
                found[name] = file
    return found


def _above(name):
    """Return the folders of a file, relative like its name."""
    parts = name.split("/")
    return ["/".join(parts[:length]) for length in range(1, len(parts))]


def _files(release, path):
    """Yield the name and the real path of each file of a path in a release; links that lead out of it are skipped."""
    real = _real(release, path)
    if real and os.path.isdir(real):
        yield from _walk(release, real, "", (real,), itertools.count(1))
    elif real and os.path.isfile(real):
        yield os.path.basename(path), real


def _walk(release, folder, above, entered, seen):
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        # Hidden files are not public: .git, .env, .htpasswd.
        if entry.name.startswith("."):
            continue
        if next(seen) > MOST_FILES:
            raise WsgiError(
                f"{entered[0]} contains more than {MOST_FILES} files; is this the folder that nginx should serve?"
            )
        real = _real(release, entry.path) if entry.is_symlink() else entry.path
        if real and os.path.isfile(real):
            yield f"{above}{entry.name}", real
        elif real and os.path.isdir(real) and real not in entered:
            yield from _walk(release, real, f"{above}{entry.name}/", (*entered, real), seen)


def _real(release, path):
    """Return the real path of a path in a release; None outside of its code and environment, or where it is missing."""
    real = os.path.realpath(os.path.join(release.code, path))
    roots = (release.code, f"{release.path}/environment")
    inside = any(real.startswith(f"{os.path.realpath(root)}/") for root in roots)
    return real if inside and os.path.exists(real) else None


def _link_all(sources, tree):
    staged = f"{tree}.new"
    files.remove(staged)
    files.ensure_dir(staged, 0o755)
    made = set()
    for name, file in sources.items():
        for folder in _above(name):
            if folder not in made:
                files.ensure_dir(f"{staged}/{folder}", 0o755)
                made.add(folder)
        handle = os.open(file, FILE)
        try:
            mode = os.fstat(handle).st_mode
            if not mode & stat.S_IROTH:
                os.fchmod(handle, stat.S_IMODE(mode) | 0o444)
        finally:
            os.close(handle)
        os.link(file, f"{staged}/{name}")
    os.rename(staged, tree)


def _nginx(host):
    return pwd.getpwnam(host.family["nginx"]["user"])


def _unreadable(user, path, folder):
    """Return why a user cannot read a path of the machine, judging by its permission bits, or None."""
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    parts = path.split("/")
    for length in range(1, len(parts) + 1):
        part = "/".join(parts[:length]) or "/"
        try:
            found = os.stat(part)
        except FileNotFoundError:
            return f"{part} does not exist"
        is_folder = folder or length < len(parts)
        if stat.S_ISDIR(found.st_mode) != is_folder:
            return f"{part} is {'not a' if is_folder else 'a'} folder"
        wanted = 0o1 if is_folder else 0o4
        shift = 6 if found.st_uid == user.pw_uid else 3 if found.st_gid in groups else 0
        if not found.st_mode >> shift & wanted and not _has_list(part):
            return f"{part} has mode {stat.S_IMODE(found.st_mode):04o}"
    return None


def _has_list(path):
    """Return whether an access control list may grant more than the permission bits."""
    with contextlib.suppress(OSError):
        return "system.posix_acl_access" in os.listxattr(path)
    return False


def _enter(opened, name, above=None, uid=0):
    """Open a folder in an open folder; make it for a user where it is missing."""
    try:
        handle = os.open(name, os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
        opened.callback(os.close, handle)
    except FileNotFoundError:
        os.mkdir(name, 0o700, dir_fd=above)
        handle = _enter(opened, name, above)
        os.fchown(handle, uid, -1)
    return handle


def _share(folder, path, uid, gid):
    """Give a user's files in an open folder to a group, and all files that are made in it later."""
    if os.fstat(folder).st_gid == gid:
        return
    for entry, found in itertools.chain(ownership.entries(folder, path), [(folder, os.fstat(folder))]):
        if found.st_uid == uid:
            ownership.change_owner(entry, -1, gid)
            if stat.S_ISDIR(found.st_mode):
                # New files and folders inherit the group by the set-group-id bit.
                os.fchmod(entry, stat.S_IMODE(found.st_mode) | 0o2050)
