"""gixy, which finds unsafe directives in nginx's configuration, finds none in ours."""

import json
import os
import subprocess
import sysconfig
from pathlib import Path

import pytest
from pillars import HELLO
from wsgi_formula.edge.nginx import Nginx
from wsgi_formula.pillar import edge
from wsgi_formula.pillar.schema import APP

GIXY = Path(sysconfig.get_path("scripts")) / "gixy"
USERS = {"realm": "Staff", "users": {"ann": "$6$salt$hash"}}
# Every edge key in one app, except one that excludes `cache`.
EVERYTHING = {
    "domains": ["example.com", "*.example.org"],
    "redirect_domains": ["www.example.com"],
    "listen": 80,
    "mount": "/shop",
    "tls": {"certificate": "/etc/ssl/shop.pem", "key": "/etc/ssl/private/shop.key", "hsts": 31536000},
    "static": {"/static/": "static/", "/media/": "/srv/media/"},
    "internal": {"/protected/": "/srv/protected/"},
    "error_pages": {404: "errors/404.html", 502: "errors/502.html"},
    "client_max_body_size": "20m",
    "request_buffering": False,
    "allow": ["10.0.0.0/8", "2001:db8::/32"],
    "limits": {"login": {"path": "/login", "rate": "5r/m", "burst": 3, "connections": 2}},
    "basic_auth": {**USERS, "except": ["/healthz"]},
    "cache": {"valid": "10m", "size": "100m", "paths": ["/"], "stale": True, "bypass_cookies": ["sessionid"]},
    "compression": True,
    "security_headers": True,
    "response_headers": {"Permissions-Policy": "camera=()"},
    "cors": {"origins": ["https://example.net"], "methods": ["GET"], "headers": ["Content-Type"], "credentials": True},
    "access_log": "json",
    "metrics": True,
    "nginx": {"http": "# more", "server": "# more", "location": "# more"},
}
NGINX = {
    "manage": True,
    "client_max_body_size": "1m",
    "default_site": True,
    "tls_profile": "intermediate",
    "acme": {"email": "ops@example.com"},
    "trusted_proxies": ["192.0.2.0/24", "2001:db8:1::1"],
    "proxy_protocol": False,
    "metrics": True,
    "http": "# more",
    "server": "# more",
    "location": "# more",
}
PILLAR = {
    "apps": {
        "all": {**HELLO, **EVERYTHING},
        # Apps on the same site, on a site of its own, and on the default site.
        "home": {**HELLO, "domains": EVERYTHING["domains"], "buffering": False},
        "blog": {**HELLO, "domains": ["blog.example.com"], "tls": "self_signed"},
        "rest": {**HELLO, "listen": 8080},
    },
    "nginx": NGINX,
    "status_page": {"domain": "status.example.com", "basic_auth": USERS},
}
# Accepted findings: (plugin, a part of its text), and the reason.
MEANT = {
    ("if_is_evil", '"set"'): "of the same module as `if` itself, and done when that is",
    ("if_is_evil", '"break"'): "the same",
    ("if_is_evil", '"proxy_pass"'): "which server is asked, is found per request; the contract suite asks them all",
    ("if_is_evil", '"uwsgi_pass"'): "the same",
    ("filesystem_root_exposure", '"root"'): "an internal location of two files that it names",
    ("try_files_is_evil_too", "open_file_cache"): "whether a page is there must be so now; only maintenance asks",
    ("return_bypasses_allow_deny", "allow/deny"): "what these returns lead to says itself who may come in",
    ("hsts_header", "No Strict-Transport-Security"): "tls:hsts is the user's to say: browsers would not forget it",
}


@pytest.fixture
def tree(make_host, tmp_path):
    """tree(pillar) returns the path of an nginx.conf that includes all files of such a pillar."""

    def written(pillar):
        host = make_host(pillar)
        assert host.settings.messages == []
        host.family["nginx"].update(conf_dir=str(tmp_path / "conf.d"), own_dir=str(tmp_path / "wsgi"))
        for path, text in host.once(Nginx).needed_changes(*host.settings.apps).items():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            # gixy does not know possessive quantifiers; they match the same, only faster.
            Path(path).write_text(getattr(text, "text", text).replace("]++", "]+").replace(")*+", ")*"))
        entry = tmp_path / "nginx.conf"
        entry.write_text(f"events {{}}\nhttp {{\n    include {tmp_path}/conf.d/*.conf;\n}}\n")
        return entry

    return written


def findings(path):
    """Return what gixy finds in a configuration: a list of (plugin, path of the file, line, reason)."""
    command = [GIXY, "--format", "json", path]
    environment = {**os.environ, "HOME": str(path.parent)}  # no configuration of its own
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert not done.stderr.strip(), done.stderr
    return [(each["plugin"], each["file"], each["line"], each["reason"]) for each in json.loads(done.stdout)]


def meant(plugin, file, line, reason):
    return any(plugin == one and words in reason for one, words in MEANT)


def test_checked_pillar_has_every_edge_key():
    assert {*EVERYTHING, "buffering"} == {*edge.EDGE}
    assert {*NGINX} == {*edge.NGINX}
    assert {*EVERYTHING} <= {*APP}


@pytest.mark.parametrize("proxy_protocol", [False, True])
def test_gixy_finds_no_issue(tree, proxy_protocol):
    path = tree({**PILLAR, "nginx": {**NGINX, "proxy_protocol": proxy_protocol}})
    assert [each for each in findings(path) if not meant(*each)] == []


def test_gixy_finds_an_issue_in_an_unsafe_directive(tree):
    path = tree({**PILLAR, "nginx": {**NGINX, "location": "proxy_set_header X-Host $http_host;\nadd_header X $uri;"}})
    assert findings(path)
