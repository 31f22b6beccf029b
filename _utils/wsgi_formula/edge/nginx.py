"""
nginx in front of the apps: its files change as a whole, and it is reloaded only when they, or a certificate, have
changed.

All of our files that nginx reads lie in one tree (``nginx_tree``). A change is staged beside the live tree, nginx
tests the staged tree in a mount namespace in which it stands in the place of the live one, and only then the tree
goes live. So a run that is killed at any moment leaves a tree that nginx has accepted. Where nginx does not run, a
site is removed without a test.

``site_files`` renders the files, ``validation`` has nginx test them, ``reload`` reloads nginx.
"""

from __future__ import annotations

import contextlib
import grp
import hashlib
import json
import os
import pwd
import re
import shutil
import time
from collections.abc import Collection

from .. import diff, files, process
from ..errors import WsgiError
from ..host import Host
from ..paths import LIB, PATH, RUN
from ..redact import tail
from . import acme, maintenance, nginx_tree, old_layout, ports, reload, tls, validation
from .maintenance import FAST_PATHS
from .reload import RELOADED
from .site_files import FOLDERS, SecretFile, SiteFiles, members, text_of, without
from .validation import RAW_CONTEXTS, Refused

# A checksum of the files that nginx has loaded, and the identity of that nginx.
LOADED = f"{RUN}/nginx.loaded"

# Logs of ours that a file of nginx names.
LOG = re.compile(r"^\s*(?:access|error)_log (/[^ ;]+/wsgi-[^ ;]+)", re.MULTILINE)

# States report this text instead of the diff of a secret file, as Salt's file.managed does.
NOT_SHOWN = "<show_changes=False>"


class Nginx:
    """
    nginx on a machine: our files as they are, as they should be, and the process.

    host : Host

    A run has one: ``host.once(Nginx)``. It reads the installed files once, and again when another run has changed
    them. Contents of files are a str, a ``SecretFile``, or None for a file that is not to be there.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.files = SiteFiles(host)
        self._installed: dict[str, str] | None = None
        self._version: str | None = None

    # The files as they are, and as they should be

    @property
    def installed_files(self) -> dict[str, str]:
        """Our files that are there, paths to text."""
        if self._installed is None:
            self._version = nginx_tree.version(self.files.own_dir)
            self._installed = self._read()
        return self._installed

    def _read(self):
        own, include = self.files.own_dir, self.files.include
        found = {include: nginx_tree.read(include)} if os.path.isfile(include) else {}
        if old_layout.is_present(own):
            return {**found, **old_layout.read_files(own, include)}
        names = [
            *files.list_dir(own),
            *(f"{kind}/{name}" for kind in FOLDERS for name in files.list_dir(f"{own}/{kind}")),
        ]
        paths = [f"{own}/{name}" for name in sorted(names)]
        return {**found, **{path: nginx_tree.read(path) for path in paths if os.path.isfile(path)}}

    def desired_files(self, name: str) -> dict:
        """Return the desired files of an app and of its site, paths to content."""
        return self.files.render_app(name, self.installed_files)

    def differs(self, name: str) -> bool:
        """Return whether the files of an app or of its site differ from the desired ones. No other app is rendered."""
        desired = {self.files.include: self.files.include_text, **self.desired_files(name)}
        return tls.due(self.host, self.files.site_of(name)) or any(
            self.installed_files.get(path) != text_of(content) for path, content in desired.items()
        )

    def needed_changes(self, *names: str, without_apps: Collection[str] = (), shared: bool = True) -> dict:
        """
        Return the changes that the sites of some apps need, paths to content.

        names : str
            Apps of ``host.settings.apps``.
        without_apps : collection of str
            Apps that are to have no site.
        shared : bool
            Whether to include the files of all apps.
        """
        installed, desired = self.installed_files, {}
        for name in names:
            desired.update(self.desired_files(name))
        for name in without_apps:
            desired.update(dict.fromkeys(self.files.app(name)))
        there = {path for path, content in {**installed, **desired}.items() if content is not None}
        sites = {path: desired.get(path) or installed[path] for path in there if "/sites/" in path}
        for path, text in sites.items():
            left = [app for app in members(text) if app not in without_apps and not self._moves(app, names, path)]
            if not any(self.files.app(name).locations in there for name in left):
                desired[path] = sites[path] = None
            elif path not in desired and left != members(text):
                desired[path] = sites[path] = without(text, set(members(text)) - set(left))
        if shared:
            desired.update(self.files.render_shared([text for text in sites.values() if text], installed))
        desired.update(dict.fromkeys(tls.unused({**installed, **desired}, self.files.own_dir)))
        return {path: content for path, content in desired.items() if installed.get(path) != text_of(content)}

    def _moves(self, name, names, path):
        """Return whether an app, one of ``names``, is about to leave the site that has this path."""
        return name in names and self.files.site(self.files.site_of(name).id) != path

    # Changes

    def check(self, *names: str) -> None:
        """
        Test the sites of some apps before anything depends on them.

        Raises ``WsgiError`` when nginx refuses the tree with the changes that they need, a port is in use by another
        program, or a certificate is not valid.
        """
        with self._locked():
            self._check_certificates(names)
            self.find_valid_changes(*names)

    def write(self, *names: str) -> dict:
        """
        Write the sites of some apps where they differ; nginx loads them with the next reload.

        Returns the changes as ``report`` does. Raises ``WsgiError`` as ``check`` does, and then changes nothing.
        """
        with self._locked():
            return self._write(names)

    def _write(self, names):
        self._check_certificates(names)
        if not any(self.differs(name) for name in names):
            return {}
        before = self.installed_files
        return report(before, self.find_valid_changes(*names, live=True))

    def predicted(self, name: str) -> dict:
        """Return the changes that ``write`` would report, without a test by nginx."""
        if not self.differs(name):
            return {}
        made = tls.missing(self.host, [self.files.site_of(name)])
        secrets = {path: SecretFile("") for pair in made for path in pair}
        return report(self.installed_files, {**self.needed_changes(name), **secrets})

    def apply(self, *names: str) -> None:
        """Write the sites of some apps, and reload nginx where needed. Raises ``WsgiError`` as ``check`` does."""
        with self._locked():
            self._write(names)
            self._load()

    def remove_site(self, name: str) -> None:
        """Remove an app from its site, and reload nginx."""
        with self._locked():
            if not self._master():
                self._stage(self.needed_changes(without_apps=[name]), test=False, live=True)
                return
            self.find_valid_changes(without_apps=[name], live=True)
            self._load()

    def refresh(self) -> bool:
        """
        Bring the shared files up to date, reload nginx where needed, and clean up after killed runs.

        Returns whether nginx was reloaded. Raises ``WsgiError`` as ``check`` does, but reloads nginx first.
        """
        with self._locked():
            folders = (os.path.dirname(self.files.own_dir), FAST_PATHS)
            files.remove_staged(RUN, LIB, f"{LIB}/live", *folders)
            for name in files.list_dir(f"{LIB}/live"):
                if "." not in name:  # no app's name has a dot
                    maintenance.enable_fast_path(name)
            refused = None
            try:
                self._validate(live=True)
            except WsgiError as problem:
                refused = problem
            reloaded = self._load()
            files.set_aside(LOADED)
            self._remove_unused_caches()
            if refused:
                raise refused
            return reloaded

    def mend(self) -> tuple[dict, str]:
        """
        Clean up after a killed run, and have nginx accept the files on the disk, so that it can start.

        Files that nginx refuses are replaced by the desired ones; where nginx refuses these too, the sites of their
        apps are left out, so that all others are served.

        Returns the changes as ``report`` does, and a sentence about them, or "". Raises ``WsgiError`` when nginx
        refuses a file that is not ours.
        """
        with self._locked():
            before = self.installed_files
            included = before.get(self.files.include) == self.files.include_text
            if not before or (included and self.is_loaded()) or shutil.which("nginx", path=PATH) is None:
                return {}, ""
            try:
                if included:
                    validation.test(self.host, before)
                    return {}, ""
                return report(before, self._stage({}, live=True)), ""
            except Refused as refused:
                changes, left_out = self._replace_refused()
                sentence = f"nginx did not accept the files on the disk: {refused}"
                if left_out:
                    sentence += f"\nLeft out until nginx accepts them: {', '.join(left_out)}"
                return report(before, changes), sentence

    def _replace_refused(self):
        """Make the fewest changes with which nginx accepts our files; see ``mend``."""
        settings, raw = self.host.settings, dict(self.host.settings.nginx)
        installed = self.installed_files
        known = [name for name in settings.apps if self.files.app(name).locations in installed and self._renders(name)]
        names: list[str] = []
        left_out: list[str] = []
        shared = False
        try:
            while True:
                try:
                    return self._validate(*names, without_apps=left_out, shared=shared, live=True, mend=True), left_out
                except Refused as refused:
                    apps = [name for name in validation.refused_apps(self.host, refused) if name not in left_out]
                    again = [name for name in apps if name in names or name not in known]
                    if apps and not again:
                        names += apps
                    elif again:
                        left_out += again
                        names = [name for name in names if name not in again]
                    elif not shared:
                        shared = True
                    elif any(settings.nginx[context] for context in RAW_CONTEXTS):
                        # The host's raw directives, which are in every site, are not accepted.
                        settings.nginx.update(dict.fromkeys(RAW_CONTEXTS, ""))
                        names = [name for name in known if name not in left_out]
                    else:
                        raise
        finally:
            settings.nginx.update(raw)

    def _renders(self, name):
        try:
            return bool(self.desired_files(name))
        except (WsgiError, OSError):
            return False

    def find_valid_changes(self, *names: str, without_apps: Collection[str] = (), live: bool = False) -> dict:
        """
        Return the changes for some apps that nginx accepts; with ``live``, they go live.

        There are three attempts: these apps with the shared files; these apps alone, so that ``refresh`` writes the
        shared files later; and all apps with the shared files, because each site has the host's raw directives.

        Raises the ``WsgiError`` of the first attempt where nginx accepts none.
        """
        installed = self.installed_files
        attempts: list[tuple] = [(names, True)]
        if self.files.entry in installed:  # else nginx reads none of our files
            there = (name for name in self.host.settings.apps if self.files.app(name).locations in installed)
            attempts += [(names, False), (sorted({*names, *there}), True)]
        problems = []
        for several, shared in attempts:
            try:
                return self._validate(*several, without_apps=without_apps, shared=shared, live=live)
            except WsgiError as problem:
                problems.append(problem)
        raise problems[0]

    def _validate(self, *names, live=False, mend=False, **which):
        """
        Return the needed changes, with new self-signed certificates, if nginx accepts them; with ``live``, they go live.

        With ``mend``, nginx tests the files even where nothing changes, and ports are not checked.
        """
        made = tls.prepare(self.host, [self.files.site_of(name) for name in names])
        changes = {**self.needed_changes(*names, **which), **{path: SecretFile(text) for path, text in made.items()}}
        if changes and not mend:
            for name in names:
                self._check_ports(name)
        return self._stage(changes, live=live) if changes or mend else {}

    def _stage(self, changes, test=True, live=False):
        """
        Stage the tree with some changes, have nginx test it, and with ``live`` have it go live.

        Returns the changes; on a machine without a tree, with the file that includes the tree.
        """
        own, include, installed = self.files.own_dir, self.files.include, self.installed_files
        if installed.get(include) != self.files.include_text and {**installed, **changes}.get(self.files.entry):
            changes = {**changes, include: self.files.include_text}
        carried = old_layout.with_owners(own, installed) if old_layout.is_present(own) else {}
        written = {path: content for path, content in {**carried, **changes}.items() if path != include}
        contents = {path[len(own) + 1 :]: _for_tree(content) for path, content in written.items()}
        staged = nginx_tree.stage(own, contents)
        try:
            for content in written.values():
                if isinstance(content, str):
                    self._make_logs(content)
            if test:
                validation.test(self.host, installed, staged, changes)
            if live:
                nginx_tree.swap(own, staged, contents)
                if include in changes:
                    os.makedirs(os.path.dirname(include), mode=0o755, exist_ok=True)
                    nginx_tree.replace(include, changes[include])
                texts = {**installed, **{path: text_of(content) for path, content in changes.items()}}
                self._installed = {path: text for path, text in texts.items() if text is not None}
                self._version = nginx_tree.version(own)
        finally:
            if os.path.realpath(own) != os.path.realpath(staged):
                files.remove(staged)
        return changes

    def _make_logs(self, text):
        """Make the logs of ours that a file names, as logrotate does; nginx would make them readable for everybody."""
        family = self.host.family["nginx"]
        for log in {*LOG.findall(text)}:
            if os.path.dirname(log) == family["log_dir"] and not os.path.lexists(log):
                owner = pwd.getpwnam(family["user"]).pw_uid
                files.write(log, "", 0o640, owner, grp.getgrnam(family["log_group"]).gr_gid)

    def _check_certificates(self, names):
        for name in names:
            tls.check(self.host, self.files.site_of(name))

    def _check_ports(self, name):
        site, master = self.files.site_of(name), self._master()
        ports.check_free(f"wsgi:apps:{name}:listen", site.listen, master)
        if site.tls:
            ports.check_free(f"wsgi:apps:{name}:tls:listen", site.tls["listen"], master)

    def _remove_unused_caches(self):
        for name in self.host.settings.apps:
            text = self.installed_files.get(self.files.app(name).upstreams) or ""
            for folder in self.files.cache_dirs(name).values():
                if folder not in text:
                    files.remove(folder)

    @contextlib.contextmanager
    def _locked(self):
        """Hold the lock of nginx's files, and clean up after a killed run."""
        own = self.files.own_dir
        with reload.locked():
            for path in nginx_tree.leftovers(own):
                files.remove(path)
            reload.end_drain()
            if self._version != nginx_tree.version(own):
                self._installed = None
            yield

    # The process

    def is_loaded(self) -> bool:
        """Return whether nginx runs with the files as they are now."""
        master = self._master()
        if master is None:
            return False
        found = files.read_json(LOADED, {"nginx": str, "sites": str}) or {}
        start = time.time() - process.uptime(master)
        reloads = [os.path.getmtime(path) for path in (LOADED, RELOADED) if os.path.exists(path)]
        own, family = self.files.own_dir, self.host.family["nginx"]
        if tls.newest(self.installed_files, own) > max([start, *reloads]):
            return False
        if found.get("nginx") == _identity(master):
            return found["sites"] == self._checksum()
        # nginx has been started since, and has read the files as they were then.
        folders = [f"{own}/{folder}" for folder in FOLDERS]
        folders += [family["conf_dir"], os.path.dirname(family["distribution_site"])]
        times = [os.path.getmtime(path) for path in (*self.installed_files, *folders) if os.path.exists(path)]
        times += [os.lstat(own).st_mtime] if os.path.lexists(own) else []
        return all(when < start for when in times)

    def request_reload(self) -> None:
        """
        Have nginx load its files, and wait until it has.

        Raises ``WsgiError`` when nginx refuses them, and then it goes on with those it has.
        """
        validation.test(self.host, self.installed_files)
        master = self._master()
        if master is None:
            raise WsgiError("nginx is not running: `systemctl status nginx` shows why")
        log = f"{self.host.family['nginx']['log_dir']}/error.log"
        size = os.path.getsize(log) if os.path.exists(log) else 0
        signalled = reload.reload(master)
        if signalled is None:
            raise WsgiError(f"nginx kept its old configuration; {log} has:\n{_tail_since(log, size)}")
        record = {"nginx": _identity(master), "sites": self._checksum()}
        files.write(LOADED, json.dumps(record) + "\n", 0o644)
        os.utime(LOADED, (signalled, signalled))

    def _load(self):
        """Reload nginx if it runs with other files, and remove those that it needs no more; return whether it did."""
        for path in acme.leftovers(self.installed_files, self.files.site):
            files.remove(path)
        outdated = not self.is_loaded()
        if outdated:
            self.request_reload()
        if self.installed_files.get(self.files.include) == self.files.include_text:
            # Until the reload, nginx read passwords of the old layout with each request.
            old_layout.remove(self.files.own_dir)
        return outdated

    def logs(self, name: str) -> list:
        """Return the paths of nginx's logs of an app, rotated ones too."""
        folder = self.host.family["nginx"]["log_dir"]
        return [f"{folder}/{log}" for log in files.list_dir(folder) if log.startswith(f"wsgi-{name}.")]

    def _master(self):
        """Return the PID of nginx, or None."""
        text = files.read(self.host.family["nginx"]["pid_file"])
        pid = int(text) if text and text.strip().isdigit() else None
        return pid if pid and process.is_alive(pid) else None

    def _checksum(self):
        known: dict[str, str | bool] = {**self.installed_files}
        known[""] = os.path.lexists(self.host.family["nginx"]["distribution_site"])
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def report(before: dict, changes: dict) -> dict:
    """
    Return changes as a state reports them, without anything secret.

    before : dict
        ``Nginx.installed_files`` before the changes.
    changes : dict
        Paths to content.

    Returns a dict of paths to dicts, or to a word.
    """
    found = {}
    for path, content in changes.items():
        if content is None:
            found[path] = {"removed": path}
        elif ".self-signed." in path:
            found.update({path: "made"} if path.endswith(".crt") else {})
        elif isinstance(content, SecretFile):
            found[path] = {"diff": NOT_SHOWN}
        elif path not in before:
            found[path] = {"diff": "New file"}
        else:
            found[path] = {"diff": diff.brief(path, before[path], content)}
    return found


def _for_tree(content):
    """Return a file's content as ``nginx_tree.stage`` takes it."""
    if isinstance(content, SecretFile):
        return content.text, content.mode, grp.getgrnam(content.group).gr_gid
    return content if content is None else (content, 0o644, 0)


def _identity(master):
    return f"{master} since {process.start_ticks(master)}"


def _tail_since(log, size):
    with contextlib.suppress(FileNotFoundError), open(log, errors="replace") as file:
        file.seek(size)
        return tail(file.read())
    return ""
