"""Real frameworks, as their users deploy them: Django with migrations and static files, Flask with hashed requirements,
Pyramid as a package."""

import json
import re

import pytest
from pillars import app

SHOP = "shop.example.com"
SECRET = "hunter2-hunter2-hunter2"
COLLECT = "python manage.py collectstatic --noinput"
MIGRATE = "python manage.py migrate --noinput && echo once more >> ~/migrated"
# Each version of the shop is the one before it with some files changed.
VERSIONS = {
    "first": ["first"],
    "second": ["first", "second"],
    "broken": ["first", "second", "broken"],
    "mended": ["first", "second", "mended"],
}


def shop(version="first", **settings):
    return app(
        **{
            "source": f"salt://shop-{version}",
            "application": "shop.wsgi:application",
            "requirements": "requirements.txt",
            "domains": [SHOP],
            "env": {"DJANGO_SECRET_KEY": SECRET},
            "hooks": {
                "build": ["env", COLLECT],  # the first one a careless one
                "before_live": [MIGRATE],
            },
            **settings,
        }
    )


def notes(server):
    return app(
        server,
        source="salt://apps/flask_notes",
        application="notes:app",
        requirements="requirements.txt",
        domains=["notes.example.com"],
    )


def pyramid(server):
    return app(
        server,
        source="salt://apps/pyramid_hello",
        application="pyramid_hello.wsgi:application",
        requirements=["."],
        domains=["pyramid.example.com"],
    )


@pytest.fixture(scope="module")
def first(machine):
    """The run that brings up all three apps."""
    for version, layers in VERSIONS.items():
        machine.exec(f"mkdir /srv/salt-top/shop-{version}")
        for layer in layers:
            machine.exec(f"cp -r /srv/formula/test/apps/django_shop/{layer}/. /srv/salt-top/shop-{version}")
    machine.pillar({"apps": {"shop": shop(), "notes": notes("gunicorn"), "hello": pyramid("gunicorn")}})
    return machine.apply()


@pytest.fixture
def deploy(machine, first):
    """deploy(version, …) applies only the shop at that version, and asserts that no secret is shown."""

    def applied(version="first", ok=True, **settings):
        machine.pillar({"apps": {"shop": shop(version, **settings)}})
        run = machine.apply(ok=ok)
        assert_no_secret(machine, run)
        return run

    return applied


def assert_no_secret(machine, run):
    assert SECRET not in json.dumps(run.raw)
    assert SECRET not in json.dumps([machine.call("wsgi.history", "shop"), machine.call("wsgi.logs", "shop")])


def printed(run, state):
    """Return what the hooks of a state printed, by their commands."""
    return {label.partition(": ")[2]: text for label, text in run.hook_output(state).items()}


def migrated(run):
    """Return the migrations that a run applied; None when it ran no migration command."""
    said = printed(run, "shop-live").get(MIGRATE)
    return said if said is None else re.findall(r"Applying (\S+)\.\.\. OK", said)


def index(machine):
    return json.loads(machine.get("/", host=SHOP).body)


def release(machine):
    return machine.status("shop")["release"]


def visit(machine):
    """Return the number of visits that the session of one browser counts."""
    curl = f"curl --silent --cookie /root/jar --cookie-jar /root/jar --header 'Host: {SHOP}'"
    return json.loads(machine.exec(f"{curl} 127.0.0.1/visits").stdout)["visits"]


def add_note(machine, note):
    curl = "curl --silent --header 'Host: notes.example.com'"
    return machine.exec(f"{curl} --data '{note}' 127.0.0.1").stdout


def test_django_collects_static_files_at_build_and_migrates_before_it_goes_live(machine, first):
    assert_no_secret(machine, first)
    collected = printed(first, "shop-release")
    assert "DJANGO_SECRET_KEY=***" in collected["env"]
    assert "1 static file copied to" in collected[COLLECT]
    assert migrated(first) == ["goods.0001_initial", "sessions.0001_initial"]
    assert index(machine) == {"items": 0, "fields": ["id", "name"], "style": index(machine)["style"]}


def test_django_serves_hashed_files_of_its_release_and_keeps_data_in_its_home(machine, first):
    style = index(machine)["style"]
    assert style.startswith("/static/goods/style.")
    assert style != "/static/goods/style.css"
    answer = machine.get(style, host=SHOP)
    assert (answer.status, answer.body) == (200, "body { color: black }\n")
    assert "immutable" in answer.headers["Cache-Control"]
    assert machine.exec("stat -c %U /var/lib/wsgi/home/shop/shop.sqlite3").stdout.strip() == "wsgi-shop"
    assert [visit(machine), visit(machine)] == [1, 2]


def test_flask_installs_hashed_requirements_and_keeps_data_when_the_server_changes(machine, first):
    assert add_note(machine, "<milk>") == "<milk>"
    assert machine.get("/", host="notes.example.com").body == "<p>&lt;milk&gt;</p>\n"
    machine.pillar({"apps": {"shop": shop(), "notes": notes("waitress"), "hello": pyramid("waitress")}})
    machine.apply()
    assert machine.get("/", host="notes.example.com").body == "<p>&lt;milk&gt;</p>\n"
    assert machine.status("notes")["server"] == "waitress"


def test_pyramid_project_is_installed_as_a_package(machine, first):
    """By now it runs under Waitress, before under gunicorn."""
    assert machine.status("hello")["server"] == "waitress"
    answer = machine.get("/world", host="pyramid.example.com")
    assert json.loads(answer.body) == {"hello": "world", "version": "1.0"}


def test_migration_that_adds_a_column_under_load_loses_no_request(machine, deploy):
    deploy()
    before, style, visits = release(machine), index(machine)["style"], visit(machine)
    # Its POST requests write items all the time.
    with machine.load(clients=4, pause=0.1, host=SHOP, seconds=300) as load:
        run = deploy("second")
    assert load.report["lost"] == 0, load.report
    assert release(machine) != before
    assert "1 static file copied to" in printed(run, "shop-release")[COLLECT]
    assert migrated(run) == ["goods.0002_item_price"]
    after = index(machine)
    assert after["fields"] == ["id", "name", "price"]
    assert after["items"] > 0
    assert after["style"] != style
    assert machine.get(after["style"], host=SHOP).body == "body { color: rebeccapurple }\n"
    assert visit(machine) == visits + 1


def test_changed_setting_or_restart_does_not_migrate_again(machine, deploy):
    def times():
        return len(machine.exec("cat /var/lib/wsgi/home/shop/migrated").stdout.splitlines())

    assert times() == 2  # once for each version
    run = deploy("second", graceful_timeout=20)
    assert run.changed == {"shop-live"}
    assert migrated(run) is None
    machine.call("wsgi.restart", "shop")
    assert machine.apply().changed == set()
    assert times() == 2


def test_django_keeps_data_and_sessions_under_another_server(machine, deploy):
    items, visits = index(machine)["items"], visit(machine)
    run = deploy("second", server="uwsgi", install="environment")
    assert migrated(run) == []  # the environment is another one, and with it the release
    assert machine.status("shop")["server"] == "uwsgi"
    assert (index(machine)["items"], visit(machine)) == (items, visits + 1)
    assert machine.get(index(machine)["style"], host=SHOP).status == 200


def test_failed_migration_stops_the_change_before_it_goes_live(machine, deploy):
    before, items = machine.status("shop")["generation"], index(machine)["items"]
    settings = {"server": "uwsgi", "install": "environment"}
    with machine.load(clients=4, pause=0.1, host=SHOP, seconds=300) as load:
        run = deploy("broken", ok=False, **settings)
    assert load.report["lost"] == 0, load.report
    assert run.failed == {"shop-live", "shop-site"}
    comment = run.states["shop-live"]["comment"]
    assert "0003_prices.py" in comment  # the traceback
    assert "RuntimeError: the prices don't add up" in comment
    assert "still serves it" in comment
    assert machine.status("shop")["generation"] == before
    assert index(machine)["items"] > items
    assert prices(machine) == "0"  # the migration was a transaction
    run = deploy("mended", **settings)
    assert migrated(run) == ["goods.0003_prices"]
    assert int(prices(machine)) > 0
    assert machine.apply().changed == set()


def prices(machine):
    """Return the number of items that have a price."""
    count = (
        "import sqlite3; shop = sqlite3.connect('/var/lib/wsgi/home/shop/shop.sqlite3');"
        " print(shop.execute('select count(*) from goods_item where price is not null').fetchone()[0])"
    )
    return machine.exec(["python3", "-c", count]).stdout.strip()
