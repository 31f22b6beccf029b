"""Raw nginx directives, which are verbatim and validated before they take effect; and unmanaged nginx."""

import json

import pytest
from pillars import app

ONE = {"one": app("uwsgi", domains=["one.test"])}
NGINX = "/etc/nginx/nginx.conf"


def others(machine):
    """Return all files of nginx that are not the formula's, with their times, and the state of the service."""
    return machine.exec(
        "find /etc/nginx /etc/logrotate.d/nginx /lib/systemd/system/nginx.service -path '*/wsgi*' -prune -o"
        " ! -type d -printf '%p %T@ %i %m %l\\n' | sort; systemctl is-enabled nginx; systemctl is-active nginx;"
        " systemctl show --property=MainPID nginx; md5sum /var/lib/dpkg/status"
    ).stdout


def sites(machine):
    return machine.exec(
        "head -c 99999 /etc/nginx/conf.d/wsgi.conf /etc/nginx/wsgi/live/*/* /etc/nginx/wsgi/live/*.conf"
    ).stdout


# Unmanaged nginx


def test_unmanaged_nginx_gets_our_sites_and_is_otherwise_left_alone(machine):
    machine.exec("systemctl start nginx")
    before = others(machine)
    machine.pillar({"nginx": {"manage": False}, "status_page": {}, "apps": ONE})
    run = machine.apply()
    assert {"nginx-package", "nginx-service", "/etc/nginx/sites-enabled/default"} & {*run.states} == set()
    assert machine.get("/", host="one.test").body.startswith("hello")
    assert "Welcome to nginx" in machine.get("/").body
    assert "one" in machine.get("/", port=8079).body
    assert others(machine) == before
    assert machine.apply().changed == set()


UNSUITABLE = {
    "s|include /etc/nginx/conf.d|# &|": "nginx does not read /etc/nginx/conf.d/wsgi.conf",
    # nginx.org's packages have a user of their own.
    "s|^user .*|user daemon;|": "nginx runs as 'daemon', but the sockets of the apps belong to 'www-data'",
}


@pytest.mark.parametrize(("edit", "why"), UNSUITABLE.items())
def test_unmanaged_nginx_that_cannot_read_our_files_is_refused(machine, edit, why):
    before = sites(machine)
    machine.exec(["sed", "-i.before", edit, NGINX])
    try:
        machine.pillar({"nginx": {"manage": False}, "apps": {"one": {**ONE["one"], "domains": ["other.test"]}}})
        run = machine.apply(ok=False)
    finally:
        machine.exec(["mv", f"{NGINX}.before", NGINX])
    assert why in run.states["one-site"]["comment"]
    assert sites(machine) == before
    assert machine.get("/", host="one.test").status == 200


def test_clean_removes_only_our_files_from_an_unmanaged_nginx(machine):
    before = others(machine)
    machine.apply(sls="wsgi.clean")
    assert others(machine) == before
    assert machine.exec("find /etc/nginx -name 'wsgi*'").stdout.split() == []
    assert "Welcome to nginx" in machine.get("/", host="one.test").body


# Raw directives

# Lines that would break if they were changed: a quoted text spans two.
VERBATIM = """\
default_type text/plain;
location = /verbatim {
    return 200 "first
  second # no comment; { nor a block
";
}
"""
PILLAR = {
    "nginx": {
        "http": "map $uri $of_the_host {\n    default http;\n}\n",
        "server": "set $order host;",
        "location": "add_header X-Order $order;\nadd_header X-Host $of_the_host;",
    },
    "apps": {
        "one": app(
            "uwsgi",
            domains=["one.test"],
            nginx={
                "http": "map $of_the_host $of_the_app { default $of_the_host-app; }",
                "server": f"set $order $order-app;\n{VERBATIM}",
                "location": "add_header X-App $of_the_app;\nif ($arg_paid = no) {\n    return 402;\n}",
            },
        ),
        "two": app("uwsgi", domains=["two.test"]),
        "three": app("uwsgi", domains=["three.test"]),
    },
}


def pillar_with(host_directives=None, **app_directives):
    """Return PILLAR with other directives for some apps or for the host."""
    apps = {
        name: {**said, "nginx": app_directives.get(name, said.get("nginx", {}))}
        for name, said in PILLAR["apps"].items()
    }
    return {"nginx": {**PILLAR["nginx"], **(host_directives or {})}, "apps": apps}


def test_raw_directives_are_verbatim_and_those_of_the_host_come_first(machine):
    machine.pillar(pillar_with())
    machine.apply()
    headers = machine.get("/", host="one.test").headers
    assert (headers["X-Order"], headers["X-Host"], headers["X-App"]) == ("host-app", "http", "http-app")
    assert machine.get("/", host="two.test").headers["X-Order"] == "host"
    assert machine.get("/?paid=no", host="one.test").status == 402
    assert machine.get("/verbatim", host="one.test").body == "first\n  second # no comment; { nor a block\n"


REFUSED = {
    # The second of the app's own lines.
    "one": ({"location": "# Ours.\nadd_headr X-A b;"}, "wsgi:apps:one:nginx:location: nginx -t refuses it"),
    # A directive that the formula sets already.
    "two": ({"location": "proxy_http_version 1.0;"}, "wsgi:apps:two:nginx:location: nginx -t refuses it"),
    # nginx refuses a line of the formula.
    "three": ({"server": "location / { return 204; }"}, "which has wsgi:nginx:server and wsgi:apps:three:nginx:server"),
}


def test_raw_directives_that_nginx_refuses_are_not_installed(machine):
    before = sites(machine)
    machine.pillar(pillar_with(**{name: words for name, (words, _) in REFUSED.items()}))
    run = machine.apply(ok=False)
    assert run.failed == {"one-site", "two-site", "three-site"}
    for name, (_, blamed) in REFUSED.items():
        comment = run.states[f"{name}-site"]["comment"]
        assert blamed in comment
        assert "[emerg]" in comment
        assert machine.get("/", host=f"{name}.test").status == 200
    assert sites(machine) == before


HOST_REFUSED = {
    "http": ("map $uri $of_the_host {\n    default http;\n}\nnonsense;", {"wsgi-nginx"}),
    "location": ("nonsense;", {"one-site", "two-site", "three-site"}),
}


@pytest.mark.parametrize("key", HOST_REFUSED)
def test_invalid_raw_directives_of_the_host_take_no_app_down(machine, key):
    words, failed = HOST_REFUSED[key]
    before = sites(machine)
    machine.pillar(pillar_with(host_directives={key: words}))
    run = machine.apply(ok=False)
    assert run.failed == failed
    for state in failed:
        assert f"wsgi:nginx:{key}: nginx -t refuses it" in run.states[state]["comment"]
        assert 'unknown directive "nonsense" in' in run.states[state]["comment"]
    assert sites(machine) == before
    # The installed files are valid, too.
    machine.exec("nginx -t && systemctl restart nginx")
    assert [machine.get("/", host=f"{name}.test").status for name in ("one", "two")] == [200, 200]


def test_raw_directives_that_depend_on_each_other_change_in_one_step(machine):
    """With either the old or the new directives of the host, no site is valid on its own."""
    renamed = json.loads(json.dumps(pillar_with()).replace("$of_the_host", "$renamed"))
    machine.pillar(renamed)
    machine.apply()
    assert machine.get("/", host="one.test").headers["X-App"] == "http-app"
    # Now an app that uses them is removed in the same run.
    machine.pillar({"apps": {"two": app("uwsgi", domains=["two.test"])}})
    machine.apply()
    assert machine.get("/", host="two.test").headers["X-Host"] is None
