"""Mounts: several apps on one site, each under a path and a server of its own."""

import json

import pytest
from pillars import inspected

DOMAINS = ["example.com", "*.example.org"]
MOUNTS = {"home": ("gunicorn", "/"), "shop": ("uwsgi", "/shop"), "cart": ("waitress", "/shop/cart")}


def pillar(*names):
    apps = {
        name: inspected(server, domains=DOMAINS, mount=mount, env={"NAME": name})
        for name, (server, mount) in MOUNTS.items()
        if name in names
    }
    apps["home"]["redirect_domains"] = ["www.example.com"]
    return {"apps": apps}


@pytest.fixture(scope="module")
def shared(machine):
    machine.pillar(pillar(*MOUNTS))
    machine.apply()
    return machine


def answering_app(machine, path, host="example.com"):
    """Return the name of the app that answers, its SCRIPT_NAME and its PATH_INFO."""
    seen = json.loads(machine.get(path, host=host).body)
    return seen["env"]["NAME"], seen["environ"].get("SCRIPT_NAME", ""), seen["environ"]["PATH_INFO"]


@pytest.mark.parametrize("host", ["example.com", "any.example.org"])
@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/", ("home", "", "/")),
        ("/shopping", ("home", "", "/shopping")),
        ("/shop/", ("shop", "/shop", "/")),
        ("/shop/a%2Fb", ("shop", "/shop", "/a/b")),
        ("/shop/carts", ("shop", "/shop", "/carts")),
        ("/shop/cart/a", ("cart", "/shop/cart", "/a")),
        ("/%73hop/cart/a", ("cart", "/shop/cart", "/a")),
    ],
)
def test_each_app_answers_below_its_mount(shared, host, path, answer):
    assert answering_app(shared, path, host) == answer


@pytest.mark.parametrize(("path", "to"), [("/shop", "/shop/"), ("/shop/cart?a=b", "/shop/cart/?a=b")])
def test_mount_without_its_slash_redirects_to_it_with_the_slash(shared, path, to):
    response = shared.get(path, host="example.com")
    assert (response.status, response.headers["Location"]) == (308, to)


def test_redirect_domain_redirects_to_the_first_domain(shared):
    response = shared.get("/shop/a?b=%20", host="www.example.com")
    assert (response.status, response.headers["Location"]) == (308, "http://example.com/shop/a?b=%20")


def test_removing_and_adding_an_app_loses_no_request_of_its_neighbours(shared):
    with shared.load(clients=4, host="example.com", path="/shop/", pause=0.01) as load:
        shared.pillar(pillar("home", "shop"))
        shared.apply()
        assert answering_app(shared, "/shop/cart/a") == ("shop", "/shop", "/cart/a")
        shared.pillar(pillar(*MOUNTS))
        shared.apply()
        assert answering_app(shared, "/shop/cart/a") == ("cart", "/shop/cart", "/a")
    assert load.report["lost"] == 0, json.dumps(load.report, indent=1)


def test_path_outside_of_every_mount_is_answered_with_404(shared):
    shared.pillar({"apps": {"cart": pillar(*MOUNTS)["apps"]["cart"]}})
    shared.apply()
    assert answering_app(shared, "/shop/cart/a") == ("cart", "/shop/cart", "/a")
    for path in ("/", "/index.nginx-debian.html", "/shop/"):
        assert shared.get(path, host="example.com").status == 404
