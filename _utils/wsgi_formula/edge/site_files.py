"""
The files that nginx reads for the apps: their paths, and their desired content. A content is a str, a ``SecretFile``,
or None for a file that is not to be there.

Each app has files of its own, its site is a server block that it may share with other apps, and some files are for
all apps. This module renders them; it changes nothing on the disk.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import os
import re
from dataclasses import dataclass
from typing import NamedTuple

from ..app.desired import desired_settings
from ..app.secrets import htpasswd
from ..host import Host
from ..paths import LIB
from ..pillar import sites
from ..pillar.edge import METRICS_PORT, METRICS_SOCKET
from . import maintenance, static, status_page, tls, words
from .maintenance import PLAIN_PAGE
from .nginx_build import installed_nginx
from .reload import DRAIN_MARKER, FAST_PATH_LINK

# Templates of macros, wsgi/nginx/macros/<name>.jinja: `host` is for all apps, `http` for an app outside of its site,
# `server` and `location` for the inside of such blocks, and `locations` for locations beside those of the app.
MACROS = {
    name: f"nginx/macros/{name}.jinja"
    for name in (
        "access",
        "cache",
        "common",
        "errors",
        "headers",
        "log",
        "metrics",
        "pass",
        "static",
        "status_page",
        "tls",
        "trust",
    )
}

# In our tree: the folders, and the files of all apps.
FOLDERS = ("apps", "locations", "proxied", "dispatch", "sites", "private")

SHARED = ("wsgi.conf", "proxy.conf", "tls.conf")

LISTEN = re.compile(r"^\s*listen (\d+)([^;]*);", re.MULTILINE)

SERVER_NAME = re.compile(r"^\s*server_name ([^;]*);", re.MULTILINE)

PLAIN_NAME = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)+")

# A server_names_hash_bucket_size with room for any host name; the default is that of map_hash_bucket_size.
NAMES_BUCKET = 512

NAMES_DIRECTIVE = re.compile(r"^[^#\n]*\bserver_names_hash_bucket_size\s", re.MULTILINE)

INCLUDE = re.compile(r"^[^#\n]*\binclude\s+[\"']?([^;\"']+)", re.MULTILINE)

# The longest key of a map: map_hash_bucket_size is 64 on most processors, of which two pointers take 16 (ngx_hash.h).
MAP_KEY = 46

# A server block includes the locations of its apps in this form, which allows a file to be missing.
MEMBER = re.compile(r"/locations/([a-z0-9_-]+)\.con\[f\];")

# The sockets of workers in an app's upstream.
WORKER = re.compile(r"/http-\d+\.sock ")


class AppPaths(NamedTuple):
    """The paths of an app's own files."""

    upstreams: str  # and its variables
    locations: str
    proxied: str  # which each location includes that proxies to the app
    dispatch: str  # which passes a request to the live generation
    passwords: str


@dataclass(frozen=True)
class SecretFile:
    """
    A file that is not for everybody: root's, and perhaps readable by a group. No diff may show it.

    text : str
    group : str
        The group's name.
    """

    text: str
    group: str = "root"

    @property
    def mode(self) -> int:
        """Its permission bits."""
        return 0o600 if self.group == "root" else 0o640


@dataclass(frozen=True)
class ServerBlock:
    """
    A server block of a site, as its template needs it.

    listens : list of str
        The arguments of each ``listen``.
    names : str
        The arguments of ``server_name``.
    tls : bool
        Whether one of its ports has TLS.
    http2_on : bool
        Whether it needs the directive ``http2 on``.
    challenge : bool
        Whether it answers ACME challenges.
    redirect : str
        The URL to which it redirects every request; empty for none.
    target : str
        The target of the redirect in words, for a comment.
    """

    listens: list
    names: str
    tls: bool
    http2_on: bool
    challenge: bool
    redirect: str = ""
    target: str = ""


class SiteFiles:
    """
    The files that nginx has to read for the sites of a machine.

    host : Host

    Methods that depend on the files that are there already take them as ``installed``, a dict of paths to text.
    """

    def __init__(self, host: Host) -> None:
        self.host = host

    @property
    def own_dir(self) -> str:
        """The path of our tree."""
        return self.host.family["nginx"]["own_dir"]

    @property
    def entry(self) -> str:
        """The path of the file in our tree that includes all others."""
        return f"{self.own_dir}/wsgi.conf"

    @property
    def include(self) -> str:
        """The path of the one file of ours outside of the tree, which includes the tree."""
        return f"{self.host.family['nginx']['conf_dir']}/wsgi.conf"

    @property
    def include_text(self) -> str:
        """The content of that file."""
        return f"# Written by Salt; changes made here are undone.\ninclude {self.entry};\n"

    def app(self, name: str) -> AppPaths:
        """Return the paths of an app's own files."""
        own = self.own_dir
        return AppPaths(
            upstreams=f"{own}/apps/{name}.conf",
            locations=f"{own}/locations/{name}.conf",
            proxied=f"{own}/proxied/{name}.conf",
            dispatch=f"{own}/dispatch/{name}.conf",
            passwords=f"{own}/private/{name}.htpasswd",
        )

    def site(self, id: str) -> str:
        """Return the path of a site's server blocks."""
        return f"{self.own_dir}/sites/{id}.conf"

    def cache_dirs(self, name: str) -> dict[str, str]:
        """Return the folders of an app's cache, by nginx's protocol."""
        # nginx makes a folder for a cache, but not the folder above it.
        folder = self.host.family["nginx"]["cache_dir"]
        return {protocol: f"{folder}/wsgi-{name}.{protocol}" for protocol in words.PROTOCOLS}

    def site_of(self, name: str) -> sites.Site:
        """Return the site that an app belongs to."""
        return next(site for site in self.host.settings.sites.values() if name in site.apps)

    def render_app(self, name: str, installed: dict) -> dict:
        """Return the desired files of an app and of its site, paths to content."""
        site, app = self.site_of(name), desired_settings(self.host, name)
        path, values = self.site(site.id), self._app_values(name, app, site, installed)
        templates = ("app", "locations", "proxied", "dispatch")
        texts = [self.host.render(f"nginx/{template}.conf.jinja", **values) for template in templates]
        found = dict(zip(self.app(name), [*texts, self._passwords(name, app)]))
        before = installed.get(path)
        if before and set(members(before)) & self.host.settings.broken:
            # The settings of an app with a problem are unknown, so the site stays as it is.
            found[path] = joined(before, name)
        else:
            found[path] = self.host.render("nginx/site.conf.jinja", **values)
            found.update((path, SecretFile(text)) for path, text in tls.texts(self.host, site).items())
        return found

    def render_shared(self, site_texts: list, installed: dict) -> dict:
        """
        Return the desired files that all apps share, paths to content.

        site_texts : list of str
            The content of each file of ``sites``.
        """
        page = status_page.values(self.host)
        names = [name for text in site_texts for line in SERVER_NAME.findall(text) for name in line.split()]
        names += [page["domain"]] if page and page["domain"] else []
        values = self._values(
            unknown_hosts=self._unknown_hosts(site_texts, page),
            page_listens=self._listens(page["listen"]) if page else [],
            known_domains=known_domains(site_texts),
            page=page,
            long_names=self._names_bucket(names, installed),
            map_key=MAP_KEY,
        )
        passwords = status_page.passwords(self.host)
        return {
            f"{self.own_dir}/proxy.conf": self.host.render("nginx/proxy.conf.jinja", **values),
            f"{self.own_dir}/tls.conf": self.host.render("nginx/tls.conf.jinja", **values),
            self.include: self.include_text,
            self.entry: self.host.render("nginx/wsgi.conf.jinja", **values),
            status_page.passwords_path(self.host): passwords and self._for_nginx(passwords),
        }

    def _app_values(self, name, app, site, installed):
        """Return the variables of the templates of an app and its site."""
        certificate = tls.values(self.host, site)
        return self._values(
            name=name,
            app=app,
            apps=self.host.settings.apps,
            site=site,
            certificate=certificate,
            servers=self.server_blocks(site, bool(certificate and certificate["reuseport"])),
            paths=self.app(name),
            fast_path=has_fast_path(app, self.host.settings.nginx),
            fast_path_link=FAST_PATH_LINK,
            drain_marker=DRAIN_MARKER,
            prefix=sites.mounted(app, "/")[:-1],
            mounted=functools.partial(sites.mounted, app),
            live=f"{LIB}/live/{name}",
            upstream_workers=self._upstream_workers(name, app, installed),
            served=static.served(name, app),
            cache_dirs=self.cache_dirs(name),
            maintenance={
                "marker": maintenance.marker_path(name),
                "pages": [maintenance.page_path(name), PLAIN_PAGE],
            },
            **words.values(name, app),
        )

    def _values(self, **more):
        """Return the variables of every template, with the macros."""
        family = self.host.family["nginx"]
        values = {
            "nginx": self.host.settings.nginx,
            "metrics_port": METRICS_PORT,
            "metrics_socket": METRICS_SOCKET,
            "built": self.host.once(installed_nginx),
            "protocols": words.PROTOCOLS,
            "security_headers": words.SECURITY_HEADERS,
            "text_types": words.TEXT_TYPES,
            "log_dir": family["log_dir"],
            "own_dir": family["own_dir"],
            "tls_profile": tls.profile(self.host),
            "unknown_certificate": tls.unknown_paths(self.host),
            **more,
        }
        return self.host.with_macros(MACROS, values)

    def _passwords(self, name, app):
        users = app["basic_auth"].get("users")
        if not users:
            return None
        return self._for_nginx(htpasswd(self.host, f"wsgi:apps:{name}:basic_auth:users", users))

    def _for_nginx(self, text):
        """Return a file that nginx's workers may read."""
        return SecretFile(text, self.host.family["nginx"]["user"])

    def _upstream_workers(self, name, app, installed):
        """Return the number of worker sockets in the upstream. A server that has no such sockets changes nothing there."""
        there = len(WORKER.findall(installed.get(self.app(name).upstreams) or ""))
        return app["workers"] if app.single_process or not there else there

    def server_blocks(self, site: sites.Site, reuseport: bool = False) -> list[ServerBlock]:
        """
        Return the server blocks of a site: its own, the redirect to HTTPS, and the redirect to its first domain.

        reuseport : bool
            Whether this site has the kernel distribute the packets of HTTP/3.
        """
        to_https = bool(site.tls and site.tls["redirect"])
        https_port = "" if not site.tls or site.tls["listen"] in (80, 443) else f":{site.tls['listen']}"
        ports = {site.tls["listen"]: True} if site.tls and to_https else site.ports
        found = [self._block(site, ports, site.domains, reuseport)]
        if to_https:
            url = f"https://$host{https_port}$request_uri"
            found.append(self._block(site, {site.listen: False}, site.domains, redirect=url, target="HTTPS"))
        if site.redirect_domains:
            url = f"$wsgi_scheme://{site.domains[0]}$wsgi_url_port$request_uri"
            if to_https:
                url = f"https://{site.domains[0]}{https_port}$request_uri"
            target = "the first domain"
            found.append(self._block(site, site.ports, site.redirect_domains, redirect=url, target=target))
        return found

    def _block(self, site, ports, domains, reuseport=False, **redirect):
        listens = []
        for port, ssl in ports.items():
            versions = {"http2": site.tls["http2"], "http3": site.tls["http3"]} if ssl else {}
            default = self.host.settings.nginx["manage"] and not domains
            listens += self._listens(port, ssl, default=default, reuseport=reuseport, **versions)
        has_tls = True in ports.values()
        return ServerBlock(
            listens=listens,
            names=" ".join(domains) or '""',
            tls=has_tls,
            http2_on=bool(has_tls and site.tls["http2"] and self.host.once(installed_nginx).http2_directive),
            challenge=bool(False in ports.values() and site.tls and site.tls["certificate"] == "acme"),
            **redirect,
        )

    def _listens(self, port, ssl=False, default=False, http2=False, http3=False, reuseport=False):
        """Return the arguments of each ``listen`` of a port, with IPv6 where the kernel has it."""
        tcp = {
            "ssl": ssl,
            "http2": http2 and not self.host.once(installed_nginx).http2_directive,
            "proxy_protocol": self.host.settings.nginx["proxy_protocol"],
            "default_server": default,
        }
        quic = {"quic": True, "reuseport": reuseport, "default_server": default}
        found = []
        for address in ("", "[::]:") if os.path.exists("/proc/net/if_inet6") else ("",):
            for options in (tcp, quic) if http3 else (tcp,):
                found.append(" ".join([f"{address}{port}", *(option for option, given in options.items() if given)]))
        return found

    def _unknown_hosts(self, site_texts, page):
        """Return the server blocks for unknown hosts: one for each port on which no site is the default."""
        nginx = self.host.settings.nginx
        ports: dict[int, set[str]] = {}
        if not (nginx["manage"] and nginx["default_site"]):
            return []
        for text in site_texts:
            for port, options in LISTEN.findall(text):
                ports.setdefault(int(port), set()).update(options.split())
        if page and page["domain"]:
            ports.setdefault(page["listen"], set())
        return [
            {
                "tls": "ssl" in options,
                "listens": self._listens(port, "ssl" in options, default=True, http3="quic" in options, reuseport=True),
            }
            for port, options in sorted(ports.items())
            if "default_server" not in options
        ]

    def _names_bucket(self, names: list, installed: dict) -> int | None:
        """
        Return the server_names_hash_bucket_size for some host names: NAMES_BUCKET where one of them is long, else None.

        nginx accepts the directive only once, so it is None too where another file or raw directives have it.
        """
        if not any(map(_is_long, names)):
            return None
        settings = self.host.settings
        raw = [settings.nginx["http"], *(app["nginx"]["http"] for app in settings.apps.values())]
        raw += [installed.get(self.app(name).upstreams) or "" for name in settings.broken]
        others = _included_texts(os.path.dirname(self.host.family["nginx"]["conf_dir"]), "nginx.conf", {self.entry})
        return None if any(map(NAMES_DIRECTIVE.search, [*raw, *others])) else NAMES_BUCKET


def has_fast_path(app: dict, nginx: dict) -> bool:
    """
    Return whether requests to an app may skip the checks before the app while its fast path is enabled.

    app : dict
        Its settings.
    nginx : dict
        The host's settings of nginx.

    A CORS preflight, a streamed request body and raw directives have to be looked at for each request.
    """
    raw = nginx["location"] or app["nginx"]["location"]
    return not (app["cors"] or not app["request_buffering"] or raw)


def text_of(content: str | SecretFile | None) -> str | None:
    """Return the text of a file's content."""
    return content.text if isinstance(content, SecretFile) else content


def known_domains(site_texts: list) -> list:
    """Return the hosts of all sites that have no wildcard and fit into a map of nginx, sorted."""
    found = {name for text in site_texts for names in SERVER_NAME.findall(text) for name in names.split()}
    return sorted(name for name in found if PLAIN_NAME.fullmatch(name) and len(name) <= MAP_KEY)


def members(text: str) -> list:
    """Return the names of the apps that a server block includes."""
    return MEMBER.findall(text)


def joined(text: str, name: str) -> str:
    """Return a server block with one more app."""
    if name in members(text):
        return text
    last = [line for line in text.splitlines(keepends=True) if MEMBER.search(line)][-1]
    return text.replace(last, last + MEMBER.sub(f"/locations/{name}.con[f];", last))


def without(text: str, names: set) -> str:
    """Return a server block without some apps."""
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if not {*members(line)} & names)


def _is_long(name):
    """Return whether nginx's default hash of host names has no room for one; a wildcard has an entry per label."""
    return any(len(part) > MAP_KEY for part in (name.split(".") if "*" in name else [name]))


def _included_texts(folder, pattern, seen):
    """
    Yield the texts of some files of nginx and of all that they include.

    folder : str
        The folder of nginx's configuration, to which paths are relative.
    pattern : str
        The argument of an ``include``.
    seen : set
        Paths to leave out; the paths that were read are added.
    """
    for path in sorted({*glob.glob(os.path.join(folder, pattern))} - seen):
        seen.add(path)
        with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
            text = file.read()
            yield text
            for included in INCLUDE.findall(text):
                yield from _included_texts(folder, included.strip(), seen)
