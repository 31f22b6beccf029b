"""Static files: which are published under which names, which paths are refused, and nginx's locations for them."""

import os
import re
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from pillars import HELLO
from wsgi_formula import files
from wsgi_formula.edge import static
from wsgi_formula.errors import WsgiError

SHOP = {**HELLO, "domains": ["example.com"]}


@pytest.fixture
def problems(load):
    """problems({key: value, …}) returns the problems of an app with these settings and of another one at /docs."""

    def problems_of(own, docs=()):
        apps = {"shop": {**SHOP, **own}, "docs": {**SHOP, "mount": "/docs", **dict(docs)}}
        return load({"apps": apps}).messages

    return problems_of


@pytest.fixture
def make_release(tmp_path, monkeypatch):
    """make_release(id, {file: text, …}) returns a release of the app `shop` with such files; "-> x" makes a link."""
    monkeypatch.setattr(static, "SRV", str(tmp_path))
    monkeypatch.setattr(files, "ensure_dir", lambda path, *_: os.makedirs(path, exist_ok=True))
    monkeypatch.setattr(static, "_nginx", lambda host: SimpleNamespace(pw_gid=0))
    monkeypatch.setattr(files, "replace_symlink", lambda target, path: (files.remove(path), os.symlink(target, path)))
    (tmp_path / "environment").mkdir()

    def release_of(id, files, others=(), live=True):
        path = tmp_path / "releases" / id
        path.mkdir(parents=True)
        for name, text in files.items():
            file = path / "code" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if text.startswith("-> "):
                file.symlink_to(text[len("-> ") :])
            else:
                file.write_text(text)
                file.chmod(0o640)
        (path / "environment").symlink_to(tmp_path / "environment")
        record = {"live": 1} if live else {}
        return SimpleNamespace(id=id, path=str(path), code=f"{path}/code", others=list(others), record=record)

    return release_of


@pytest.fixture
def make_files(make_nginx_files):
    """make_files({key: value, …}) returns nginx's files of such an app: `wsgi.conf`, and the others as one text, `site`."""

    def files_of(own):
        files = make_nginx_files({"shop": {**SHOP, **own}})
        return {"wsgi.conf": files.pop("wsgi.conf"), "site": "\n".join(files.values())}

    return files_of


def said(**own):
    return {"mount": "/", "static": {}, "internal": {}, "error_pages": {}, **own}


@pytest.fixture
def published(tmp_path):
    """published(release, {key: value, …}) publishes it and returns the files below static/: names to texts."""

    def published_of(release, **own):
        static.publish(None, "shop", said(**own), release)
        root, found = f"{tmp_path}/shop/static", {}
        for folder in os.listdir(root):
            live = f"{root}/{folder}/live"
            for parent, _, names in os.walk(live):
                for file in names:
                    path = f"{parent}/{file}"
                    assert not os.path.islink(path)
                    with open(path) as content:
                        found[f"{folder}/{os.path.relpath(path, live)}"] = content.read()
        return found

    return published_of


# Publishing


def test_folder_is_published_as_hard_links_that_others_can_read(make_release, published, tmp_path):
    release = make_release("a", {"static/app.css": "1", "static/img/logo.svg": "2", "settings.py": "secret"})
    assert published(release, static={"/static/": "static/"}) == {"static/app.css": "1", "static/img/logo.svg": "2"}
    file = os.stat(f"{tmp_path}/shop/static/static/live/app.css")
    assert (file.st_nlink, file.st_mode & 0o777) == (2, 0o644)


def test_single_file_is_published_alone(make_release, published):
    release = make_release("a", {"static/favicon.ico": "1", "static/app.css": "2"})
    assert published(release, static={"/favicon.ico": "static/favicon.ico"}) == {"static:favicon.ico/favicon.ico": "1"}


def test_files_of_earlier_releases_stay_unless_the_new_release_has_the_name(make_release, published):
    oldest = make_release("a", {"static/app.1.css": "a", "static/plain.css": "a"})
    old = make_release("b", {"static/app.2.css": "b", "static/plain.css": "b"})
    new = make_release("c", {"static/app.3.css": "c"}, others=[old, oldest])
    assert published(new, static={"/static/": "static"}) == {
        "static/app.1.css": "a",
        "static/app.2.css": "b",
        "static/app.3.css": "c",
        "static/plain.css": "b",
    }


def test_file_is_never_published_beside_the_compressed_one_of_another_release(make_release, published):
    old = make_release(
        "a", {"static/app.css": "a", "static/app.css.gz": "a", "static/x.js.br": "a", "static/y.js": "a"}
    )
    new = make_release("b", {"static/app.css": "b", "static/x.js": "b", "static/y.js.gz": "b"}, others=[old])
    assert {text for text in published(new, static={"/static/": "static"}).values()} == {"b"}


def test_name_may_be_a_file_in_one_release_and_a_folder_in_another(make_release, published):
    old = make_release("a", {"static/one": "a", "static/two/inner": "a"})
    new = make_release("b", {"static/one/inner": "b", "static/two": "b"}, others=[old])
    assert published(new, static={"/static/": "static"}) == {"static/one/inner": "b", "static/two": "b"}


def test_links_within_the_release_are_resolved_and_others_omitted(make_release, published, tmp_path):
    (tmp_path / "environment" / "admin.css").write_text("admin")
    (tmp_path / "elsewhere").write_text("elsewhere")
    files = {
        "assets/app.css": "1",
        "static/named.css": "-> ../assets/app.css",
        "static/vendor": "-> ../assets",
        "static/admin.css": "-> ../../environment/admin.css",
        "static/loop": "-> .",
        "static/nothing": "-> none",
        "static/all": "-> ..",
        "static/out": f"-> {tmp_path}/elsewhere",
        "static/.env": "secret",
    }
    assert published(make_release("a", files), static={"/static/": "static"}) == {
        "static/named.css": "1",
        "static/vendor/app.css": "1",
        "static/admin.css": "admin",
    }


def test_links_that_multiply_files_are_refused(make_release, monkeypatch):
    monkeypatch.setattr(static, "MOST_FILES", 50)
    files = {f"static/{number}/{other}": f"-> ../{other}" for number in range(9) for other in range(9)}
    with pytest.raises(WsgiError, match="static contains more than 50 files"):
        static.build(None, "shop", said(static={"/static/": "static"}), make_release("a", files))


def test_release_is_published_once(make_release, tmp_path):
    app, release = said(static={"/static/": "static"}), make_release("a", {"static/app.css": "1"})
    assert static.outdated("shop", app, release) == ["static"]
    static.publish(None, "shop", app, release)
    assert static.outdated("shop", app, release) == []
    # Other releases do not matter any more.
    release.others = [make_release("b", {})]
    assert static.build(None, "shop", app, release) == {}


def test_trees_that_are_not_live_and_unused_paths_are_pruned(make_release, tmp_path):
    app = said(static={"/static/": "static"}, error_pages={404: "errors/404.html"})
    files = {"static/app.css": "1", "errors/404.html": "2"}
    old = make_release("a", files)
    for release in (old, make_release("b", files, others=[old])):
        static.publish(None, "shop", app, release)
    static.prune("shop")
    root = tmp_path / "shop" / "static"
    assert len(os.listdir(root / "static")) == 2
    static.forget("shop", f"    alias {root}/static/live/;\n")
    assert os.listdir(root) == ["static"]


def test_missing_path_is_refused_in_a_new_release_but_not_in_one_that_was_live(make_release):
    app = said(static={"/static/": "dist"}, error_pages={404: "static"})
    with pytest.raises(WsgiError) as refused:
        static.check("shop", app, make_release("a", {"static/app.css": "1"}, live=False))
    assert "wsgi:apps:shop:static:/static/: 'dist' is not a folder of release a; " in str(refused.value)
    assert "wsgi:apps:shop:error_pages:404: 'static' is not a file of release a; " in str(refused.value)
    static.check("shop", app, make_release("b", {}))


# Permissions


@pytest.mark.parametrize(
    ("mode", "path", "why"),
    [
        (0o755, "", None),
        (0o750, "", "has mode 0750"),
        (0o755, "/none", "does not exist"),
        (0o755, "/file", "is not a folder"),
    ],
)
def test_unreadable_path_gives_a_warning(make_host, monkeypatch, mode, path, why):
    monkeypatch.setattr(static, "_nginx", lambda host: SimpleNamespace(pw_name="nobody", pw_uid=65534, pw_gid=65534))
    # Folders of pytest are readable by its user only.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, mode)
        Path(folder, "file").write_text("")
        host = make_host({"apps": {"shop": {**SHOP, "static": {"/media/": f"{folder}{path}/"}}}})
        found = static.warnings(host, "shop", host.settings.apps["shop"])
    if why is None:
        assert found == []
    else:
        assert found[0].startswith("wsgi:apps:shop:static:/media/: nginx's user www-data cannot read ")
        assert found[0].endswith(why)


# Validation


@pytest.mark.parametrize(
    "path",
    [
        "/",
        ".",
        "..",
        "../static",
        "static/..",
        "static/../..",
        "./static",
        "/srv/../etc",
        "a b",
        "a;b",
        "a$b",
        "a{b",
        "",
    ],
)
def test_folder_outside_of_the_release_or_the_release_itself_is_refused(problems, path):
    assert len(problems({"static": {"/static/": path}})) == 1


@pytest.mark.parametrize("prefix", ["/", "static/", "/a//", "/../", "/a/../", "/./", "/a b/", "/a%20b/", "/a;/"])
def test_url_path_that_nginx_never_sees_is_refused(problems, prefix):
    assert len(problems({"static": {prefix: "static"}})) == 1


@pytest.mark.parametrize("prefix", ["/static/", "/a/b.c/", "/.well-known/", "/favicon.ico"])
def test_url_paths_of_folders_and_files_are_accepted(problems, prefix):
    assert problems({"static": {prefix: "static/some+folder.d"}}) == []


@pytest.mark.parametrize(
    ("own", "docs", "keys"),
    [
        ({"static": {"/a/": "a"}, "internal": {"/a/": "b"}}, {}, {"shop:static", "shop:internal"}),
        ({"static": {"/docs/": "a"}}, {}, {"shop:static", "docs:mount"}),
        ({"static": {"/docs": "a"}}, {}, {"shop:static", "docs:mount"}),
        ({"static": {"/docs/a/": "a"}}, {"internal": {"/a/": "a"}}, {"shop:static", "docs:internal"}),
    ],
)
def test_url_path_of_a_site_may_be_used_only_once(problems, own, docs, keys):
    assert {problem.split(": ")[0] for problem in problems(own, docs)} == {f"wsgi:apps:{key}" for key in keys}


def test_same_url_path_at_another_mount_is_accepted(problems):
    assert problems({"static": {"/static/": "a"}}, {"static": {"/static/": "a"}}) == []


# nginx's locations


def block(text, start):
    """Return the lines of a location."""
    return text.partition(f"location {start} {{\n")[2].partition("\n}\n")[0]


def test_location_and_its_alias_both_end_in_a_slash(make_files):
    own = {"mount": "/shop", "static": {"/static/": "dist", "/media/": "/srv/media"}, "internal": {"/paid/": "paid/"}}
    site = make_files(own)["site"]
    static, media, paid = (block(site, f"^~ /shop/{name}/") for name in ("static", "media", "paid"))
    assert "alias /srv/wsgi/shop/static/dist/live/;" in static
    assert "alias /srv/media/;" in media
    assert "alias /srv/wsgi/shop/static/paid/live/;" in paid
    assert ["internal;" in each for each in (static, media, paid)] == [False, False, True]
    # Of a folder that others may write to.
    assert ["disable_symlinks if_not_owner from=/srv/media/;" in each for each in (static, media)] == [False, True]


def test_single_file_is_served_only_under_its_own_path(make_files):
    site = make_files({"static": {"/favicon.ico": "static/favicon.ico", "/robots.txt": "/srv/robots.txt"}})["site"]
    icon, robots = (block(site, f"= /{name}") for name in ("favicon.ico", "robots.txt"))
    assert "alias /srv/wsgi/shop/static/static:favicon.ico/live/favicon.ico;" in icon
    assert "alias /srv/robots.txt;" in robots


def test_restricted_files_are_not_for_shared_caches(make_files):
    own = {"static": {"/static/": "static"}}
    assert "Cache-Control $wsgi_public_caching;" in make_files(own)["site"]
    assert "Cache-Control $wsgi_private_caching;" in make_files({**own, "allow": ["10.0.0.0/8"]})["site"]


def test_error_page_comes_after_the_handling_of_that_status(make_files):
    lines = make_files({"error_pages": {502: "errors/502.html"}})["site"].splitlines()
    own = [line.strip() for line in lines if "error_page 502" in line]
    page, again = "error_page 502 //errors/shop/502;", "error_page 502 = @shop-retry;"
    # At once, as connections are closed, and asked again.
    assert own == [again, page, again, page, again, page, page]


@pytest.mark.parametrize(
    ("name", "hashed"),
    [
        ("app.3f9c2b1a.css", True),
        ("css/base.0a1b2c3d4e5f.css", True),
        ("main-D3adB33f.js", True),
        ("main.3f9c2b1a.chunk.css.map", True),
        ("chunk-ABCD2345.js", True),
        ("app.css", False),
        ("jquery-3.7.1.min.js", False),
        ("jquery-validate.js", False),
        ("report-20260101.pdf", False),
        ("20260101.pdf", False),
        ("facade-deadbeef.js", False),
        ("3f9c2b1a/app.css", False),
        ("ui-DataGrid.js", False),
        ("photo-2.jpg", False),
    ],
)
def test_content_hash_in_a_file_name_is_recognised(make_files, name, hashed):
    text = make_files({"static": {"/static/": "static"}})["wsgi.conf"]
    patterns = re.findall(r'^    "~(.*)" "public, max-age=31536000, immutable";$', text, re.MULTILINE)
    assert len(patterns) == 2
    assert any(re.search(pattern, f"/static/{name}") for pattern in patterns) == hashed
