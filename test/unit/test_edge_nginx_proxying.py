"""Trusted proxies, buffering, retries, mounts and redirects: which values are refused, and nginx's files for the others."""

import re

import pytest
from pillars import HELLO

SHOP = {**HELLO, "domains": ["shop.example.com"]}


@pytest.fixture
def make_files(make_nginx_files):
    """make_files(own, nginx) returns nginx's files of the app `shop` with these settings, and with such of the host."""
    return lambda own=None, nginx=None: make_nginx_files({"shop": {**SHOP, **(own or {})}}, nginx=nginx or {})


def block(text, start):
    """Return the text in the braces after a start."""
    return re.search(rf"(?ms)^{re.escape(start)} {{\n(.*?)^}}", text)[1]


def test_no_proxy_is_trusted_by_default(make_files):
    text = make_files()["wsgi.conf"]
    assert "real_ip" not in text
    for ours, nginxs in {"scheme": "scheme", "port": "server_port", "request_id": "request_id"}.items():
        assert block(text, f"map ${nginxs} $wsgi_{ours}").split() == ["default", f"${nginxs};"]


def test_address_and_scheme_of_the_client_come_from_trusted_proxies(make_files):
    text = make_files(nginx={"trusted_proxies": ["192.0.2.7", "2001:db8::/32"]})["wsgi.conf"]
    assert re.findall(r"set_real_ip_from (\S+);", text) == ["192.0.2.7", "2001:db8::/32"]
    assert "real_ip_header X-Forwarded-For;" in text
    assert "192.0.2.7 1;" in block(text, "geo $realip_remote_addr $wsgi_trusted")


def test_proxy_protocol_does_not_make_headers_trusted(make_files):
    """A proxy that speaks it may pass on all headers of the client."""
    files = make_files(nginx={"trusted_proxies": ["192.0.2.7"], "proxy_protocol": True})
    assert "real_ip_header proxy_protocol;" in files["wsgi.conf"]
    assert "192.0.2.7 1;" not in files["wsgi.conf"]
    for name in ("wsgi.conf", "sites/shop.example.com_80.conf"):
        listens = re.findall(r"^ *listen (.*);", files[name], re.MULTILINE)
        assert listens
        assert all(" proxy_protocol" in words for words in listens)


@pytest.mark.parametrize(
    ("nginx", "problem"),
    [
        ({"proxy_protocol": True}, "trusted_proxies: missing; with proxy_protocol, it must be a list of the addresses"),
        ({"trusted_proxies": ["0.0.0.0/0"]}, "trusted_proxies: ['0.0.0.0/0'] must be a list of the addresses"),
        ({"trusted_proxies": ["::/0"]}, "trusted_proxies: ['::/0'] must be"),
        ({"trusted_proxies": ["10.0.0.0/255.0.0.0"]}, "trusted_proxies: ['10.0.0.0/255.0.0.0'] must be"),
        ({"trusted_proxies": ["fe80::1%eth0"]}, "trusted_proxies: ['fe80::1%eth0'] must be"),
        ({"trusted_proxies": ["balancer.example.com"]}, "trusted_proxies: ['balancer.example.com'] must be"),
        ({"trusted_proxies": "10.0.0.0/8"}, "trusted_proxies: '10.0.0.0/8' must be a list"),
        ({"proxy_protocol": "yes"}, "proxy_protocol: 'yes' must be true or false"),
    ],
    ids=str,
)
def test_invalid_trusted_proxies_are_refused(load, nginx, problem):
    settings = load({"apps": {"shop": SHOP}, "nginx": nginx})
    assert any(found.startswith(f"wsgi:nginx:{problem}") for found in settings.messages), settings.messages
    assert settings.host_wide


def test_responses_are_buffered_unless_the_app_disables_it(make_files):
    assert "_buffering" not in make_files()["locations/shop.conf"]
    text = make_files({"buffering": False})["locations/shop.conf"]
    assert text.count("    proxy_buffering off;") == text.count("    uwsgi_buffering off;") == 4
    assert "request_buffering" not in text


def test_only_bodies_with_a_length_are_passed_on_unbuffered(make_files):
    text = make_files({"request_buffering": False})["locations/shop.conf"]
    assert "if ($content_length) {\n        return 420;" in block(text, "location /")
    unbuffered = block(text, "location @shop-unbuffered")
    assert "proxy_request_buffering off;" in unbuffered
    assert "uwsgi_request_buffering off;" in unbuffered
    # A part of the body may be sent already.
    assert "@shop-retry" not in unbuffered
    assert text.count("request_buffering off;") == 2


def test_request_that_reached_a_worker_is_not_sent_to_another(make_files):
    text = make_files()["locations/shop.conf"]
    tries = [
        re.search(r"proxy_next_upstream_tries (\d);", block(text, f"location {name}"))[1]
        for name in ("/", "@shop-checks", "@shop-drain", "@shop-retry")
    ]
    assert tries == ["1", "1", "1", "0"]
    assert "if ($upstream_bytes_sent ~ [1-9]) {\n        return 502;" in block(text, "location @shop-retry")


def test_client_timeouts_are_the_same_on_each_port(make_files):
    files = make_files()
    for name in ("wsgi.conf", "sites/shop.example.com_80.conf"):
        assert "underscores_in_headers off;" in files[name]
        assert "client_header_timeout 15s;" in files[name]


@pytest.mark.parametrize("own", [{"client_max_body_size": "7m"}, {}])
def test_client_max_body_size_of_the_host_is_the_default_for_apps(make_files, own):
    text = make_files(own, {"client_max_body_size": "3m"})["locations/shop.conf"]
    assert {*re.findall(r"client_max_body_size (\S+);", block(text, "location /"))} == {"7m" if own else "3m"}


# Mounts and redirects


def test_mount_covers_paths_below_it_and_no_others_with_the_same_prefix(make_files):
    text = make_files({"mount": "/shop"})["locations/shop.conf"]
    assert re.findall(r"^location (=? ?/\S*) {", text, re.MULTILINE)[:2] == ["= /shop", "/shop/"]
    assert "    return 308 /shop/$is_args$args;" in block(text, "location = /shop").split("\n")
    assert 'set $wsgi_mount "/shop";' in text


@pytest.mark.parametrize("mount", ["shop", "/shop/", "//shop", "/a b", "/a;b", "/$uri", "/../shop", "/shop/.", "", 7])
def test_invalid_mount_is_refused(load, mount):
    problems = load({"apps": {"shop": {**SHOP, "mount": mount}}}).messages
    assert problems == [f"wsgi:apps:shop:mount: {mount!r} must be a path such as /shop, or /"]


@pytest.mark.parametrize("mount", ["/", "/shop", "/shop/v1.2", "/...", "/~ann"])
def test_valid_mount_is_accepted(load, mount):
    assert load({"apps": {"shop": {**SHOP, "mount": mount}}}).messages == []


def test_redirect_keeps_the_scheme_and_port_of_the_client(make_files):
    own = {"redirect_domains": ["www.example.com"], "listen": 8080}
    text = make_files(own, {"trusted_proxies": ["192.0.2.7"]})["sites/shop.example.com_8080.conf"]
    assert "return 308 $wsgi_scheme://shop.example.com$wsgi_url_port$request_uri;" in text


@pytest.mark.parametrize(
    ("shop", "blog", "problem"),
    [
        (
            {"domains": ["*.example.com"], "redirect_domains": ["example.com"]},
            {},
            "shop:redirect_domains: 'example.com' cannot be redirected to '*.example.com'; put a complete host name first",
        ),
        (
            {"redirect_domains": ["www.example.com"]},
            {"redirect_domains": ["WWW.example.com"]},
            "blog:redirect_domains: 'WWW.example.com' on port 80 is redirected by app shop already",
        ),
    ],
)
def test_redirect_without_one_clear_target_is_refused(load, shop, blog, problem):
    apps = {"shop": {**SHOP, **shop}, "blog": {**HELLO, "domains": ["blog.example.org"], **blog}}
    assert load({"apps": apps}).messages == [f"wsgi:apps:{problem}"]


def test_apps_of_one_site_may_have_the_same_redirect_domain(load):
    own = {**SHOP, "redirect_domains": ["www.example.com"]}
    assert load({"apps": {"shop": own, "cart": {**own, "mount": "/cart"}}}).messages == []
