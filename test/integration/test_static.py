"""Static files, internal files and error pages: nginx serves an app's files and no others, across releases."""

import contextlib
import json

import pytest
from pillars import app

MEDIA = "/var/lib/wsgi/home/home/media"
# Reads a page, the file that it names, and again those that the pages before named.
READER = """
import json, os, time, urllib.error, urllib.request

def get(path):
    with urllib.request.urlopen("http://127.0.0.1" + path, timeout=20) as answer:
        return answer.read().decode()

named, missing, pages = {}, [], 0
deadline = time.monotonic() + 60
print("reading", flush=True)
while time.monotonic() < deadline and not os.path.exists("/tmp/reader.stop"):
    style = get("/")
    pages += 1
    for path in {style, *named}:
        try:
            content = get(path)
            if named.setdefault(path, content) != content:
                missing.append([path, content])
        except urllib.error.HTTPError as error:
            missing.append([path, error.code])
print(json.dumps({"pages": pages, "named": sorted(named), "missing": missing}))
"""


def pillar(release="one", server="gunicorn", **home):
    """Return a pillar with an app at the root of a site and one at /shop."""
    shared = {
        "source": "salt://apps/assets",
        "application": "assets:application",
        "static": {"/static/": "static/"},
        "workers": 1,
    }
    files = {"/media/": MEDIA, "/files/": "/srv/files", "/favicon.ico": "static/favicon.ico"}
    apps = {
        "home": {
            "server": server,
            "static": {**shared["static"], **files},
            "internal": {"/protected/": "private"},
            "error_pages": {
                404: "errors/404.html",
                502: "errors/502.html",
                403: "/srv/pages/403.html",
                429: "/srv/pages/429.html",
            },
            "limits": {"rare": {"path": "/rare", "rate": "1r/m"}},
            "hooks": {"build": [f"python3 make_assets.py {release}"]},
            **home,
        },
        "shop": {
            "server": "uwsgi",
            "mount": "/shop",
            "compression": True,
            "internal": {"/protected/": "/srv/protected/"},
            "hooks": {"build": ["python3 make_assets.py shop"]},
        },
    }
    return {"apps": {name: app(**{**shared, **own}) for name, own in apps.items()}}


@pytest.fixture(scope="module", autouse=True)
def served(machine):
    """The machine that serves both apps."""
    for path, text in {
        "/srv/files/deep/app.3f9c2b1a.js": "1",
        "/srv/files/report-20260101.pdf": "2",
        "/srv/files/.hidden": "only-the-app-knows",
        "/srv/secret.txt": "only-the-app-knows",
        "/srv/pages/403.html": "<p>Not for you.</p>",
        "/srv/pages/429.html": "<p>Not so often.</p>",
        "/srv/protected/shop.txt": "for customers",
    }.items():
        machine.put(path, text)
    machine.exec("ln -s /srv/secret.txt /srv/files/link; ln -s /srv/files/deep /srv/files/own")
    machine.pillar(pillar())
    run = machine.apply()
    assert run.warnings == []
    return machine


def curl(machine, path, *options):
    """Return status, body and headers of the response to a request, with further options of curl's."""
    response = machine.get(path, options=options)
    return response.status, response.body, response.headers


def test_files_of_the_release_and_of_the_machine_are_served(machine):
    for path, body in {
        "/static/plain.css": "/* one */\n",
        "/static/inner/named.css": "/* one */\n",
        "/files/deep/app.3f9c2b1a.js": "1",
        "/files/own/app.3f9c2b1a.js": "1",
        "/favicon.ico": "icon",
        "/shop/static/plain.css": "/* shop */\n",
    }.items():
        assert curl(machine, path)[:2] == (200, body), path
    assert curl(machine, "/static/plain.css")[2]["content-type"] == "text/css"


def test_hashed_files_are_cached_forever_and_others_are_revalidated(machine):
    hashed = machine.get("/").body
    _, _, headers = curl(machine, hashed)
    assert headers["cache-control"] == "public, max-age=31536000, immutable"
    assert "immutable" in curl(machine, "/files/deep/app.3f9c2b1a.js")[2]["cache-control"]
    for path in ("/static/plain.css", "/files/report-20260101.pdf"):
        _, _, headers = curl(machine, path)
        assert headers["cache-control"] == "no-cache"
        assert curl(machine, path, "-H", f"If-None-Match: {headers['etag']}")[0] == 304
    assert curl(machine, "/static/app.3f9c2b1a.css")[2]["cache-control"] == "no-store"


@pytest.mark.parametrize(("mount", "body"), [("/", "/* one */\n"), ("/shop/", "/* shop */\n")])
def test_precompressed_file_is_sent_to_clients_that_accept_it(machine, mount, body):
    """This does not depend on the app's `compression`."""
    hashed = machine.get(mount).body
    _, sent, headers = curl(machine, hashed, "-H", "Accept-Encoding: gzip", "--compressed")
    assert (sent, headers["content-encoding"], headers.get_all("vary")) == (body, "gzip", ["Accept-Encoding"])
    assert "content-encoding" not in curl(machine, hashed)[2]


@pytest.mark.parametrize("folder", ["static", "files", "media", "shop/static"])
def test_no_path_escapes_the_folder(machine, folder):
    for way in (
        f"/{folder}../secret.txt",
        f"/{folder}../code/assets.py",
        f"/{folder}/../../code/assets.py",
        f"/{folder}/../secret.txt",
        f"/{folder}/%2e%2e/secret.txt",
        f"/{folder}/..%2fsecret.txt",
        f"/{folder}/%252e%252e/secret.txt",
        f"/{folder}/..%5csecret.txt",
        f"/{folder}//../secret.txt",
        f"//{folder}/..//../../../etc/passwd",
        f"/{folder}/.%00./secret.txt",
        f"/{folder}/plain.css%00../../secret.txt",
        f"/{folder}/.env",
        f"/{folder}/.hidden",
        f"/{folder}/deep/../.hidden",
        "//errors/home/../../../../srv/secret.txt",
    ):
        status, body, _ = curl(machine, way)
        assert status in (400, 403, 404), way
        assert "only-the-app-knows" not in body
        assert "root:" not in body


def test_links_out_of_the_folder_are_not_followed(machine):
    for path in ("/static/inner/passwd", "/static/inner/etc/passwd", "/static/inner/loop/inner/passwd"):
        assert curl(machine, path)[0] == 404, path
    machine.exec(f"ln -s /etc/passwd {MEDIA}/passwd && chown -h wsgi-home {MEDIA}/passwd")
    assert curl(machine, "/media/passwd")[0] == 403


def test_code_is_readable_only_by_the_app_and_static_files_only_by_nginx(machine):
    code = machine.exec("readlink -f /srv/wsgi/home/releases/*/code/assets.py").stdout.strip()
    published = "/srv/wsgi/home/static/static/live/plain.css"
    for user, path, allowed in (
        ("www-data", code, False),
        ("nobody", code, False),
        ("wsgi-shop", code, False),
        ("wsgi-home", code, True),
        ("www-data", published, True),
        ("nobody", published, False),
        ("wsgi-shop", published, False),
    ):
        assert (machine.exec(["su", "-s", "/bin/cat", user, path], check=False).rc == 0) == allowed, (user, path)


def test_folders_are_not_listed_and_missing_files_have_an_error_page(machine):
    assert curl(machine, "/static/")[:2] == (403, "<p>Not for you.</p>")
    assert curl(machine, "/static/plain.css", "-X", "POST")[0] == 405
    assert curl(machine, "/static/plain.css", "-X", "DELETE")[0] == 405
    status, body, headers = curl(machine, "/static/none.css")
    assert (status, body) == (404, "<p>There is no such file here.</p>\n")
    assert (headers["cache-control"], headers["content-type"]) == ("no-store", "text/html; charset=utf-8")
    assert curl(machine, "/none")[:2] == (404, "not the app's")


def test_error_page_of_a_rate_limit_keeps_retry_after(machine):
    assert curl(machine, "/rare")[:2] == (404, "not the app's")
    status, body, headers = curl(machine, "/rare")
    assert (status, body, headers.get_all("retry-after")) == (429, "<p>Not so often.</p>", ["60"])


def test_upload_to_an_app_is_served_from_its_home(machine):
    assert curl(machine, "/upload/cat.txt", "--data", "miaow")[0] == 200
    assert curl(machine, "/media/2026/cat.txt")[:2] == (200, "miaow")
    assert machine.exec(["su", "-s", "/bin/ls", "nobody", MEDIA], check=False).rc != 0


@pytest.mark.parametrize(
    ("mount", "file", "body"), [("", "report.txt", "for members\n"), ("/shop", "shop.txt", "for customers")]
)
def test_internal_file_is_sent_only_when_the_app_names_it(machine, mount, file, body):
    assert curl(machine, f"{mount}/protected/{file}")[0] == 404
    status, sent, headers = curl(machine, f"{mount}/download/{file}")
    assert (status, sent, headers["cache-control"]) == (200, body, "private, no-cache")


def test_responses_before_a_reload_close_their_connections(machine):
    assert curl(machine, "/static/plain.css")[2]["connection"] == "keep-alive"
    machine.exec("touch /run/wsgi/nginx.closing")
    found = [curl(machine, path) for path in ("/static/plain.css", "/files/own/app.3f9c2b1a.js", "/favicon.ico")]
    found.append(curl(machine, "/static/plain.css", "-X", "POST"))
    missing = curl(machine, "/static/none%3F.css")
    machine.exec("rm /run/wsgi/nginx.closing")
    assert [status for status, *_ in found] == [200, 200, 200, 405]
    assert missing[:2] == (404, "<p>There is no such file here.</p>\n")
    assert {headers["connection"] for *_, headers in [*found, missing]} == {"close"}


def test_static_files_are_served_during_maintenance(machine):
    machine.call("wsgi.maintenance", "home", "on")
    assert (curl(machine, "/")[0], curl(machine, "/static/plain.css")[0]) == (503, 200)
    machine.call("wsgi.maintenance", "home", "off")


def test_error_page_is_shown_when_the_server_does_not_answer(machine):
    socket = machine.exec("readlink -f /var/lib/wsgi/live/home/http.sock").stdout.strip()
    machine.exec(f"mv {socket} {socket}.away")
    status, body, headers = curl(machine, "/")
    machine.exec(f"mv {socket}.away {socket}")
    assert (status, body) == (502, "<p>The app does not answer; your order is safe.</p>\n")
    assert headers["cache-control"] == "no-store"
    assert curl(machine, "/")[0] == 200


def test_idle_run_publishes_nothing(machine):
    assert machine.apply().changed == set()


@contextlib.contextmanager
def reader(machine):
    """Read pages and their files while the body runs; the dict has the result then."""
    machine.exec("rm -f /tmp/reader.stop")
    process = machine.spawn(["python3", "-c", READER])
    assert next(process.lines) == "reading"
    found = {}
    try:
        yield found
    finally:
        machine.exec("touch /tmp/reader.stop")
        found.update(json.loads(next(process.lines, '{"missing": "it did not end well"}')))


def test_page_finds_its_files_during_a_new_release_and_after_a_rollback(machine):
    old = machine.get("/").body
    with reader(machine) as read, machine.load(clients=4, path=old, mode="keepalive-get,close-get") as load:
        machine.pillar(pillar("two"))
        assert machine.apply().changed == {"home-release", "home-live"}
        new = machine.get("/").body
        assert machine.get("/static/plain.css").body == "/* two */\n"
        assert machine.get("/static/only-in-one.txt").status == 200
        machine.call("wsgi.rollback", "home")
        assert machine.get("/").body == old
    assert machine.get("/static/plain.css").body == "/* one */\n"
    assert machine.get(new).body == "/* two */\n"
    assert read["missing"] == []
    assert read["named"] == sorted([old, new])
    assert load.report["lost"] == 0, load.report
    # Files of releases that are no longer needed are gone.
    assert len(machine.exec("ls /srv/wsgi/home/static/static").stdout.split()) == 2


def test_static_folder_that_the_release_lacks_fails_the_change(machine):
    machine.pillar(pillar("three", static={"/static/": "dist"}))
    with machine.load(clients=2, path=machine.get("/").body, mode="keepalive-get,close-get", pause=0.02) as load:
        run = machine.apply(ok=False)
    assert run.failed == {"home-live", "home-site"}
    comment = run.states["home-live"]["comment"]
    assert "wsgi:apps:home:static:/static/: 'dist' is not a folder of release" in comment
    assert load.report["lost"] == 0, load.report


def test_static_paths_change_without_a_new_generation(machine):
    machine.pillar(pillar("one", static={"/assets/": "static", "/files/": "/srv/nowhere"}))
    assert machine.apply().warnings == [
        "wsgi:apps:home:static:/files/: nginx's user www-data cannot read '/srv/nowhere': /srv/nowhere does not exist"
    ]
    machine.pillar(pillar("one", static={"/assets/": "static", "/inner/": "static/inner"}, error_pages={}))
    with machine.load(clients=4, path="/assets/plain.css", mode="keepalive-get,close-get", pause=0.02) as load:
        run = machine.apply()
    assert run.changed == {"home-site", "wsgi-nginx"}
    assert load.report["lost"] == 0, load.report
    assert curl(machine, "/assets/plain.css")[0] == 200
    assert curl(machine, "/inner/named.css")[0] == 200
    assert curl(machine, "/static/plain.css")[:2] == (404, "not the app's")
    assert machine.exec("ls /srv/wsgi/home/static").stdout.split() == ["private", "static", "static:inner"]


def test_removing_an_app_removes_its_static_files(machine):
    machine.pillar({"apps": {}})
    machine.apply()
    assert machine.exec("ls /srv/wsgi/home").stdout.split() == ["environments", "releases"]
