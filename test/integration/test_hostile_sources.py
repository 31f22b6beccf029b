"""Hostile sources: they make root read neither what their author may not read nor more than the limits allow."""

import pytest
from pillars import app

SECRET = "s3cret-that-only-root-reads"
WEB = "http://127.0.0.1:8001"
SHOP = 'def application(environ, start_response):\n    start_response("200 OK", [])\n    return [b"{word}"]\n'
# Repositories of the user eve, and one that only root may read, whose commit eve knows.
PREPARE = f"""
set -e
export GIT_AUTHOR_NAME=T GIT_AUTHOR_EMAIL=t@example.com GIT_COMMITTER_NAME=T GIT_COMMITTER_EMAIL=t@example.com
useradd --create-home eve && chmod 755 /home/eve
git config --system init.defaultBranch main && git config --system protocol.file.allow always
git init -q /root/work && cd /root/work
printf '{SHOP.format(word="root")}' > shop.py && echo {SECRET} > secret.txt && git add . && git commit -qm secret
git clone -q --bare . /root/secret.git && chmod 700 /root /root/secret.git
git rev-parse main > /tmp/commit
mkdir -p /srv/web /opt/open
su eve -s /bin/sh -c '
  set -e; cd; export GIT_AUTHOR_NAME=T GIT_COMMITTER_NAME=T GIT_AUTHOR_EMAIL=e GIT_COMMITTER_EMAIL=e
  new() {{ git init -q $1 && cd ~/$1 && cp /tmp/shop.py . && git add . && git commit -qm eve; }}
  new shop; cd; git clone -q --bare shop shop.git
  module() {{ git update-index --add --cacheinfo 160000,$2,$1 && git config -f .gitmodules submodule.$1.path $1 && git config -f .gitmodules submodule.$1.url $3 && git add .gitmodules && git commit -qm $1; }}
  new with-root && module lib $(cat /tmp/commit) file:///root/secret.git; cd
  new nested && module middle $(git -C ~/with-root rev-parse main) ../with-root; cd
  new with-own && module lib $(git -C ~/shop rev-parse main) ../shop; cd
  cp -r shop.git alternates.git; echo /root/secret.git/objects > alternates.git/objects/info/alternates
  cp /tmp/commit alternates.git/refs/heads/main
  cp -r shop.git objects.git; rm -r objects.git/objects; ln -s /root/secret.git/objects objects.git/objects; cp /tmp/commit objects.git/refs/heads/main
  ln -s /root/secret.git link.git
  mkdir gitdir; echo "gitdir: /root/secret.git" > gitdir/.git
  mkdir way; ln -s /root way/up; ln -s /root/work folder
  new links && ln -s /dev wheels && git add . && git commit -qm wheels; cd
  new inside && mkdir -p vendor && ln -s vendor wheels && touch vendor/.keep && git add . && git commit -qm inside; cd
  git clone -q shop private; chmod 700 private
'
# A repository of root, except for a folder in it.
git clone -q --bare --no-hardlinks /root/work /opt/open/shared.git && chown -R eve: /opt/open/shared.git/objects
rm -rf /opt/open/shared.git/refs/heads/* /opt/open/shared.git/packed-refs /opt/open/shared.git/objects/??
cp /tmp/commit /opt/open/shared.git/refs/heads/main
su eve -s /bin/sh -c 'echo /root/secret.git/objects > /opt/open/shared.git/objects/info/alternates'
"""
BOMBS = """
import hashlib, io, tarfile, zipfile
class Zeros(io.RawIOBase):
    def read(self, count=-1):
        return bytes(count)
def tar(name, *entries):
    with tarfile.open(f"/srv/web/{name}", "w:gz", compresslevel=1) as archive:
        for path, size in entries:
            entry = tarfile.TarInfo(path)
            entry.size = size
            archive.addfile(entry, Zeros())
tar("big.tar.gz", ("zeros", 300_000_000))
tar("many.tar.gz", *((f"{number}", 0) for number in range(20_000)))
tar("deep.tar.gz", ("a/" * 10_000 + "a", 0))
with zipfile.ZipFile("/srv/web/big.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
    for number in range(6):
        archive.writestr(f"zeros{number}", bytes(50_000_000))
with zipfile.ZipFile("/srv/web/many.zip", "w") as archive:
    for number in range(20_000):
        archive.writestr(f"{number}", b"")
for name in ("big.tar.gz", "many.tar.gz", "deep.tar.gz", "big.zip", "many.zip"):
    print(name, hashlib.sha256(open(f"/srv/web/{name}", "rb").read()).hexdigest())
"""


def shop(source, **settings):
    return app("uwsgi", source=source, application="shop:application", **{"workers": 1, "health": {}, **settings})


@pytest.fixture(scope="module")
def site(machine):
    """The machine with these sources, which serves one of them; `machine.sums` has the hashes of the archives."""
    machine.put("/tmp/shop.py", SHOP.format(word="eve"))
    machine.exec("chmod 644 /tmp/shop.py")
    machine.exec(PREPARE)
    machine.sums = dict(line.split() for line in machine.exec(["python3", "-c", BOMBS]).stdout.splitlines())
    machine.exec("systemd-run --quiet python3 /srv/formula/test/integration/source_server.py 8001 /srv/web")
    machine.pillar({"apps": {"shop": shop("git+file:///home/eve/shop.git@main")}})
    machine.apply()
    assert machine.get("/").body == "eve"
    return machine


def refused(machine, source, **settings):
    """Return the comment of the failed release, and assert that the app keeps serving and that nothing else is left."""
    before = machine.exec("ls /srv/wsgi/shop/releases; ls /var/lib/wsgi/git | grep submodule", check=False).stdout
    machine.pillar({"apps": {"shop": shop(source, **settings)}})
    run = machine.apply(ok=False)
    assert run.failed == {"shop-release", "shop-live", "shop-site"}, str(run)
    assert machine.get("/").body == "eve"
    after = machine.exec("ls /srv/wsgi/shop/releases; ls /var/lib/wsgi/git | grep submodule", check=False).stdout
    assert after == before
    found = machine.exec(f"grep -rl {SECRET} /srv/wsgi /var/lib/wsgi /var/log/wsgi", check=False).stdout
    assert found == ""
    return run.states["shop-release"]["comment"]


@pytest.mark.parametrize(
    ("repository", "problem"),
    [
        ("/home/eve/alternates.git", "could not be read as the user 'eve'"),
        ("/home/eve/objects.git", "could not be read as the user 'eve'"),
        ("/home/eve/link.git", "could not be read as the user 'eve'"),
        ("/home/eve/gitdir", "could not be read as the user 'eve'"),
        ("/home/eve/way/up/secret.git", "could not be read as the user 'eve'"),
        ("/opt/open/shared.git", "could not be read as the user 'nobody'"),
    ],
)
def test_repository_does_not_make_root_read_what_its_owner_may_not(site, repository, problem):
    assert problem in refused(site, f"git+file://{repository}@main")


def test_knowing_a_hash_does_not_give_a_commit_that_only_root_may_read(site):
    commit = site.exec(["cat", "/tmp/commit"]).stdout.strip()
    assert "could not be read as the user 'eve'" in refused(site, f"git+file:///home/eve/alternates.git@{commit}")


@pytest.mark.parametrize("repository", ["with-root", "nested"])
def test_submodule_is_never_read_as_root(site, repository):
    comment = refused(site, f"git+file:///home/eve/{repository}@main")
    assert "wsgi:apps:shop:source: submodule " in comment
    assert "/root/secret.git could not be read as the user " in comment


@pytest.mark.parametrize("path", ["/home/eve/way/up/work", "/home/eve/folder"])
def test_folder_behind_the_link_of_another_user_is_not_read(site, path):
    comment = refused(site, path)
    assert f"wsgi:apps:shop:source: {path} is not read: " in comment
    assert "is a link of another user (UID " in comment


def test_link_to_devices_is_refused_before_it_is_read(site):
    comment = refused(site, "git+file:///home/eve/links@main", wheels="wheels")
    assert (
        "wsgi:apps:shop:source: 'wheels' is a link that leads out of the folder: '/dev'; remove it from the source"
        in comment
    )


def test_wheels_key_that_is_not_a_folder_is_refused(site):
    comment = refused(site, "git+file:///home/eve/shop.git@main", wheels="shop.py")
    assert "wsgi:apps:shop:wheels: 'shop.py' is not a folder in git+file:///home/eve/shop.git@main" in comment


def test_named_pipe_in_a_source_blocks_nothing(site):
    site.exec("mkdir /opt/pipe && cp /tmp/shop.py /opt/pipe && mkfifo /opt/pipe/requirements.txt")
    comment = refused(site, "/opt/pipe", requirements="requirements.txt")
    assert "wsgi:apps:shop:requirements: 'requirements.txt' is not in /opt/pipe" in comment


@pytest.mark.parametrize(
    ("archive", "limits", "problem"),
    [
        ("big.tar.gz", {"size": "20m"}, "size: the source holds more than 20m; 'zeros'"),
        ("big.zip", {"size": "60m"}, "size: the source holds more than 60m; 'zeros1'"),
        ("big.zip", {"size": "100k"}, f"size: the source holds more than 100k; '{WEB}/big.zip'"),
        ("many.tar.gz", {"files": 1000}, "files: the source holds more than 1000 files and folders"),
        ("many.zip", {"files": 1000}, "files: the source holds more than 1000 files and folders"),
        ("deep.tar.gz", {}, "depth: "),
    ],
)
def test_archive_beyond_a_limit_is_refused_with_the_key_of_the_limit(site, archive, limits, problem):
    comment = refused(site, f"{WEB}/{archive}#sha256={site.sums[archive]}", source_limits=limits)
    assert f"wsgi:apps:shop:source_limits:{problem}" in comment


@pytest.mark.parametrize(
    ("source", "limits", "problem"),
    [
        ("git+file:///home/eve/shop.git@main", {"size": 10}, "size: the source holds more than 10; 'shop.py'"),
        ("git+file:///home/eve/with-own@main", {"size": 200}, "size: the source holds more than 200; 'lib/shop.py'"),
        ("git+file:///home/eve/with-own@main", {"files": 3}, "files: the source holds more than 3 files and folders"),
        ("git+file:///home/eve/inside@main", {"depth": 1}, "depth: 'vendor/.keep'… is more than 1 folders deep"),
        ("/home/eve/shop", {"size": 10}, "size: the source holds more than 10; 'shop.py'"),
    ],
)
def test_source_limits_apply_to_repositories_and_folders_too(site, source, limits, problem):
    if "shop.git" in source:
        # Otherwise the live release would be used again.
        site.exec(
            "su eve -s /bin/sh -c 'cd ~/shop && echo >> shop.py && git -c user.name=T -c user.email=e commit -qam more"
            " && git push -q ../shop.git HEAD:main'"
        )
    assert f"wsgi:apps:shop:source_limits:{problem}" in refused(site, source, source_limits=limits)


@pytest.mark.parametrize(
    ("source", "settings", "body"),
    [
        # The administrator may choose it.
        ("git+file:///root/secret.git@main", {}, "root"),
        # The owner of these may read them, whoever else may not.
        ("git+file:///home/eve/private@main", {}, "eve"),
        ("git+file:///home/eve/with-own@main", {}, "eve"),
        ("git+file:///home/eve/inside@main", {"wheels": "wheels"}, "eve"),
        ("/home/eve/shop", {}, "eve"),
    ],
)
def test_legitimate_sources_are_served(site, source, settings, body):
    site.pillar({"apps": {"shop": shop(source, **settings)}})
    site.apply()
    assert site.get("/").body == body
    if "with-own" in source:
        release = site.status("shop")["release"]
        assert "eve" in site.exec(f"cat /srv/wsgi/shop/releases/{release}/code/lib/shop.py").stdout
    assert site.apply().changed == set()
