"""
The shared proxy: one site per app, and a reload only when what nginx would read has changed.
"""

import contextlib
import dataclasses
import functools
import grp
import hashlib
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass

import wsgi_edge
import wsgi_host
import wsgi_maintenance
import wsgi_managers
import wsgi_sites
import wsgi_static
import wsgi_status_page
import wsgi_tls
import wsgi_wanted
from wsgi_host import LIB, PATH, RUN, Problem
from wsgi_schema_edge import METRICS_PORT, METRICS_SOCKET
from wsgi_step import tail

# What nginx was last told to load, and which nginx that was.
LOADED = f"{RUN}/nginx.loaded"
# What `nginx -V` said, and which nginx that was.
BUILT = f"{RUN}/nginx.built"
# As old as the last reload by another hand: wsgi/acme/reload-nginx.
RELOADED = f"{RUN}/nginx.reloaded"
# What has a template of its own, wsgi/nginx/<feature>.jinja, and what that has macros for: `host`, once; `http`,
# for each app; `server` and `location`, within such; `locations`, beside the app's.
FEATURES = {
    name: f"nginx/{name}.jinja"
    for name in (
        "access",
        "cache",
        "common",
        "errors",
        "headers",
        "listen",
        "log",
        "metrics",
        "pass",
        "static",
        "status_page",
        "tls",
        "trust",
    )
}
# Below the folder that is ours.
FOLDERS = ("apps", "locations", "sites", "private")
LISTEN = re.compile(r"^\s*listen (\d+)([^;]*);", re.MULTILINE)
SERVER_NAME = re.compile(r"^\s*server_name ([^;]*);", re.MULTILINE)
PLAIN_NAME = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)+")
LOG = re.compile(r"^\s*(?:access|error)_log (/[^ ;]+/wsgi-[^ ;]+)", re.MULTILINE)
# A server block bears with a location that isn't there (yet).
MEMBER = re.compile(r"/locations/([a-z0-9_-]+)\.con\[f\];")
# Where it says that something is wrong; and the line above words that are pillar's own.
REFUSED = re.compile(r"\[emerg\] .* in (/\S+):(\d+)$", re.MULTILINE)
# Of what `nginx -T` prints, which begins with nginx's own file.
USER = re.compile(r"^\s*user\s+([^\s;]+)", re.MULTILINE)
RAW = re.compile(r"\s*# (wsgi:(?:apps:[a-z0-9_-]+:)?nginx:(?:http|server|location))$")
# The way to all shortcuts: what nginx finds here, it takes without another look.
SHORT = f"{LIB}/short"
# While it is there, and the way to the shortcuts is not, the sites ask clients to open a new connection for
# their next request.
CLOSING = f"{RUN}/nginx.closing"
# For how long, before a reload. Any client that sends more often than that is told in time; 40
# reloads without it cost 79 of 28,114 requests of 8 clients, 4 of them keep-alive, on nginx 1.22.
CLOSING_TIME = 2  # seconds
# What fits map_hash_bucket_size as nginx has it on most processors, 64, beside two pointers: ngx_hash.h.
MAP_KEY = 46
RELOAD_PATIENCE = 10  # seconds


@dataclass(frozen=True)
class Private:
    """What a file holds that is not for everybody, and that no diff may show: root's, and perhaps a group's."""

    text: str
    group: str = "root"

    @property
    def mode(self):
        """Its permission bits."""
        return 0o600 if self.group == "root" else 0o640


@dataclass(frozen=True)
class Built:
    """
    What the installed nginx can do.

    version : tuple of int
    modules : tuple of str
        Those that it was built with, as ``nginx -V`` has them, such as ``http_v2_module``, and those that
        the distribution's packages have it load.
    openssl : tuple of int
        The version of OpenSSL that it runs with.
    """

    version: tuple
    modules: tuple
    openssl: tuple = ()

    @property
    def http2_directive(self):
        """Whether HTTP/2 is switched on by ``http2 on``, and no longer on the port: https://nginx.org/en/CHANGES."""
        return self.version >= (1, 25, 1)


def built(host):
    """The installed nginx; the newest where none is installed yet. Asked once, and again when it has been replaced."""
    if host.nginx_built is None:
        found = _built(host)
        host.nginx_built = dataclasses.replace(found, modules=(*found.modules, *_dynamic_modules(host)))
    return host.nginx_built


def _built(host):
    nginx = shutil.which("nginx", path=PATH)
    if nginx is None:
        return Built((99,), ())
    identity = [nginx, os.stat(nginx).st_mtime, os.stat(nginx).st_size]
    known = wsgi_host.read_json(BUILT, {"of": list, "version": str, "modules": list, "openssl": str}) or {}
    if known.get("of") != identity:
        shown = subprocess.run([nginx, "-V"], stderr=subprocess.PIPE, text=True, check=False).stderr
        version = re.search(r"nginx/([0-9.]+)", shown)
        known = {"of": identity, "version": version[1] if version else "0"}
        known["modules"] = re.findall(r"--with-(\w+_module)", shown)
        known["openssl"] = (re.findall(r"(?:built|running) with OpenSSL ([0-9.]+)", shown) or ["0"])[-1]
        if not host.opts.get("test"):
            wsgi_host.folder(RUN, 0o755)
            wsgi_host.write(BUILT, json.dumps(known) + "\n", 0o644)
    return Built(_numbers(known["version"]), tuple(known["modules"]), _numbers(known["openssl"]))


def _numbers(version):
    return tuple(int(number) for number in version.split("."))


def _dynamic_modules(host):
    folder = host.family["nginx"]["modules_dir"]
    texts = [wsgi_host.read(f"{folder}/{file}") or "" for file in sorted(wsgi_host.listdir(folder))]
    return re.findall(r"^\s*load_module\s.*\bngx_(\w+)\.so", "\n".join(texts), re.MULTILINE)


def paths(host, name):
    """The paths of an app's own files: what stands outside of any server, its locations, and who may come in."""
    own = host.family["nginx"]["own_dir"]
    return [f"{own}/apps/{name}.conf", f"{own}/locations/{name}.conf", f"{own}/private/{name}.htpasswd"]


def cache_folders(host, name):
    """Where nginx keeps the answers of an app that has them kept, by its own word for the protocol."""
    # Nothing has to make the folder above.
    return {protocol: f"{host.family['nginx']['cache_dir']}/wsgi-{name}.{protocol}" for protocol in ("proxy", "uwsgi")}


def entry_path(host):
    """The path of the one file among nginx's own, which leads to all others."""
    return f"{host.family['nginx']['conf_dir']}/wsgi.conf"


def site_path(host, id):
    """The path of a site's server block."""
    return f"{host.family['nginx']['own_dir']}/sites/{id}.conf"


def site_of(host, name):
    """The ``wsgi_sites.Site`` that an app belongs to."""
    return next(site for site in host.settings.sites.values() if name in site.apps)


def texts(host, name):
    """
    An app's files and its site's server block, as they should be.

    Returns a dict of paths to str, to ``Private``, or to None for a file that is not to be there.
    """
    site, app = site_of(host, name), wsgi_wanted.settings(host, name)
    site_file, values = site_path(host, site.id), _values(host, name, app, site)
    files = [host.render(f"nginx/{kind}.conf.jinja", **values) for kind in ("app", "locations")]
    found = dict(zip(paths(host, name), [*files, _htpasswd(host, name, app)]))
    before = on_disk(host).get(site_file)
    if before and set(_members(before)) & host.settings.broken:
        # What the app with a problem says of its site can't be known: it stays as it is.
        found[site_file] = _joined(host, before, name)
    else:
        found[site_file] = host.render("nginx/site.conf.jinja", **values)
        found.update((path, Private(text)) for path, text in wsgi_tls.texts(host, site).items())
    return found


def on_disk(host):
    """What there is of all files of this module, as the run first saw them; ``forget`` when another hand writes one."""
    if host.nginx_files is None:
        own = host.family["nginx"]["own_dir"]
        found = [entry_path(host), *(f"{own}/{file}" for file in wsgi_host.listdir(own))]
        for folder in FOLDERS:
            found += [f"{own}/{folder}/{file}" for file in wsgi_host.listdir(f"{own}/{folder}")]
        host.nginx_files = {
            path: wsgi_host.read(path)
            for path in sorted(found)
            if os.path.isfile(path) and wsgi_host.STAGED not in path
        }
    return host.nginx_files


def forget(host):
    """Another hand has written some of these files."""
    host.nginx_files = None


def differs(host, name):
    """Whether an app's own site is not as it should be. Cheap: no other site is looked at."""
    return wsgi_tls.due(host, site_of(host, name)) or any(
        on_disk(host).get(path) != _text(wanted) for path, wanted in texts(host, name).items()
    )


def pending(host, *names, without=None, shared=True):
    """
    The files that would have to change for these apps' sites to be as they should.

    names : str
        Apps of ``host.settings.apps``.
    without : str
        An app that is to have no site.
    shared : bool
        Whether those files count that are no app's alone.

    Returns a dict of paths to str, to ``Private``, or to None for a file to be removed.
    """
    wanted = {}
    for name in names:
        wanted.update(texts(host, name))
    if without:
        wanted.update(dict.fromkeys(paths(host, without)))
    there = {path for path, text in {**on_disk(host), **wanted}.items() if text is not None}
    sites = {path: wanted.get(path) or on_disk(host)[path] for path in there if "/sites/" in path}
    for path, text in sites.items():
        left = [name for name in _members(text) if name != without and not _moved(host, name, names, path)]
        if not any(paths(host, name)[1] in there for name in left):
            wanted[path] = sites[path] = None
        elif path not in wanted and left != _members(text):
            wanted[path] = sites[path] = _without(host, text, set(_members(text)) - set(left))
    if shared:
        wanted.update(_shared(host, [text for text in sites.values() if text]))
    return {path: text for path, text in wanted.items() if on_disk(host).get(path) != _text(text)}


def check(host, *names):
    """
    Try apps' sites before anything depends on it.

    Returns what has to change for them, as ``pending`` does, and of other apps what nginx takes it only together
    with. Raises ``Problem`` when nginx refuses the tree with it, a port is another program's, or a certificate
    is no good.
    """
    for name in names:
        wsgi_tls.check(host, site_of(host, name), built(host))
    return _sound(host, *names)


def put(host, *names):
    """Put apps' sites in place, and nginx to serving them, where that differs. Raises ``Problem`` as ``check`` does."""
    changes = check(host, *names)
    if any(differs(host, name) for name in names):
        _put_for_good(host, changes)
    _sweep(host)
    if not loaded(host):
        reload(host)


def withdraw(host, name):
    """Take an app's site away, and nginx off it."""
    _put_for_good(host, _sound(host, without=name) if _master(host) else pending(host, without=name))
    _sweep(host)
    if _master(host) and not loaded(host):
        reload(host)


def refresh(host):
    """
    Bring nginx up to date with the sites as they lie on the disk.

    Returns whether it had to be reloaded. Raises ``Problem`` as ``reload`` does.
    """
    # After a run that was killed, too.
    own = host.family["nginx"]["own_dir"]
    wsgi_host.sweep(RUN, LIB, f"{LIB}/live", wsgi_maintenance.SHORTCUTS, own, *(f"{own}/{each}" for each in FOLDERS))
    for name in wsgi_host.listdir(f"{LIB}/live"):
        if "." not in name:  # no app's name has a dot
            wsgi_maintenance.clear(name)
    _open()
    refused = None
    try:
        _put_for_good(host, _tried(host))
    except Problem as problem:
        refused = problem
    _sweep(host)
    reloaded = not loaded(host)
    if reloaded:
        reload(host)
    wsgi_host.set_aside(LOADED)
    _leave_caches(host)
    if refused:
        raise refused
    return reloaded


def logs(host, name):
    """An app's logs of nginx, rotated ones too."""
    folder = host.family["nginx"]["log_dir"]
    return [f"{folder}/{log}" for log in wsgi_host.listdir(folder) if log.startswith(f"wsgi-{name}.")]


def loaded(host):
    """Whether nginx runs with the sites as they now are."""
    master = _master(host)
    if master is None:
        return False
    found = wsgi_host.read_json(LOADED, {"nginx": str, "sites": str}) or {}
    start = time.time() - wsgi_managers.uptime(master)
    reloads = [os.path.getmtime(path) for path in (LOADED, RELOADED) if os.path.exists(path)]
    if wsgi_tls.newest(on_disk(host)) > max([start, *reloads]):
        return False
    if found.get("nginx") == _identity(master):
        return found["sites"] == _sum(host)
    # It was started anew since: it read whatever was there by then.
    folders = [f"{host.family['nginx']['own_dir']}/{folder}" for folder in FOLDERS]
    folders += [host.family["nginx"]["conf_dir"], os.path.dirname(host.family["nginx"]["distribution_site"])]
    return all(os.path.getmtime(path) < start for path in (*on_disk(host), *folders) if os.path.exists(path))


def reload(host):
    """
    Have nginx read its configuration, if the whole of it is sound, and see to it that it did.

    Raises ``Problem`` when the configuration is refused; nginx goes on with the one it has.
    """
    _test(host)
    master = _master(host)
    if master is None:
        raise Problem("nginx is not running: `systemctl status nginx` says why")
    before = set(wsgi_managers.processes(master))
    log = f"{host.family['nginx']['log_dir']}/error.log"
    size = os.path.getsize(log) if os.path.exists(log) else 0
    with _closing():
        asked = time.time()
        os.kill(master, signal.SIGHUP)
        # It keeps its old workers, and says so in its log alone, when it can't have a port.
        taken = wsgi_managers.wait_until(lambda: set(wsgi_managers.processes(master)) - before, RELOAD_PATIENCE)
        if taken:
            wsgi_managers.wait_until(lambda: not any(map(_accepts, before - {master})), RELOAD_PATIENCE)
    if not taken:
        raise Problem(f"nginx did not take its new configuration; {log} says:\n{_since(log, size)}")
    wsgi_host.write(LOADED, json.dumps({"nginx": _identity(master), "sites": _sum(host)}) + "\n", 0o644)
    os.utime(LOADED, (asked, asked))


@contextlib.contextmanager
def _closing():
    wsgi_host.folder(RUN, 0o755)
    wsgi_host.write(CLOSING, "", 0o644)
    wsgi_host.remove(SHORT)
    try:
        time.sleep(CLOSING_TIME)
        yield
    finally:
        _open()


def _open():
    wsgi_host.remove(CLOSING)
    if os.path.isdir(wsgi_maintenance.SHORTCUTS) and not os.path.lexists(SHORT):
        wsgi_host.link(os.path.basename(wsgi_maintenance.SHORTCUTS), SHORT)


def _values(host, name, app, site):
    """What the templates of an app know."""
    own = {
        "name": name,
        "app": app,
        "apps": host.settings.apps,
        "site": site,
        "certificate": wsgi_tls.values(host, site),
        "mounted": functools.partial(wsgi_sites.mounted, app),
        "live": f"{LIB}/live/{name}",
        "short": f"{SHORT}/{name}",
        "closing": CLOSING,
        "served": wsgi_static.served(name, app),
        "htpasswd": paths(host, name)[2],
        "cache_folders": cache_folders(host, name),
        **wsgi_edge.values(name, app),
        "maintenance": {
            "marker": wsgi_maintenance.marker(name),
            "pages": [wsgi_maintenance.page(name), wsgi_maintenance.PLAIN_PAGE],
        },
    }
    return _shared_values(host, **own)


def _shared_values(host, **more):
    """What all templates know, each other's macros among it."""
    values = {
        "nginx": host.settings.nginx,
        "metrics_port": METRICS_PORT,
        "metrics_socket": METRICS_SOCKET,
        "built": built(host),
        "log_dir": host.family["nginx"]["log_dir"],
        "own_dir": host.family["nginx"]["own_dir"],
        "ipv6": os.path.exists("/proc/net/if_inet6"),
        "tls_profile": wsgi_tls.profile(host, built(host)),
        "unknown_certificate": wsgi_tls.unknown_paths(host, built(host)),
        **more,
    }
    return host.with_macros(FEATURES, values)


def _known_domains(sites):
    """The hosts of all sites that nginx can tell by their whole name, as far as a map of its takes them."""
    found = {name for text in sites for names in SERVER_NAME.findall(text) for name in names.split()}
    return sorted(name for name in found if PLAIN_NAME.fullmatch(name) and len(name) <= MAP_KEY)


def _shared(host, sites):
    """The files that are no app's alone, path to text: how an app is asked, and what leads to all others."""
    ports = {}
    for text in sites:
        for port, options in LISTEN.findall(text):
            ports.setdefault(int(port), set()).update(options.split())
    page = wsgi_status_page.values(host)
    if page and page["domain"]:
        ports.setdefault(page["listen"], set())
    if not (host.settings.nginx["manage"] and host.settings.nginx["default_site"]):
        ports = {}
    ports = {port: options for port, options in sorted(ports.items()) if "default_server" not in options}
    values = _shared_values(host, ports=ports, known_domains=_known_domains(sites), page=page)
    passwords = wsgi_status_page.passwords(host)
    return {
        f"{host.family['nginx']['own_dir']}/proxy.conf": host.render("nginx/proxy.conf.jinja", **values),
        f"{host.family['nginx']['own_dir']}/tls.conf": host.render("nginx/tls.conf.jinja", **values),
        entry_path(host): host.render("nginx/wsgi.conf.jinja", **values),
        wsgi_status_page.passwords_path(host): passwords and Private(passwords, host.family["nginx"]["user"]),
    }


def _htpasswd(host, name, app):
    users = app["basic_auth"].get("users")
    if not users:
        return None
    text = wsgi_wanted.htpasswd(host, f"wsgi:apps:{name}:basic_auth:users", users)
    # The workers read it, for each request.
    return Private(text, host.family["nginx"]["user"])


def _members(text):
    """The apps that a site's server block has."""
    return MEMBER.findall(text)


def _moved(host, name, names, path):
    """Whether an app is about to belong to another site than the one whose file this is."""
    return name in names and site_path(host, site_of(host, name).id) != path


def _joined(host, text, name):
    """A server block that has one more app."""
    if name in _members(text):
        return text
    last = [line for line in text.splitlines(keepends=True) if MEMBER.search(line)][-1]
    return text.replace(last, last + MEMBER.sub(f"/locations/{name}.con[f];", last))


def _without(host, text, names):
    """A server block that has some apps no more."""
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if not {*_members(line)} & names)


def _sound(host, *names, without=None):
    """
    What has to change for some apps, as far as nginx takes it: with what all share; else without, which is
    then left to ``refresh``; else together with all other apps, since what they make of the host's own
    words may have changed with these.
    """
    files = on_disk(host)
    attempts = [(names, True)]
    if entry_path(host) in files:  # else nginx reads nothing of ours
        everybody = {*names, *(name for name in host.settings.apps if paths(host, name)[1] in files)}
        attempts += [(names, False), (sorted(everybody), True)]
    problems = []
    for several, shared in attempts:
        try:
            return _tried(host, *several, without=without, shared=shared)
        except Problem as problem:
            problems.append(problem)
    raise problems[0]


def _tried(host, *names, **how):
    """What ``pending`` says, if nginx takes it; the certificates that it takes are made for that."""
    if wsgi_tls.prepare(host, [site_of(host, name) for name in names], built(host)):
        forget(host)
    changes = pending(host, *names, **how)
    if changes:
        for name in names:
            _check_ports(host, name)
        with _staged(host, changes):
            _test(host, changes)
    return changes


@contextlib.contextmanager
def _staged(host, changes):
    """Put files where nginx looks for them, for as long as it takes to test them."""
    before = {path: wsgi_host.read(path) for path in changes}
    for path, text in before.items():
        if text is not None and isinstance(changes[path], Private):
            before[path] = Private(text, changes[path].group)
    try:
        _put(host, changes)
        yield
    finally:
        _put(host, before)


def _sweep(host):
    """Take away the certificates that no site has any more."""
    gone = wsgi_tls.leftovers(host, on_disk(host))
    for path in gone:
        wsgi_host.remove(path)
    if gone:
        forget(host)


def source(wanted):
    """What ``file.managed`` is told of a file of ``pending``; None where it goes."""
    if isinstance(wanted, Private):
        return {"contents": wanted.text, "mode": f"{wanted.mode:04o}", "group": wanted.group, "show_changes": False}
    return wanted and {"contents": wanted}


def _put_for_good(host, files):
    _put(host, files)
    forget(host)


def _put(host, files):
    for path, wanted in files.items():
        if wanted is None:
            wsgi_host.remove(path)
            continue
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        if isinstance(wanted, Private):
            wsgi_host.write(path, wanted.text, wanted.mode, gid=grp.getgrnam(wanted.group).gr_gid)
        else:
            wsgi_host.write(path, wanted, 0o644)
            _make_logs(host, wanted)


def _make_logs(host, text):
    """The logs of ours that a file names, as logrotate makes them: nginx would make them for everybody to read."""
    for log in {*LOG.findall(text)}:
        if os.path.dirname(log) == host.family["nginx"]["log_dir"] and not os.path.lexists(log):
            owner = pwd.getpwnam(host.family["nginx"]["user"]).pw_uid
            wsgi_host.write(log, "", 0o640, owner, grp.getgrnam(host.family["nginx"]["log_group"]).gr_gid)


def _text(wanted):
    return wanted.text if isinstance(wanted, Private) else wanted


def _leave_caches(host):
    """What nginx kept for apps that have nothing kept any more."""
    for name in host.settings.apps:
        text = on_disk(host).get(paths(host, name)[0]) or ""
        for folder in cache_folders(host, name).values():
            if folder not in text:
                wsgi_host.remove(folder)


def _test(host, changes=()):
    """See whether nginx takes its configuration, in which some files are changed."""
    nginx, manages = shutil.which("nginx", path=PATH), host.settings.nginx["manage"]
    if nginx is None:
        raise Problem("nginx is not installed" + ("" if manages else "; wsgi:nginx:manage: false leaves that to you"))
    command = [nginx, "-t" if manages else "-T"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise Problem(f"{_blamed(host, done.stderr, changes)}:\n{tail(done.stderr)}")
    if not manages and f"# configuration file {entry_path(host)}:" not in done.stdout:
        raise Problem(
            f"wsgi:nginx:manage: false, and nginx does not read {entry_path(host)}: "
            f"it needs `include {host.family['nginx']['conf_dir']}/*.conf;` in its http block"
        )
    user = None if manages else USER.search(done.stdout)
    if user and user[1] != host.family["nginx"]["user"]:
        raise Problem(
            f"wsgi:nginx:manage: false, and nginx runs as {user[1]!r}, and the apps' sockets are "
            f"{host.family['nginx']['user']}'s: it needs `user {host.family['nginx']['user']};`"
        )


def _blamed(host, said, changes):
    """What nginx refuses: words of pillar's own, if it names their line; else whose they may be."""
    place = REFUSED.search(said)
    if place:
        line = int(place[2])
        above = (wsgi_host.read(place[1]) or "").split("\n")[:line]
        for number, key in _raw_keys(above)[-1:]:
            if line - number <= _raw_lines(host, key):
                return f"{key}: nginx -t refuses it"
    changed = "\n".join(filter(None, map(_text, dict(changes).values()))).split("\n")
    keys = dict.fromkeys(key for _, key in _raw_keys(changed))
    return "nginx -t refuses the configuration" + (f", which has {' and '.join(keys)}" if keys else "")


def _raw_keys(lines):
    """The pillar keys above words that are pillar's own, each with its line's number."""
    found = [(number, RAW.match(line)) for number, line in enumerate(lines, 1)]
    return [(number, match[1]) for number, match in found if match]


def _raw_lines(host, key):
    """How many lines the words under such a key take."""
    words = key.split(":")
    settings = host.settings.nginx if words[1] == "nginx" else host.settings.apps.get(words[2], {}).get("nginx", {})
    return len(settings.get(words[-1], "").strip().split("\n"))


def _check_ports(host, name):
    """nginx -t passes over a port that is taken; nginx itself would then keep its old sites."""
    site = site_of(host, name)
    _check_free(host, f"wsgi:apps:{name}:listen", site.listen)
    if site.tls:
        _check_free(host, f"wsgi:apps:{name}:tls:listen", site.tls["listen"])


def _check_free(host, key, port):
    with contextlib.closing(socket.socket()) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("", port))
            return
        except OSError:
            pass
    master = _master(host)
    held = {_link(f"/proc/{master}/fd/{fd}") for fd in wsgi_host.listdir(f"/proc/{master}/fd")}
    for inode in _listeners(port):
        if f"socket:[{inode}]" in held:
            return
    raise Problem(f"{key}: port {port} is another program's; `ss -ltnp 'sport = :{port}'` says whose")


def _listeners(port):
    """The inodes of the TCP sockets that listen on a port."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in (wsgi_host.read(table) or "").splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                yield fields[9]


def _master(host):
    """The PID of nginx, or None."""
    text = wsgi_host.read(host.family["nginx"]["pid_file"])
    pid = int(text) if text and text.strip().isdigit() else None
    return pid if pid and wsgi_managers.alive(pid) else None


def _identity(master):
    return f"{master} since {wsgi_managers.started(master)}"


def _sum(host):
    # Of certificates it is looked at when they came to be there: some are another hand's.
    known = {path: text for path, text in on_disk(host).items() if not path.endswith((".crt", ".key"))}
    known[""] = os.path.lexists(host.family["nginx"]["distribution_site"])
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _since(log, size):
    with contextlib.suppress(FileNotFoundError), open(log, errors="replace") as file:
        file.seek(size)
        return tail(file.read())
    return ""


def _accepts(worker):
    """Whether a worker still takes new connections; its title says when it does no more."""
    title = wsgi_host.read(f"/proc/{worker}/cmdline") if wsgi_managers.alive(worker) else None
    return title is not None and "shutting down" not in title


def _link(path):
    try:
        return os.readlink(path)
    except OSError:
        return None
