"""The files of an app and its site: which server blocks they have, and that they fit together."""

import re

import pytest
from pillars import HELLO
from wsgi_formula.edge import words
from wsgi_formula.edge.nginx import Nginx
from wsgi_formula.edge.nginx_build import NginxBuild, installed_nginx
from wsgi_formula.edge.site_files import has_fast_path

SHOP = {**HELLO, "domains": ["shop.test"]}
NEW_NGINX = NginxBuild((1, 26, 3), ("http_v2_module", "http_v3_module"))
APPS = {
    "plain": {},
    "cors": {"cors": {"origins": ["https://example.net"]}},
    "streamed": {"request_buffering": False},
    "static": {"static": {"/static/": "static/"}},
    "mounted": {"mount": "/shop", "cors": {"origins": ["*"]}, "request_buffering": False},
}


@pytest.fixture
def make_nginx(make_host, monkeypatch):
    """make_nginx({key: value, …}) is the Nginx of a host with such an app `shop`."""
    monkeypatch.setattr("os.path.exists", lambda path: False)  # no IPv6

    def nginx_of(own=None, nginx=None):
        host = make_host({"apps": {"shop": {**SHOP, **(own or {})}}, "nginx": nginx or {}})
        assert host.settings.problems == []
        return host.once(Nginx)

    return nginx_of


@pytest.mark.parametrize("own", APPS.values(), ids=APPS)
def test_each_internal_status_is_in_the_legend_and_leads_to_a_location(make_nginx, own):
    nginx = make_nginx(own)
    text = nginx.desired_files("shop")[nginx.files.app("shop").locations]
    legend = re.findall(r"^#   (\d+) .* -> (\S+?),?(?: .*)?$", text, re.MULTILINE)
    returned = {*re.findall(r"return (41\d|42\d);", text)}
    assert {status for status, _ in legend} == {*returned, "502"}
    assert all(re.search(rf"^location (= )?{re.escape(place)} {{$", text, re.MULTILINE) for _, place in legend)


@pytest.mark.parametrize("own", APPS.values(), ids=APPS)
def test_each_file_that_a_file_includes_is_written_too(make_nginx, own):
    nginx = make_nginx(own)
    written = nginx.needed_changes("shop")
    texts = [text for text in written.values() if isinstance(text, str)]
    included = {path.replace("[f]", "f") for text in texts for path in re.findall(r"include (/[^*;]+);", text)}
    assert included
    assert included <= {*written}


def test_the_fast_path_is_for_apps_whose_requests_need_no_check():
    usual = {"cors": {}, "request_buffering": True, "nginx": {"location": ""}}
    assert has_fast_path(usual, {"location": ""})
    assert not has_fast_path(usual, {"location": "deny all;"})
    for unusual in ({"cors": {"origins": ["*"]}}, {"request_buffering": False}, {"nginx": {"location": "deny all;"}}):
        assert not has_fast_path({**usual, **unusual}, {"location": ""})


def blocks(nginx):
    return nginx.files.server_blocks(nginx.files.site_of("shop"))


def test_a_site_without_tls_has_one_server_block(make_nginx):
    (block,) = blocks(make_nginx())
    assert (block.listens, block.names, block.tls, block.redirect) == (["80"], "shop.test", False, "")


def test_the_default_site_is_the_default_server_of_its_port(make_nginx):
    (block,) = blocks(make_nginx({"domains": [], "listen": 8080}))
    assert (block.listens, block.names) == (["8080 default_server"], '""')


def test_plain_http_is_redirected_to_https_with_the_port_of_tls(make_nginx):
    own, plain = blocks(make_nginx({"tls": {"certificate": "self_signed", "listen": 8443}}))
    assert (own.listens, own.tls) == (["8443 ssl http2"], True)
    assert (plain.listens, plain.tls) == (["80"], False)
    assert plain.redirect == "https://$host:8443$request_uri"


@pytest.mark.parametrize(
    ("tls", "url"),
    [
        (None, "$wsgi_scheme://shop.test$wsgi_url_port$request_uri"),
        ("self_signed", "https://shop.test$request_uri"),
        (
            {"certificate": "self_signed", "redirect": False},
            "$wsgi_scheme://shop.test$wsgi_url_port$request_uri",
        ),
    ],
    ids=str,
)
def test_other_hosts_are_redirected_to_the_first_domain(make_nginx, tls, url):
    block = blocks(make_nginx({"redirect_domains": ["www.shop.test"], **({"tls": tls} if tls else {})}))[-1]
    assert (block.names, block.redirect) == ("www.shop.test", url)


def test_a_newer_nginx_enables_http2_by_a_directive_and_http3_by_a_second_port(make_nginx):
    nginx = make_nginx({"tls": {"certificate": "self_signed", "http3": True, "redirect": False}})
    nginx.host.made[installed_nginx] = NEW_NGINX
    (block,) = nginx.files.server_blocks(nginx.files.site_of("shop"), reuseport=True)
    assert block.listens == ["80", "443 ssl", "443 quic reuseport"]
    assert block.http2_on


def test_plain_http_answers_the_challenges_of_an_acme_authority(make_nginx):
    nginx = make_nginx({"tls": "acme"}, {"acme": {"email": "ops@example.com"}})
    assert [block.challenge for block in blocks(nginx)] == [False, True]


def test_a_location_leaves_out_the_headers_that_it_adds_itself():
    app = {
        "cors": {"origins": ["https://example.net"], "expose": ["X-Total"], "credentials": True},
        "limits": {"all": {}},
        "security_headers": True,
        "response_headers": {"x-frame-options": "DENY", "Cache-Control": "no-store"},
    }
    names = [name for name, _ in words.added_headers("shop", app)]
    assert names == [
        "Access-Control-Allow-Origin",
        "Vary",
        "Access-Control-Allow-Credentials",
        "Access-Control-Expose-Headers",
        "Retry-After",
        "X-Content-Type-Options",
        "Referrer-Policy",
        "x-frame-options",
        "Cache-Control",
    ]
    fewer = [name for name, _ in words.added_headers("shop", app, own=["cache-control", "retry-after"])]
    assert fewer == [name for name in names if name not in ("Cache-Control", "Retry-After")]
    assert ("Referrer-Policy", "$wsgi_internal_referrer_policy") in words.added_headers("shop", app, internal=True)
