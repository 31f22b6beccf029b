"""Sources: git over file, ssh and https, archives, folders; and the faults of each."""

import json
import shlex
import subprocess

import pytest

TOKEN = "t0ken-that-nobody-sees"
SSH = "git+ssh://git@127.0.0.1:2222/srv/git/shop.git"
TLS = f"https://{TOKEN}@127.0.0.1:8443"
HTTPS = f"git+{TLS}/shop.git"
FILE = "git+file:///srv/git/shop.git"
WEB = "http://127.0.0.1:8001"

# Repositories of another user than root: shop, with folders, links and a submodule by a relative URL.
REPOSITORIES = r"""
set -e
useradd --create-home git && usermod -p '*' git
mkdir -p /srv/git /root/work && cd /root/work
git config --global user.name T && git config --global user.email t@example.com
git config --global init.defaultBranch main && git config --global protocol.file.allow always
git init -q shared && cd shared && echo 'SHARED = "shared"' > shared.py && git add . && git commit -qm shared && cd ..
git clone -q --bare shared /srv/git/shared.git
git init -q shop && cd shop
write() { printf 'def application(environ, start_response):\n    start_response("200 OK", [])\n    return [b"%s"]\n' "$1" > shop.py; }
write v1; mkdir web; echo 'from shop import application' > web/inner.py; printf 'def application(environ, start_response):\n    start_response("200 OK", [])\n    return [b"web"]\n' > web/shop.py
printf '#!/bin/sh\n' > tool && chmod 755 tool && ln -s shop.py link
git submodule --quiet add file:///srv/git/shared.git shared
git config -f .gitmodules submodule.shared.url ../shared.git
git add . && git commit -qm v1 && git tag light && git branch both
write v2; git commit -qam v2 && git tag -a -m annotated annotated && git tag both
git clone -q --bare . /srv/git/shop.git
git checkout -qb local && git config -f .gitmodules submodule.shared.url file:///root/work/shared && git commit -qam local
git push -q /srv/git/shop.git local && git checkout -q main
git remote add origin /srv/git/shop.git
cp -r /srv/git/shop.git /srv/git/shared.git /srv/web/
for name in shop shared; do git --git-dir=/srv/web/$name.git update-server-info; done
# Hooks that root's git must never run.
printf '#!/bin/sh\ntouch /root/hook-ran\n' > /root/hook && chmod 755 /root/hook
mkdir -p /root/hooks && for name in post-checkout reference-transaction; do ln -s /root/hook /root/hooks/$name; done
git config --global --add safe.directory '*' && git config --global core.hooksPath /root/hooks && git config --global filter.evil.smudge /root/hook
git config --system core.hooksPath /root/hooks
mkdir -p /srv/git/shop.git/hooks && cp /root/hook /srv/git/shop.git/hooks/post-checkout
chown -R git:git /srv/git
"""

# Each ssh connection records all processes, and tries to read the key.
SSHD = r"""
set -e
mkdir -p /run/sshd /srv/sshd && cd /srv/sshd
ssh-keygen -q -t ed25519 -N '' -f host && ssh-keygen -q -t ed25519 -N '' -f deploy && ssh-keygen -q -t ed25519 -N '' -f other
printf '#!/bin/sh\n{ ps -ewwo user:20,args; cat /run/wsgi/git.*/*; } >> /srv/sshd/seen 2>&1\nrm /srv/sshd/hold 2>/dev/null && sleep 600\nexec git-shell -c "$SSH_ORIGINAL_COMMAND"\n' > seeing
chmod 755 seeing && touch seen && chmod 666 seen && chown git .
printf 'command="/srv/sshd/seeing" %s\n' "$(cat deploy.pub)" > authorized
printf 'Port 2222\nListenAddress 127.0.0.1\nHostKey /srv/sshd/host\nAuthorizedKeysFile /srv/sshd/authorized\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n' > config
systemd-run --quiet --unit=test-sshd /usr/sbin/sshd -D -f /srv/sshd/config
for try in $(seq 100); do ssh-keyscan -p 2222 127.0.0.1 2>/dev/null > known && test -s known && break; sleep 0.1; done; test -s known
"""

WEBSITE = r"""
set -e
mkdir -p /srv/web /root/tls && cd /root/tls
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1 -keyout key -out cert 2>/dev/null
cat key cert > both && cat cert >> /etc/ssl/certs/ca-certificates.crt
"""

ARCHIVES = r"""
import hashlib, io, sys, tarfile, zipfile
def app(word):
    return f'def application(environ, start_response):\n    start_response("200 OK", [])\n    return [b"{word}"]\n'
def add(tar, name, kind=tarfile.REGTYPE, text="", mode=0o644, to=""):
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.linkname, entry.size = kind, mode, to, len(text)
    tar.addfile(entry, io.BytesIO(text.encode()))
with tarfile.open("/srv/web/shop.tar.gz", "w:gz") as tar:
    add(tar, "shop-1.0/shop.py", text=app("tar"))
    add(tar, "shop-1.0/tool", text="#!/bin/sh\n", mode=0o6755)
    add(tar, "shop-1.0/link", tarfile.SYMTYPE, to="shop.py")
with zipfile.ZipFile("/srv/web/shop.zip", "w") as zip:
    zip.writestr("shop.py", app("zip"))
with tarfile.open("/srv/web/hostile.tar", "w") as tar:
    add(tar, "shop.py", text=app("hostile"))
    add(tar, "../../../../../../../../tmp/escaped", text="escaped")
for name in ("shop.tar.gz", "shop.zip", "hostile.tar"):
    print(name, hashlib.sha256(open(f"/srv/web/{name}", "rb").read()).hexdigest())
"""


def shop(source, **settings):
    return {
        "server": "gunicorn",
        "source": source,
        "application": "shop:application",
        "workers": 1,
        "domains": ["shop.example.com"],
        **settings,
    }


class Site:
    """The machine with repositories, archives and the servers that it can fetch them from."""

    def __init__(self, machine):
        self.machine = machine
        machine.exec(WEBSITE)
        machine.exec(REPOSITORIES)
        machine.exec(SSHD)
        made = machine.exec(["python3", "-c", ARCHIVES]).stdout
        self.sums = dict(line.split() for line in made.splitlines())
        machine.exec("cp /srv/web/shop.zip /srv/salt-top/")
        server = "systemd-run --quiet python3 /srv/formula/test/integration/source_server.py"
        machine.exec(f"{server} 8001 /srv/web; {server} 8443 /srv/web {TOKEN}: /root/tls/both")
        for port in (8001, 8443):
            machine.wait_until(f"{{ curl -sko /dev/null https://127.0.0.1:{port}; test $? != 7; }}")
        self.deploy_key = self.read("/srv/sshd/deploy")
        self.other_key = self.read("/srv/sshd/other")
        self.known_hosts = self.read("/srv/sshd/known")

    def read(self, path):
        return self.machine.exec(["cat", path]).stdout

    def git(self, command):
        return self.machine.exec(f"git --git-dir=/srv/git/shop.git {command}").stdout.strip()

    def commit(self, word):
        """Make a commit on main whose app answers a word, and return its hash."""
        self.machine.exec(
            f'cd /root/work/shop && sed -i \'s/b".*"/b"{word}"/\' shop.py && git -c core.hooksPath=/dev/null commit -qam {word}'
            " && git -c core.hooksPath=/dev/null push -q origin main && chown -R git:git /srv/git"
        )
        return self.git("rev-parse main")

    def apply(self, source, ok=True, **settings):
        self.machine.pillar({"apps": {"shop": shop(source, **settings)}})
        return self.machine.apply(ok=ok)

    def body(self, name="shop"):
        return self.machine.get("/", host=f"{name}.example.com").body

    def release(self):
        """Return the folder of the live release."""
        return f"/srv/wsgi/shop/releases/{self.machine.status('shop')['release']}"

    def record(self):
        return json.loads(self.read(f"{self.release()}/release.json"))


@pytest.fixture(scope="module")
def site(machine):
    return Site(machine)


# git


@pytest.mark.parametrize(
    ("revision", "named", "body"),
    [
        ("light", "light", "v1"),
        ("annotated", "annotated^{commit}", "v2"),
        ("refs/heads/both", "refs/heads/both", "v1"),
        ("refs/tags/both", "refs/tags/both^{commit}", "v2"),
        ("main", "main", "v2"),
    ],
)
def test_branches_and_tags_resolve_to_their_commits(site, revision, named, body):
    site.apply(f"{FILE}@{revision}")
    assert site.body() == body
    # Two names of one commit share a release, whose record has the first name.
    assert site.record()["revision"]["commit"] == site.git(f"rev-parse '{named}'")


def test_release_has_submodules_links_and_executable_bits_and_no_git_folder(site):
    site.apply(f"{FILE}@light")
    code = f"{site.release()}/code"
    assert site.read(f"{code}/shared/shared.py") == 'SHARED = "shared"\n'
    assert site.machine.exec(f"find {code} -name .git").stdout == ""
    assert site.machine.exec(f"readlink {code}/link; stat -c %a {code}/tool {code}/shop.py").stdout.split() == [
        "shop.py",
        "755",
        "644",
    ]
    assert site.machine.exec(f"find {site.release()} -maxdepth 1").stdout.count("\n") == 4


def test_no_git_hook_is_run(site):
    assert site.machine.exec("test -e /root/hook-ran", check=False).rc == 1


def test_subdirectory_is_the_only_content_of_the_release(site):
    site.apply(f"{FILE}@light#subdirectory=web")
    assert site.body() == "web"
    assert site.machine.exec(f"ls {site.release()}/code").stdout.split() == ["__pycache__", "inner.py", "shop.py"]


def test_next_run_follows_a_branch_that_moved(site):
    site.apply(f"{FILE}@main")
    moved = site.commit("moved")
    run = site.machine.apply()
    assert run.changed == {"shop-release", "shop-live"}
    assert site.body() == "moved"
    assert site.record()["revision"] == {"commit": moved, "ref": "main"}
    assert site.machine.apply().changed == set()


def test_commit_that_no_branch_contains_is_fetched(site):
    commit = site.commit("forced-away")
    site.machine.exec(
        "cd /root/work/shop && git -c core.hooksPath=/dev/null reset -q --hard HEAD~ && git push -qf origin main"
    )
    site.git("config uploadpack.allowAnySHA1InWant true")
    site.apply(f"{FILE}@{commit}")
    assert site.body() == "forced-away"


@pytest.mark.parametrize("damage", ["rm HEAD", "rm -r objects", "find objects -type f -exec truncate -s 9 {} +"])
def test_damaged_mirror_is_recreated(site, damage):
    site.apply(f"{FILE}@light")
    site.machine.exec(f"cd /var/lib/wsgi/git/*/ && chmod -R u+w . && {damage}")
    word = f"after-{len(damage)}"
    site.apply(f"{FILE}@{site.commit(word)}")
    assert site.body() == word


def test_mirror_is_readable_by_root_only(site):
    assert site.machine.exec("stat -c '%a %U' /var/lib/wsgi/git").stdout.split() == ["700", "root"]


def started_git_commands(site):
    """Return the git commands that an idle run starts, except that by which Salt asks for git's version."""
    started = site.machine.observe_idle_run()["started"]
    return [command for command in started if "'git'" in command and "'version'" not in command]


def test_full_commit_is_not_looked_up_again(site):
    site.apply(f"{FILE}@{site.git('rev-parse light')}")
    assert started_git_commands(site) == []


def test_two_apps_of_one_repository_query_it_once(site):
    apps = {
        "shop": shop(f"{FILE}@light"),
        "wiki": shop(f"{FILE}@annotated#subdirectory=web", domains=["wiki.example.com"]),
    }
    site.machine.pillar({"apps": apps})
    site.machine.apply()
    assert (site.body(), site.body("wiki")) == ("v1", "web")
    started = started_git_commands(site)
    assert len(started) == 1
    assert "ls-remote" in started[0]


# Faults


def silent(site):
    """Start a host that accepts connections and never answers; return a source on it."""
    listen = "import socket, time; s = socket.create_server(('127.0.0.1', 2223)); time.sleep(600)"
    site.machine.exec(["systemd-run", "--quiet", "--unit=silent", "--collect", "python3", "-c", listen])
    return {"source": "git+ssh://git@127.0.0.1:2223/srv/git/shop.git@main"}


def another_host_key(site):
    return {"known_hosts": f"[127.0.0.1]:2222 {site.read('/srv/sshd/other.pub')}"}


FAULTS = {
    "no such branch": (
        lambda site: {"source": f"{SSH}@lihgt"},
        "wsgi:apps:shop:source: the repository has no branch and no tag 'lihgt'; did you mean 'light'?",
    ),
    "two of one name": (
        lambda site: {"source": f"{SSH}@both"},
        "wsgi:apps:shop:source: 'both' is both a branch and a tag; write @refs/heads/both or @refs/tags/both",
    ),
    "short commit": (lambda site: {"source": f"{SSH}@0f1e2d3"}, "a commit must be whole, 40 or 64"),
    "no such commit": (
        lambda site: {"source": f"{SSH}@{'0f1e2d3c' * 5}"},
        f"has no commit {'0f1e2d3c' * 5}: ",
    ),
    "no such folder": (
        lambda site: {"source": f"{SSH}@light#subdirectory=wbe"},
        "wsgi:apps:shop:source: the repository has no folder 'wbe'; at its top are: shared, web",
    ),
    "no such repository": (
        lambda site: {"source": "git+ssh://git@127.0.0.1:2222/srv/git/shp.git@main"},
        "wsgi:apps:shop:source: 127.0.0.1:2222 has no such repository",
    ),
    "closed port": (
        lambda site: {"source": "git+ssh://git@127.0.0.1:2/srv/git/shop.git@main"},
        "wsgi:apps:shop:source: 127.0.0.1:2 could not be reached",
    ),
    "silent host": (silent, "wsgi:apps:shop:source: 127.0.0.1:2223 could not be reached"),
    "unknown host key": (
        lambda site: {"known_hosts": None},
        "wsgi:apps:shop:known_hosts: the host key of 127.0.0.1:2222 is not known; set this to the output of `ssh-keyscan -p 2222 127.0.0.1`",
    ),
    "another host key": (
        another_host_key,
        "wsgi:apps:shop:known_hosts: 127.0.0.1:2222 shows a host key that differs from the known one",
    ),
    "wrong deploy key": (
        lambda site: {"deploy_key": site.other_key},
        "wsgi:apps:shop:deploy_key: 127.0.0.1:2222 refuses it",
    ),
    "no deploy key": (lambda site: {"deploy_key": None}, "wsgi:apps:shop:deploy_key: 127.0.0.1:2222 refuses it"),
    "wrong token": (
        lambda site: {"source": f"{HTTPS.replace(TOKEN, 'an0ther-token')}@main"},
        "wsgi:apps:shop:source: 127.0.0.1:8443 refuses the credentials",
    ),
    "wrong hash": (
        lambda site: {"source": f"{WEB}/shop.zip#sha256={'0' * 64}"},
        f"wsgi:apps:shop:source: {WEB}/shop.zip was not unpacked: its sha256 is ",
    ),
    "no such archive": (
        lambda site: {"source": f"{WEB}/no.zip#sha256={'0' * 64}"},
        f"wsgi:apps:shop:source: {WEB}/no.zip could not be fetched: 404 ",
    ),
    "archive on a closed port": (
        lambda site: {"source": f"http://127.0.0.1:2/no.zip#sha256={'0' * 64}"},
        "wsgi:apps:shop:source: http://127.0.0.1:2/no.zip could not be fetched: ",
    ),
    "archive that Salt has not": (
        lambda site: {"source": f"salt://no.zip#sha256={'0' * 64}"},
        "wsgi:apps:shop:source: Salt does not serve salt://no.zip",
    ),
    "hostile archive": (
        lambda site: {"source": f"{WEB}/hostile.tar#sha256={site.sums['hostile.tar']}"},
        "'../../../../../../../../tmp/escaped' leads out of the archive",
    ),
    "link that leads out": (
        lambda site: (
            site.machine.exec("mkdir -p /opt/link && ln -sf /etc/shadow /opt/link/out") and {"source": "/opt/link"}
        ),
        "wsgi:apps:shop:source: 'out' is a link that leads out of the folder: '/etc/shadow'; remove it from the source",
    ),
    "submodule on the machine": (
        lambda site: {"source": f"{SSH}@local"},
        "wsgi:apps:shop:source: submodule 'shared' is at 'file:///root/work/shared'; allowed are https://, ssh://",
    ),
    "no such folder on the machine": (
        lambda site: {"source": "/opt/no-such-folder"},
        "wsgi:apps:shop:source: /opt/no-such-folder is not a folder on this machine",
    ),
}


@pytest.fixture(scope="module")
def serving(site):
    """The settings of a source that works and is live."""
    good = {"source": f"{SSH}@light", "deploy_key": site.deploy_key.rstrip("\n"), "known_hosts": site.known_hosts}
    site.apply(**good)
    return good


def test_deploy_key_without_a_trailing_newline_is_accepted(site, serving):
    assert site.body() == "v1"


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_of_a_source_leaves_the_app_serving_and_names_the_remedy(site, serving, fault):
    changed, message = FAULTS[fault]
    before = site.machine.exec("readlink /var/lib/wsgi/live/shop; ls /srv/wsgi/shop/releases /run/wsgi").stdout
    settings = {**serving, "source": f"{SSH}@main", **changed(site)}
    run = site.apply(ok=False, **settings)
    assert run.failed == {"shop-release", "shop-live", "shop-site"}, run
    assert message in run.states["shop-release"]["comment"]
    assert "an0ther-token" not in json.dumps(run.raw)
    assert site.body() == "v1"
    after = site.machine.exec("readlink /var/lib/wsgi/live/shop; ls /srv/wsgi/shop/releases /run/wsgi").stdout
    assert [line for line in after.split() if not line.endswith(".lock")] == [
        line for line in before.split() if not line.endswith(".lock")
    ]
    assert site.machine.exec("ls /tmp/escaped /tmp/tmp", check=False).stdout == ""


def test_run_after_a_fault_finishes_the_change(site, serving):
    site.machine.exec("systemctl stop silent")
    word = "finished"
    site.commit(word)
    site.apply(**{**serving, "source": f"{SSH}@main"})
    assert site.body() == word
    assert site.machine.apply().changed == set()


# Secrets


def holders(site, secret, *more):
    """Return the files that hold a secret, except those that the tests wrote."""
    found = site.machine.exec(
        f"grep -rlF -e {shlex.quote(secret)} /etc /srv /var /run /root /tmp /usr/local 2>/dev/null || true"
    ).stdout.split()
    own = ("/srv/formula/", "/srv/pillar/", "/srv/sshd/", "/run/systemd/", "/var/log/journal", "/run/log", *more)
    return [path for path in found if not path.startswith(own)]


def test_deploy_key_is_in_no_argument_and_only_briefly_in_a_file(site, serving):
    line = site.deploy_key.splitlines()[2]
    run = site.apply(**{**serving, "source": f"{SSH}@annotated"})
    assert site.body() == "v2"
    seen = site.read("/srv/sshd/seen")
    assert "ssh" in seen and "git ls-remote" in seen and "git --git-dir=" in seen
    assert "Permission denied" in seen or "No such file" in seen  # of the key, for the user git
    assert line not in seen
    assert line not in json.dumps(run.raw)
    assert holders(site, line) == []
    assert site.machine.exec("ls -d /run/wsgi/git.*/", check=False).stdout == ""
    assert line not in json.dumps(site.machine.call("wsgi.settings"))


def test_next_run_removes_keys_and_processes_of_a_killed_fetch(site, serving):
    site.commit("killed")
    site.machine.pillar({"apps": {"shop": shop(**{**serving, "source": f"{SSH}@main"})}})
    site.machine.exec(": > /srv/sshd/seen; touch /srv/sshd/hold")
    run = "systemd-run --quiet --collect --unit=killed --property=KillMode=process"
    site.machine.exec(f"{run} salt-call state.apply wsgi")
    site.machine.wait_until("test -s /srv/sshd/seen && ! test -e /srv/sshd/hold", 60)
    private = site.machine.exec("stat -c '%a %U' /run/wsgi/git.*/ /run/wsgi/git.*/key").stdout
    assert private == "700 root\n600 root\n"
    site.machine.exec("systemctl kill --kill-who=main --signal=KILL killed")
    assert site.machine.exec("pgrep -fc '^ssh -o BatchMode'").stdout.strip() == "1"
    site.machine.apply()
    assert site.body() == "killed"
    assert site.machine.exec("ls -d /run/wsgi/git.*/", check=False).stdout == ""
    assert site.machine.exec("pgrep -fc '^ssh -o BatchMode'", check=False).stdout.strip() == "0"


def test_token_is_in_no_argument_no_file_and_no_message(site):
    run = site.apply(f"{HTTPS}@light")
    assert site.body() == "v1"
    seen = site.read("/srv/web.8443.seen")
    assert "git ls-remote" in seen and "git-remote-https" in seen
    asking = [line for line in seen.splitlines() if TOKEN in line and "source_server.py" not in line]
    assert asking == []
    assert TOKEN not in json.dumps(run.raw)
    assert holders(site, TOKEN, "/srv/web.") == []
    assert site.record()["source"] == f"{HTTPS}@light".replace(TOKEN, "***")
    assert TOKEN not in json.dumps(site.machine.call("wsgi.settings"))


# Archives and folders


def test_tar_archive_keeps_links_and_executable_bits_and_drops_setuid(site):
    site.apply(f"{WEB}/shop.tar.gz#sha256={site.sums['shop.tar.gz']}&subdirectory=shop-1.0")
    assert site.body() == "tar"
    code = f"{site.release()}/code"
    assert site.machine.exec(f"readlink {code}/link; stat -c '%a %U' {code}/tool {code}/shop.py").stdout.split() == [
        "shop.py",
        *("755", "root"),
        *("644", "root"),
    ]
    assert site.record()["revision"] == {"sha256": site.sums["shop.tar.gz"]}
    assert site.machine.exec("find / -xdev -name '*.archive' -path '*wsgi*'").stdout == ""


@pytest.mark.parametrize(
    "place", ["salt://shop.zip", f"{WEB}/shop.zip", f"{TLS}/shop.zip", f"{TLS}/moved/shop.zip"], ids=str
)
def test_zip_archive_is_fetched_over_every_scheme(site, place):
    site.apply(f"{WEB}/shop.tar.gz#sha256={site.sums['shop.tar.gz']}&subdirectory=shop-1.0")
    # Equal archives share a release, which must be removed to be fetched again.
    site.machine.exec(
        f"grep -lr {site.sums['shop.zip']} /srv/wsgi/shop/releases/*/release.json | xargs -r dirname | xargs -r rm -r"
    )
    run = site.apply(f"{place}#sha256={site.sums['shop.zip']}")
    assert site.body() == "zip"
    assert TOKEN not in json.dumps(run.raw)


def test_credentials_are_not_sent_to_another_host_after_a_redirect(site):
    """The last zip archive was fetched through a redirect."""
    seen = site.read("/srv/web.8001.seen")
    assert "/shop.zip None\n" in seen
    assert "Basic" not in seen


def test_local_folder_is_copied_without_git_and_pipes(site):
    site.machine.exec(
        "mkdir -p /opt/shop/.git /opt/shop/sub && cp /root/work/shop/web/shop.py /opt/shop && cd /opt/shop"
        " && printf '#!/bin/sh\n' > tool && chmod 755 tool && ln -sf shop.py out && mkfifo pipe && touch .git/HEAD"
    )
    site.apply("/opt/shop")
    assert site.body() == "web"
    code = f"{site.release()}/code"
    assert site.machine.exec(f"ls -A {code}").stdout.split() == ["__pycache__", "out", "shop.py", "sub", "tool"]
    assert site.machine.exec(f"readlink {code}/out; stat -c %a {code}/tool").stdout.split() == ["shop.py", "755"]
    assert site.machine.apply().changed == set()
    site.machine.exec("sed -i 's/web/edited/' /opt/shop/shop.py")
    assert site.machine.apply().changed == {"shop-release", "shop-live"}
    assert site.body() == "edited"


# The first run


def test_first_highstate_installs_git_and_serves_a_repository(machine_factory, request, tmp_path):
    def git(*words):
        identity = ["-c", "user.name=T", "-c", "user.email=t@example.com"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True)

    (tmp_path / "shop.py").write_text(
        'def application(environ, start_response):\n    start_response("200 OK", [])\n    return [b"first"]\n'
    )
    git("init", "--quiet", "--initial-branch=main")
    git("add", ".")
    git("commit", "--quiet", "--message=first")
    machine = machine_factory(provisioned=False)
    try:
        assert machine.exec("command -v git", check=False).rc != 0
        machine.copy(tmp_path / ".git", "/srv/shop.git")
        machine.pillar({"apps": {"shop": shop("git+file:///srv/shop.git@main")}})
        machine.apply(sls=None)
        assert machine.get("/", host="shop.example.com").body == "first"
        assert machine.apply(sls=None).changed == set()
    finally:
        if not request.config.getoption("keep"):
            machine.destroy()
