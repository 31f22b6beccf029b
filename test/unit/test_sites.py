"""Which apps share nginx's server block, and which can't."""

import pytest
from wsgi_formula.edge.nginx import Nginx
from wsgi_formula.pillar import sites

SHOP = {"source": "salt://wsgi/examples/hello", "application": "hello:application", "domains": ["example.com"]}


@pytest.fixture
def make_sites(load):
    """make_sites({name: {key: value, …}, …}) are the sites that these apps come to, and their problems."""

    def sites_of(apps):
        settings = load({"apps": {name: {**SHOP, **own} for name, own in apps.items()}})
        return settings.sites, settings.problems

    return sites_of


@pytest.fixture
def disk(make_host, tmp_path):
    """disk(apps, {file: text, …}) is a host with such apps, nginx's own folder on which holds these files."""

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


def test_each_app_has_a_site_of_its_own(make_sites):
    sites, _ = make_sites({"shop": {}, "blog": {"domains": ["*.example.org"]}, "rest": {"domains": []}})
    assert {id: site.apps for id, site in sites.items()} == {
        "example.com_80": ("shop",),
        "_.example.org_80": ("blog",),
        "default_80": ("rest",),
    }


def test_apps_of_one_host_share_a_site_each_at_its_mount(make_sites):
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
def test_what_nginx_could_not_tell_apart_is_refused(make_sites, other, problem):
    shop = {"tls": {"certificate": "self_signed", "hsts": 60}} if "mount" in other else {}
    _, problems = make_sites({"shop": shop, "other": other})
    assert any(found.startswith(f"wsgi:apps:other:{problem}") for found in problems), problems


def test_one_app_of_a_site_speaks_for_all(make_sites):
    sites, problems = make_sites({"home": {}, "shop": {"mount": "/shop", "tls": "self_signed"}})
    assert problems == []
    assert sites["example.com_80"].tls["certificate"] == "self_signed"


@pytest.mark.parametrize("said", ["none", {"certificate": "none"}, None])
def test_no_tls_is_a_word_too(make_sites, said):
    assert make_sites({"shop": {"tls": said}})[0]["example.com_80"].tls is None


def test_a_mount_is_before_each_path_of_the_app():
    assert sites.mounted({"mount": "/"}, "/static/") == "/static/"
    assert sites.mounted({"mount": "/shop"}, "/static/") == "/shop/static/"


# What of it is on the disk


def test_a_site_leads_to_each_of_its_apps_locations(disk):
    host = disk({"home": {}, "shop": {"mount": "/shop"}})
    found = inner(host, host.once(Nginx).needed_changes("home"))
    assert {*found} == {
        "conf.d/wsgi.conf", "wsgi.conf", "proxy.conf", "tls.conf", "apps/home.conf", "locations/home.conf", "proxied/home.conf",
        "dispatch/home.conf", "sites/example.com_80.conf",
    }  # fmt: skip
    members = [line.split("/")[-1] for line in found["sites/example.com_80.conf"].splitlines() if "/locations/" in line]
    assert members == ["home.con[f];", "shop.con[f];"]


def test_an_app_that_moves_takes_its_old_site_away(disk):
    before = disk({"shop": {"domains": ["old.example.com"]}})
    files = inner(before, before.once(Nginx).needed_changes("shop"))
    host = disk({"shop": {}}, files)
    found = inner(host, host.once(Nginx).needed_changes("shop"))
    assert found["sites/old.example.com_80.conf"] is None
    assert "example.com" in found["sites/example.com_80.conf"]


def test_an_app_that_goes_leaves_its_site_to_the_others(disk):
    before = disk({"home": {}, "shop": {"mount": "/shop"}})
    files = inner(before, before.once(Nginx).needed_changes("home", "shop"))
    host = disk({"home": {}}, files)
    found = inner(host, host.once(Nginx).needed_changes(without_apps=["shop"]))
    assert {name for name, text in found.items() if text is None} == {
        "apps/shop.conf", "locations/shop.conf", "proxied/shop.conf", "dispatch/shop.conf",
    }  # fmt: skip
    assert "shop" not in found["sites/example.com_80.conf"].partition("\n")[2]


def test_a_site_one_of_whose_apps_has_a_problem_stays_as_it_is(disk):
    apps = {"home": {"tls": "self_signed"}, "shop": {"mount": "/shop"}}
    before = disk(apps)
    files = inner(before, before.once(Nginx).needed_changes("home", "shop"))
    host = disk({**apps, "home": {"tls": "self-signed"}}, files)
    assert host.settings.broken == {"home"}
    assert host.once(Nginx).needed_changes("shop") == {}


def test_another_app_can_join_such_a_site(disk):
    apps = {"home": {}}
    before = disk(apps)
    files = inner(before, before.once(Nginx).needed_changes("home"))
    host = disk({"home": {"server": "unicorn"}, "shop": {"mount": "/shop"}}, files)
    found = inner(host, host.once(Nginx).needed_changes("shop"))
    assert files["sites/example.com_80.conf"].splitlines()[:-2] == found["sites/example.com_80.conf"].splitlines()[:-3]
    assert "locations/shop.con[f];" in found["sites/example.com_80.conf"]


@pytest.mark.parametrize(("server", "known"), [("gunicorn", 3), ("uwsgi", 3), ("waitress", 2)])
def test_nginx_learns_of_another_number_of_workers_where_each_has_a_socket(disk, server, known):
    before = disk({"shop": {"server": "waitress", "workers": 3}})
    files = inner(before, before.once(Nginx).needed_changes("shop"))
    host = disk({"shop": {"server": server, "workers": 2}}, files)
    found = host.once(Nginx).desired_files("shop")[host.once(Nginx).files.app("shop").upstreams]
    assert found.count("/http-") == known
    assert host.once(Nginx).differs("shop") == (known == 2)
