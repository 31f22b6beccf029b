"""Sites: which apps share a server block of nginx, and which conflict."""

import pytest
from pillars import HELLO
from wsgi_formula.edge.nginx import Nginx
from wsgi_formula.pillar import sites

SHOP = {**HELLO, "domains": ["example.com"]}


@pytest.fixture
def make_sites(load):
    """make_sites({name: {key: value, …}, …}) returns the sites of these apps, and their problems."""

    def sites_of(apps):
        settings = load({"apps": {name: {**SHOP, **own} for name, own in apps.items()}})
        return settings.sites, settings.messages

    return sites_of


@pytest.fixture
def disk(make_host, tmp_path):
    """disk(apps, {file: text, …}) returns a host with such apps, and these files in nginx's own folder."""

    def host_of(apps, files=()):
        host = make_host({"apps": {name: {**SHOP, **own} for name, own in apps.items()}})
        host.family["nginx"].update(conf_dir=f"{tmp_path}/conf.d", own_dir=str(tmp_path))
        for file, text in dict(files).items():
            path = tmp_path / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return host

    return host_of


def inner(host, files):
    own = host.family["nginx"]["own_dir"]
    return {path[len(own) + 1 :]: text for path, text in files.items()}


def test_apps_of_different_domains_have_sites_of_their_own(make_sites):
    sites, _ = make_sites({"shop": {}, "blog": {"domains": ["*.example.org"]}, "rest": {"domains": []}})
    assert {id: site.apps for id, site in sites.items()} == {
        "example.com_80": ("shop",),
        "_.example.org_80": ("blog",),
        "default_80": ("rest",),
    }


def test_apps_of_one_domain_share_a_site_at_their_mounts(make_sites):
    sites, problems = make_sites({"shop": {"mount": "/shop"}, "home": {}})
    assert problems == []
    assert sites["example.com_80"].apps == ("home", "shop")


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        ({}, "domains: 'example.com' on port 80 belongs to app shop already"),
        ({"domains": ["EXAMPLE.com"]}, "domains: 'example.com' on port 80 belongs to app shop already"),
        (
            {"mount": "/b", "domains": ["example.com", "example.org"]},
            "domains: 'example.com' on port 80 belongs to app shop too; apps of one host need the same list of domains",
        ),
        (
            {"domains": ["b.org"], "redirect_domains": ["example.com"]},
            "redirect_domains: 'example.com' on port 80 is one",
        ),
        (
            {"domains": [], "redirect_domains": ["b.org"]},
            "redirect_domains: 'b.org' cannot be redirected to an app without",
        ),
        (
            {"domains": ["b.org"], "listen": 81, "tls": {"listen": 80}},
            "tls: port 80 is used by app shop for plain HTTP (listen)",
        ),
        (
            {"mount": "/b", "tls": {"hsts": 5}},
            "tls: 'example.com' on port 80 belongs to app shop too, whose tls differs; set it in one of them only",
        ),
        (
            {"mount": "/b", "response_headers": {"strict-transport-security": "max-age=1"}},
            "response_headers:strict-transport-security: 'example.com' on port 80 belongs to app shop too, whose tls:hsts sets this header",
        ),
    ],
    ids=str,
)
def test_conflicting_sites_are_refused(make_sites, other, problem):
    shop = {"tls": {"certificate": "self_signed", "hsts": 60}} if "mount" in other else {}
    _, problems = make_sites({"shop": shop, "other": other})
    assert any(found.startswith(f"wsgi:apps:other:{problem}") for found in problems), problems


def test_tls_of_one_app_applies_to_its_site(make_sites):
    sites, problems = make_sites({"home": {}, "shop": {"mount": "/shop", "tls": "self_signed"}})
    assert problems == []
    assert sites["example.com_80"].tls["certificate"] == "self_signed"


@pytest.mark.parametrize("said", ["none", {"certificate": "none"}, None])
def test_tls_none_disables_tls(make_sites, said):
    assert make_sites({"shop": {"tls": said}})[0]["example.com_80"].tls is None


def test_mount_is_prefixed_to_each_path_of_the_app():
    assert sites.mounted({"mount": "/"}, "/static/") == "/static/"
    assert sites.mounted({"mount": "/shop"}, "/static/") == "/shop/static/"


# Installed files


def test_site_includes_the_locations_of_each_app(disk):
    host = disk({"home": {}, "shop": {"mount": "/shop"}})
    found = inner(host, host.once(Nginx).needed_changes("home"))
    assert {*found} == {
        "conf.d/wsgi.conf", "wsgi.conf", "proxy.conf", "tls.conf", "apps/home.conf", "locations/home.conf", "proxied/home.conf",
        "dispatch/home.conf", "sites/example.com_80.conf",
    }  # fmt: skip
    members = [line.split("/")[-1] for line in found["sites/example.com_80.conf"].splitlines() if "/locations/" in line]
    assert members == ["home.con[f];", "shop.con[f];"]


def test_moving_an_app_removes_its_old_site(disk):
    before = disk({"shop": {"domains": ["old.example.com"]}})
    files = inner(before, before.once(Nginx).needed_changes("shop"))
    host = disk({"shop": {}}, files)
    found = inner(host, host.once(Nginx).needed_changes("shop"))
    assert found["sites/old.example.com_80.conf"] is None
    assert "example.com" in found["sites/example.com_80.conf"]


def test_removing_an_app_keeps_the_site_for_the_others(disk):
    before = disk({"home": {}, "shop": {"mount": "/shop"}})
    files = inner(before, before.once(Nginx).needed_changes("home", "shop"))
    host = disk({"home": {}}, files)
    found = inner(host, host.once(Nginx).needed_changes(without_apps=["shop"]))
    assert {name for name, text in found.items() if text is None} == {
        "apps/shop.conf", "locations/shop.conf", "proxied/shop.conf", "dispatch/shop.conf",
    }  # fmt: skip
    assert "shop" not in found["sites/example.com_80.conf"].partition("\n")[2]


def test_site_with_a_broken_app_stays_unchanged(disk):
    apps = {"home": {"tls": "self_signed"}, "shop": {"mount": "/shop"}}
    before = disk(apps)
    files = inner(before, before.once(Nginx).needed_changes("home", "shop"))
    host = disk({**apps, "home": {"tls": "self-signed"}}, files)
    assert host.settings.broken == {"home"}
    assert host.once(Nginx).needed_changes("shop") == {}


def test_another_app_can_join_a_site_with_a_broken_app(disk):
    apps = {"home": {}}
    before = disk(apps)
    files = inner(before, before.once(Nginx).needed_changes("home"))
    host = disk({"home": {"server": "unicorn"}, "shop": {"mount": "/shop"}}, files)
    found = inner(host, host.once(Nginx).needed_changes("shop"))
    assert files["sites/example.com_80.conf"].splitlines()[:-2] == found["sites/example.com_80.conf"].splitlines()[:-3]
    assert "locations/shop.con[f];" in found["sites/example.com_80.conf"]


@pytest.mark.parametrize(("server", "known"), [("gunicorn", 3), ("uwsgi", 3), ("waitress", 2)])
def test_upstream_changes_with_workers_only_if_each_has_a_socket(disk, server, known):
    before = disk({"shop": {"server": "waitress", "workers": 3}})
    files = inner(before, before.once(Nginx).needed_changes("shop"))
    host = disk({"shop": {"server": server, "workers": 2}}, files)
    found = host.once(Nginx).desired_files("shop")[host.once(Nginx).files.app("shop").upstreams]
    assert found.count("/http-") == known
    assert host.once(Nginx).differs("shop") == (known == 2)
