"""
What nginx itself serves of an app: folders and files of its releases, published, and such of the
machine, as they are.

nginx may not look into a release. So what is public of it stands below
``/srv/wsgi/<app>/static/<path>/`` as hard links: a tree for each release that went live, and
``live``, a link to one of them. A tree has the other releases' files, too, where its own release has
none of that name: a page that an old generation made finds what it names.
"""

import contextlib
import itertools
import os
import pwd
import re
import stat

from .. import files
from ..build import ownership
from ..build.ownership import FILE
from ..errors import Problem
from ..paths import LIB, SRV
from ..pillar import sites

# Of one path of a release: more are a mistake, or links that lead to links.
MOST_FILES = 100_000

COMPRESSED = (".gz", ".br")


def root(name):
    """Where an app's published files are."""
    return f"{SRV}/{name}/static"


def served(name, app):
    """
    What the templates know of it.

    name : str
        The app.
    app : dict
        As ``Settings.apps`` holds it.

    Returns a dict: ``paths``, a list of dicts (``location``: how nginx's own begins; ``prefix``;
    ``alias``; ``internal``; ``unwanted``: what is not served of the machine's folders, a regular
    expression), and ``pages``, a dict of statuses to files.
    """
    paths = []
    for kind in ("static", "internal"):
        for prefix, path in sorted(app[kind].items()):
            folder, seen = prefix.endswith("/"), sites.mounted(app, prefix)
            paths.append(
                {
                    "location": "^~" if folder else "=",
                    "prefix": seen,
                    # Where one of the two ended in a slash alone, /static../ would lead out of the folder.
                    "alias": _place(name, path, folder),
                    "internal": kind == "internal",
                    "caching": "private" if app["basic_auth"] or app["allow"] else "public",
                    "unwanted": rf"^{re.escape(seen)}(.*/)?\." if folder and path.startswith("/") else None,
                }
            )
    return {"paths": paths, "pages": {code: _place(name, path) for code, path in sorted(app["error_pages"].items())}}


def check(name, app, release):
    """
    Raise ``Problem`` where a release that never was live lacks what nginx is to serve of it.

    release : Release
    """
    if not release.record.get("live"):
        _refuse(_lacking(name, app, release))


def outdated(name, app, release):
    """The paths of a release that nginx does not serve from that yet, a list."""
    return [path for path in of_release(app) if (_live(name, path) or "").rpartition("-")[0] != release.id]


def build(host, name, app, release):
    """
    Make the trees that ``publish`` links to, where they are not there.

    Returns a dict of paths to trees, without the paths whose live tree is of that release. Raises
    ``Problem`` where there is nothing of a path, and nothing was.
    """
    wanted = outdated(name, app, release)
    unknown = {path for path in wanted if _live(name, path) is None}
    if unknown:
        _refuse({path: why for path, why in _lacking(name, app, release).items() if path in unknown})
    others = release.others if wanted else []
    id = f"{release.id}-{files.digest([other.id for other in others])}"
    trees = {path: f"{_folder(name, path)}/{id}" for path in wanted}
    if trees:
        # Of all users, nginx's alone gets in.
        files.ensure_dir(root(name), 0o750, 0, _nginx(host).pw_gid)
    for path, tree in trees.items():
        if not os.path.isdir(tree):
            files.ensure_dir(_folder(name, path), 0o755)
            _link_all(_union([release, *others], path), tree)
    return trees


def publish(host, name, app, release):
    """Have nginx serve the files of a release, and of those that were live before it, where it has none."""
    for path, tree in build(host, name, app, release).items():
        files.replace_symlink(os.path.basename(tree), f"{_folder(name, path)}/live")


def prune(name):
    """Remove the trees that nginx serves no more."""
    for folder in files.list_dir(root(name)):
        folder = f"{root(name)}/{folder}"
        live = _target(folder)
        for tree in files.list_dir(folder):
            if tree not in ("live", live):
                files.remove(f"{folder}/{tree}")


def forget(name, configuration):
    """
    Remove what is published of paths that nginx's configuration does not name any more.

    configuration : str
        All that nginx was told to load.
    """
    for folder in files.list_dir(root(name)):
        if f" {root(name)}/{folder}/live/" not in configuration:
            files.remove(f"{root(name)}/{folder}")


def warnings(host, name, app):
    """
    The paths of the machine that nginx can't read.

    Returns a list of sentences, each beginning with the pillar key it is about.
    """
    user = host.family["nginx"]["user"]
    found = []
    for key, path, folder in _said(app):
        why = path.startswith("/") and _unreadable(_nginx(host), path.rstrip("/"), folder)
        if why:
            found.append(f"wsgi:apps:{name}:{key}: {user}, nginx's user, can't read {path!r}: {why}")
    return found


def prepare_home(host, name, app, user):
    """
    Make an app's home, which it alone may write to; and the folders in it that nginx is to serve.

    user : pwd.struct_passwd
        The app's.

    nginx gets through the home to these folders, and sees what is in them: new files, and those that
    were there before.
    """
    home, inner = _home(name), _in_home(name, app)
    if not inner:
        return files.ensure_dir(home, 0o750, user.pw_uid, user.pw_gid)
    nginx = _nginx(host).pw_gid
    files.ensure_dir(home, 0o710, user.pw_uid, nginx)
    for path in inner:
        # The app may change anything in its home meanwhile, so no link is followed on the way.
        with contextlib.ExitStack() as opened:
            here = _enter(opened, home)
            for part in path.split("/"):
                os.fchmod(here, stat.S_IMODE(os.fstat(here).st_mode) | 0o010)
                os.fchown(here, -1, nginx)
                here = _enter(opened, part, here, user.pw_uid)
            _share(here, f"{home}/{path}", user.pw_uid, nginx)


def home_differs(host, name, app):
    """Whether ``prepare_home`` has something to do, as far as a look at the folders tells."""
    return any(files.group_of(f"{_home(name)}/{path}") != _nginx(host).pw_gid for path in _in_home(name, app))


def _said(app):
    """Yields the key, the path and whether it is a folder, of all that nginx is to serve."""
    for kind in ("static", "internal"):
        for prefix, path in sorted(app[kind].items()):
            yield f"{kind}:{prefix}", path, prefix.endswith("/")
    for code, path in sorted(app["error_pages"].items()):
        yield f"error_pages:{code}", path, False


def _home(name):
    return f"{LIB}/home/{name}"


def _in_home(name, app):
    """The folders in an app's home, as it calls them."""
    paths = [path.rstrip("/") for _, path, folder in _said(app) if folder]
    return [os.path.relpath(path, _home(name)) for path in paths if path.startswith(f"{_home(name)}/")]


def of_release(app):
    """The paths in its releases that nginx is to serve, a list."""
    return list(dict.fromkeys(path.rstrip("/") for _, path, _ in _said(app) if not path.startswith("/")))


def _lacking(name, app, release):
    """What a release has not of all that, a dict of paths to sentences."""
    found = {}
    for key, path, folder in _said(app):
        if path.startswith("/"):
            continue
        real = _real(release, path)
        if not real or not (os.path.isdir if folder else os.path.isfile)(real):
            what = "folder" if folder else "file"
            found[path.rstrip("/")] = (
                f"wsgi:apps:{name}:{key}: {path!r} is no {what} of release {release.id}; "
                "is it to be made by a command of hooks:build?"
            )
    return found


def _refuse(lacking):
    if lacking:
        raise Problem("\n".join(lacking.values()))


def _folder(name, path):
    # No name of a path holds a colon.
    return f"{root(name)}/{path.rstrip('/').replace('/', ':')}"


def _place(name, path, folder=False):
    """Where nginx finds a path."""
    place = path.rstrip("/")
    if not path.startswith("/"):
        place = f"{_folder(name, path)}/live" + ("" if folder else f"/{os.path.basename(path)}")
    return f"{place}/" if folder else place


def _live(name, path):
    """The name of the tree that is live: a release, ``-``, and a hash of the others; or None."""
    return _target(_folder(name, path))


def _target(folder):
    try:
        return os.readlink(f"{folder}/live")
    except FileNotFoundError:
        return None


def _union(releases, path):
    """The files of a path in all these releases, a dict of names to files; of two of one name, the first."""
    found = {}
    for release in releases:
        taken = {*found}
        folders = {folder for name in taken for folder in _above(name)}
        for name, file in _files(release, path):
            # A file and its compressed forms belong together.
            plain = name[:-3] if name.endswith(COMPRESSED) else name
            together = {plain, *(plain + suffix for suffix in COMPRESSED)}
            if not taken & {*together, *_above(name)} and name not in folders:
                found[name] = file
    return found


def _above(name):
    """The folders that a file is in."""
    parts = name.split("/")
    return ["/".join(parts[:length]) for length in range(1, len(parts))]


def _files(release, path):
    """Yields the name and the real path of each file of a path in a release; links may not lead out of it."""
    real = _real(release, path)
    if real and os.path.isdir(real):
        yield from _walk(release, real, "", (real,), itertools.count(1))
    elif real and os.path.isfile(real):
        yield os.path.basename(path), real


def _walk(release, folder, above, entered, seen):
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        # What begins with a dot is nobody's business: .git, .env, .htpasswd.
        if entry.name.startswith("."):
            continue
        if next(seen) > MOST_FILES:
            raise Problem(f"{entered[0]} holds more than {MOST_FILES} files; is it what nginx is to serve?")
        real = _real(release, entry.path) if entry.is_symlink() else entry.path
        if real and os.path.isfile(real):
            yield f"{above}{entry.name}", real
        elif real and os.path.isdir(real) and real not in entered:
            yield from _walk(release, real, f"{above}{entry.name}/", (*entered, real), seen)


def _real(release, path):
    """The real path of one in a release; None where it leads out of its code and its environment, or nowhere."""
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
    """Why a user can't get at a path of the machine, or None; as far as its permission bits tell."""
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    parts = path.split("/")
    for length in range(1, len(parts) + 1):
        part = "/".join(parts[:length]) or "/"
        try:
            found = os.stat(part)
        except FileNotFoundError:
            return f"{part} is not there"
        is_folder = folder or length < len(parts)
        if stat.S_ISDIR(found.st_mode) != is_folder:
            return f"{part} is {'no' if is_folder else 'a'} folder"
        wanted = 0o1 if is_folder else 0o4
        shift = 6 if found.st_uid == user.pw_uid else 3 if found.st_gid in groups else 0
        if not found.st_mode >> shift & wanted and not _has_list(part):
            return f"{part} has mode {stat.S_IMODE(found.st_mode):04o}"
    return None


def _has_list(path):
    """Whether an access control list tells more than the bits do."""
    with contextlib.suppress(OSError):
        return "system.posix_acl_access" in os.listxattr(path)
    return False


def _enter(opened, name, above=None, uid=0):
    """Open a folder, in an open one; make it for a user where it isn't there."""
    try:
        handle = os.open(name, os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
        opened.callback(os.close, handle)
    except FileNotFoundError:
        os.mkdir(name, 0o700, dir_fd=above)
        handle = _enter(opened, name, above)
        os.fchown(handle, uid, -1)
    return handle


def _share(folder, path, uid, gid):
    """Give a user's files in an open folder to a group, and those that are made in it later."""
    if os.fstat(folder).st_gid == gid:
        return
    for entry, found in itertools.chain(ownership.entries(folder, path), [(folder, os.fstat(folder))]):
        if found.st_uid == uid:
            ownership.change_owner(entry, -1, gid)
            if stat.S_ISDIR(found.st_mode):
                # The set-group-id bit, which folders in it inherit.
                os.fchmod(entry, stat.S_IMODE(found.st_mode) | 0o2050)
