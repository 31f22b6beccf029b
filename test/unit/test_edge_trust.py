"""Whom nginx believes, how it asks an app, and where a mount lies: what pillar may say of it, and the text of it."""

import re

import pytest
from conftest import as_nginx_reads
from wsgi_formula.edge.nginx import Nginx

HELLO = {"source": "salt://wsgi/examples/hello", "application": "hello:application"}
SHOP = {**HELLO, "domains": ["shop.example.com"]}


@pytest.fixture
def make_files(make_host, tmp_path):
    """make_files(app, nginx) are nginx's files for an app `shop` and such settings of the host: name to text."""

    def files_of(own=None, proxy=None):
        host = make_host({"apps": {"shop": {**SHOP, **(own or {})}}, "nginx": proxy or {}})
        assert host.settings.problems == []
        host.family["nginx"].update(conf_dir=str(tmp_path), own_dir=str(tmp_path))
        files = as_nginx_reads(host.once(Nginx).needed_changes("shop"))
        return {path[len(str(tmp_path)) + 1 :]: text for path, text in files.items()}

    return files_of


def block(text, start):
    """What stands between the braces after some words."""
    return re.search(rf"(?ms)^{re.escape(start)} {{\n(.*?)^}}", text)[1]


def test_nobody_is_trusted_who_is_not_named(make_files):
    text = make_files()["wsgi.conf"]
    assert "real_ip" not in text
    for ours, nginxs in {"scheme": "scheme", "port": "server_port", "request_id": "request_id"}.items():
        assert block(text, f"map ${nginxs} $wsgi_{ours}").split() == ["default", f"${nginxs};"]


def test_trusted_proxies_say_who_the_client_is_and_how_it_asked(make_files):
    text = make_files(proxy={"trusted_proxies": ["192.0.2.7", "2001:db8::/32"]})["wsgi.conf"]
    assert re.findall(r"set_real_ip_from (\S+);", text) == ["192.0.2.7", "2001:db8::/32"]
    assert "real_ip_header X-Forwarded-For;" in text
    assert "192.0.2.7 1;" in block(text, "geo $realip_remote_addr $wsgi_trusted")


def test_the_proxy_protocol_makes_no_header_believed(make_files):
    """Who speaks it passes on whatever headers the client sends."""
    files = make_files(proxy={"trusted_proxies": ["192.0.2.7"], "proxy_protocol": True})
    assert "real_ip_header proxy_protocol;" in files["wsgi.conf"]
    assert "192.0.2.7 1;" not in files["wsgi.conf"]
    for name in ("wsgi.conf", "sites/shop.example.com_80.conf"):
        listens = re.findall(r"^ *listen (.*);", files[name], re.MULTILINE)
        assert listens
        assert all(" proxy_protocol" in words for words in listens)


@pytest.mark.parametrize(
    ("nginx", "problem"),
    [
        ({"proxy_protocol": True}, "trusted_proxies: missing; with proxy_protocol, it must be a list of the proxies'"),
        ({"trusted_proxies": ["0.0.0.0/0"]}, "trusted_proxies: ['0.0.0.0/0'] must be a list of the proxies' own"),
        ({"trusted_proxies": ["::/0"]}, "trusted_proxies: ['::/0'] must be"),
        ({"trusted_proxies": ["10.0.0.0/255.0.0.0"]}, "trusted_proxies: ['10.0.0.0/255.0.0.0'] must be"),
        ({"trusted_proxies": ["fe80::1%eth0"]}, "trusted_proxies: ['fe80::1%eth0'] must be"),
        ({"trusted_proxies": ["balancer.example.com"]}, "trusted_proxies: ['balancer.example.com'] must be"),
        ({"trusted_proxies": "10.0.0.0/8"}, "trusted_proxies: '10.0.0.0/8' must be a list"),
        ({"proxy_protocol": "yes"}, "proxy_protocol: 'yes' must be true or false"),
    ],
    ids=str,
)
def test_a_proxy_that_cannot_be_trusted_is_refused(load, nginx, problem):
    settings = load({"apps": {"shop": SHOP}, "nginx": nginx})
    assert any(found.startswith(f"wsgi:nginx:{problem}") for found in settings.problems), settings.problems
    assert settings.host_wide


def test_answers_are_buffered_unless_the_app_says_otherwise(make_files):
    assert "_buffering" not in make_files()["locations/shop.conf"]
    text = make_files({"buffering": False})["locations/shop.conf"]
    assert text.count("    proxy_buffering off;") == text.count("    uwsgi_buffering off;") == 4
    assert "request_buffering" not in text


def test_only_bodies_of_a_known_length_are_handed_on_as_they_come(make_files):
    text = make_files({"request_buffering": False})["locations/shop.conf"]
    assert "if ($content_length) {\n        return 420;" in block(text, "location /")
    unbuffered = block(text, "location @shop-unbuffered")
    assert "proxy_request_buffering off;" in unbuffered
    assert "uwsgi_request_buffering off;" in unbuffered
    # Half of it may be gone.
    assert "@shop-retry" not in unbuffered
    assert text.count("request_buffering off;") == 2


def test_what_a_worker_has_fallen_over_is_brought_to_no_other(make_files):
    text = make_files()["locations/shop.conf"]
    tries = [
        re.search(r"proxy_next_upstream_tries (\d);", block(text, f"location {name}"))[1]
        for name in ("/", "@shop-checks", "@shop-drain", "@shop-retry")
    ]
    assert tries == ["1", "1", "1", "0"]
    assert "if ($upstream_bytes_sent ~ [1-9]) {\n        return 502;" in block(text, "location @shop-retry")


def test_each_port_has_the_same_patience_with_clients_whose_host_is_not_known_yet(make_files):
    files = make_files()
    for name in ("wsgi.conf", "sites/shop.example.com_80.conf"):
        assert "underscores_in_headers off;" in files[name]
        assert "client_header_timeout 15s;" in files[name]


@pytest.mark.parametrize("own", [{"client_max_body_size": "7m"}, {}])
def test_the_hosts_word_on_large_bodies_is_for_apps_that_say_nothing(make_files, own):
    text = make_files(own, {"client_max_body_size": "3m"})["locations/shop.conf"]
    assert {*re.findall(r"client_max_body_size (\S+);", block(text, "location /"))} == {"7m" if own else "3m"}


# Mounts and redirects


def test_a_mount_takes_what_is_below_it_and_nothing_that_only_begins_like_it(make_files):
    text = make_files({"mount": "/shop"})["locations/shop.conf"]
    assert re.findall(r"^location (=? ?/\S*) {", text, re.MULTILINE)[:2] == ["= /shop", "/shop/"]
    assert "    return 308 /shop/$is_args$args;" in block(text, "location = /shop").split("\n")
    assert 'set $wsgi_mount "/shop";' in text


@pytest.mark.parametrize("mount", ["shop", "/shop/", "//shop", "/a b", "/a;b", "/$uri", "/../shop", "/shop/.", "", 7])
def test_a_mount_that_no_request_would_find_is_refused(load, mount):
    problems = load({"apps": {"shop": {**SHOP, "mount": mount}}}).problems
    assert problems == [f"wsgi:apps:shop:mount: {mount!r} must be a path such as /shop, or /"]


@pytest.mark.parametrize("mount", ["/", "/shop", "/shop/v1.2", "/...", "/~ann"])
def test_a_mount_is_a_path(load, mount):
    assert load({"apps": {"shop": {**SHOP, "mount": mount}}}).problems == []


def test_a_redirect_keeps_scheme_and_port_as_the_client_knows_them(make_files):
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
def test_a_redirect_that_leads_nowhere_or_to_two_places_is_refused(load, shop, blog, problem):
    apps = {"shop": {**SHOP, **shop}, "blog": {**HELLO, "domains": ["blog.example.org"], **blog}}
    assert load({"apps": apps}).problems == [f"wsgi:apps:{problem}"]


def test_apps_of_one_site_may_name_the_same_redirect(load):
    own = {**SHOP, "redirect_domains": ["www.example.com"]}
    assert load({"apps": {"shop": own, "cart": {**own, "mount": "/cart"}}}).problems == []
