"""Virtual environments: built by pip and uv from every form of requirements, private indexes and folders of wheels;
shared by releases, never left half built, and without showing a secret."""

import json
import re
import threading

import pytest
from harness import wait_for
from pillars import app

# The only packages from PyPI; all others come from the index of the tests.
SERVER = ("gunicorn==27.0.1", "packaging==25.0")
PASSWORD, PLAIN = "s3cr3t-%40nd-lo%2Fng", "s3cr3t-@nd-lo/ng"
INDEX = "http://127.0.0.1:3141/main/simple/"
PRIVATE = f"http://builder:{PASSWORD}@127.0.0.1:3141/main/simple/"
INSTALLERS = ("pip", "uv")
ENVIRONMENTS = "/srv/wsgi/shop/environments"
PREPARE = """
import json, pathlib, sys
sys.path.insert(0, "/srv/formula/test/integration")
from package_index import make
main, more, root = (pathlib.Path("/srv/index", name) for name in ("main", "more", "root"))
sums = {
    "tiny-1.0": make(main, "tiny", "1.0"),
    "tiny-2.0": make(main, "tiny", "2.0"),
    "tiny-3.0": make(more, "tiny", "3.0"),
    "other-1.0": make(main, "other", "1.0", ["tiny"]),
    "big-1.0": make(main, "big", "1.0", text="#" * 40_000_000),
}
print(json.dumps(sums))
"""


@pytest.fixture(scope="module")
def sums(machine):
    """The SHA-256 sums of the packages in the index that runs on the machine."""
    # Salt caches its list of files for 20 seconds, and each test changes the source.
    machine.put("/etc/salt/minion.d/file-lists.conf", "fileserver_list_cache_time: 0\n")
    machine.exec("python3 -m venv /root/tools")
    machine.exec(["/root/tools/bin/pip", "download", "-q", "--no-deps", "-d", "/srv/index/main", *SERVER])
    machine.exec("cp -r /srv/index/main /srv/wheels")
    found = json.loads(machine.exec(["python3", "-c", PREPARE]).stdout)
    machine.exec("cp /srv/index/main/tiny-1.0-*.whl /srv/wheels")
    index = "/srv/formula/test/integration/package_index.py"
    machine.exec(f"systemd-run --unit=package-index python3 {index} /srv/index 3141")
    machine.exec(f"curl --silent --retry 50 --retry-delay 1 --retry-connrefused -o /dev/null {INDEX}")
    return found


@pytest.fixture(params=INSTALLERS)
def installer(request, machine):
    """The name of the installer, on a machine without an app, since equal requirements would share an environment."""
    machine.pillar({"apps": {}, "defaults": {"purge": True}})
    machine.apply()
    return request.param


def code(machine, *apps, **files):
    """Fill the folder that Salt serves with apps of test/apps and further files (`requirements_txt`)."""
    machine.exec("rm -rf /srv/salt-top/shop && mkdir /srv/salt-top/shop")
    for each in ("reporting", *apps):
        machine.exec(f"cp -r /srv/formula/test/apps/{each}/. /srv/salt-top/shop")
    for name, text in files.items():
        machine.put(f"/srv/salt-top/shop/{re.sub('_(?=[a-z]+$)', '.', name).replace('__', '/')}", text)


def shop(installer, **settings):
    said = {"source": "salt://shop", "application": "reporting:application", "health": {"deadline": 20}}
    return app(**{**said, "installer": installer, "workers": 1, "index": INDEX, **settings})


def apply(machine, installer, ok=True, **settings):
    machine.pillar({"apps": {"shop": shop(installer, **settings)}})
    return machine.apply(ok=ok)


def packages(machine):
    return json.loads(machine.get("/").body)["packages"]


def made_by_uv(machine):
    """Return whether uv built the live environment."""
    release = machine.status("shop")["release"]
    live = machine.exec(f"readlink -f /srv/wsgi/shop/releases/{release}/environment").stdout.strip()
    return "\nuv = " in machine.exec(f"cat {live}/pyvenv.cfg").stdout


def remains(machine):
    """Return the paths of half-built environments and of files for their installers."""
    found = machine.exec(f"find {ENVIRONMENTS} -mindepth 1 -maxdepth 1").stdout.split()
    whole = machine.exec(f"ls -d {ENVIRONMENTS}/*/.complete", check=False).stdout.split()
    return {*found} - {path.rpartition("/")[0] for path in whole}


def test_environment_is_built_by_uv_where_it_is_installed_and_else_by_pip(machine, sums):
    code(machine)
    apply(machine, None, requirements=["tiny==1.0"])
    assert not made_by_uv(machine)
    one = machine.status("shop")["release"]
    apply(machine, "uv", requirements=["tiny==2.0"])
    assert made_by_uv(machine)
    assert packages(machine)["tiny"] == "2.0"
    apply(machine, None, requirements=["tiny==2.0", "other"])
    assert made_by_uv(machine)
    # The id does not depend on the installer, so that machines with and without uv agree.
    apply(machine, "pip", requirements=["tiny==1.0"])
    assert machine.status("shop")["release"] == one


FORMS = {
    "list": (["other", "tiny<2"], {}, {"other": "1.0", "tiny": "1.0"}),
    "requirements.txt": (
        "requirements.txt",
        {
            "requirements_txt": "# what it needs\n-r more/base.txt\n-c pins.txt\n",
            "pins_txt": "tiny<2\n",
            "more__base_txt": "other\n",
        },
        {"other": "1.0", "tiny": "1.0"},
    ),
    "pyproject.toml": (
        "pyproject.toml",
        {"pyproject_toml": "[project]\nname = 'shop'\nversion = '1'\ndependencies = ['other', 'tiny<2']\n"},
        {"other": "1.0", "tiny": "1.0"},
    ),
    "a wheel in the code": (["./wheels/tiny-1.0-py3-none-any.whl"], {}, {"tiny": "1.0"}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_requirements_is_installed(machine, sums, installer, form):
    requirements, files, expected = FORMS[form]
    code(machine, **files)
    machine.exec("mkdir /srv/salt-top/shop/wheels && cp /srv/wheels/tiny-1.0-*.whl /srv/salt-top/shop/wheels")
    apply(machine, installer, requirements=requirements)
    found = packages(machine)
    assert {name: found.get(name) for name in ("other", "tiny") if name in found} == expected
    assert made_by_uv(machine) == (installer == "uv")


@pytest.mark.parametrize("requirements", [["."], "requirements.txt"], ids=str)
def test_installing_the_project_itself_leaves_no_build_files_in_the_release(machine, sums, installer, requirements):
    code(machine, "project", requirements_txt=f"-e .\n# {installer}\n")
    apply(machine, installer, requirements=requirements)
    assert packages(machine)["shop"] == "1.4"
    assert packages(machine)["tiny"] == "1.0"
    release = machine.status("shop")["release"]
    shown = machine.exec(f"ls -A /srv/wsgi/shop/releases/{release}/code").stdout.split()
    assert sorted({*shown} - {"__pycache__"}) == [
        "backend.py",
        "pyproject.toml",
        "reporting.py",
        "requirements.txt",
        "shop.py",
    ]
    assert remains(machine) == set()


def test_lock_files_are_installed_by_uv(machine, sums):
    lock = """version = 1
requires-python = ">=3.9"

[[package]]
name = "shop"
version = "1"
source = {{ virtual = "." }}
dependencies = [{{ name = "tiny" }}]

[package.dev-dependencies]
dev = [{{ name = "other" }}]

[[package]]
name = "tiny"
version = "1.0"
source = {{ registry = "{index}" }}
wheels = [{{ url = "http://127.0.0.1:3141/main/files/tiny-1.0-py3-none-any.whl", hash = "sha256:{sum}" }}]

[[package]]
name = "other"
version = "1.0"
source = {{ registry = "{index}" }}
wheels = [{{ url = "http://127.0.0.1:3141/main/files/other-1.0-py3-none-any.whl", hash = "sha256:{other}" }}]
""".format(index=INDEX, sum=sums["tiny-1.0"], other=sums["other-1.0"])
    project = "[project]\nname = 'shop'\nversion = '1'\nrequires-python = '>=3.9'\ndependencies = ['tiny']\n"
    project += "[dependency-groups]\ndev = ['other']\n"
    code(machine, uv_lock=lock, pyproject_toml=project)
    apply(machine, "uv", requirements="uv.lock")
    assert packages(machine)["tiny"] == "1.0"
    assert "other" not in packages(machine)
    pylock = f"""lock-version = "1.0"
created-by = "tests"

[[packages]]
name = "tiny"
version = "2.0"
wheels = [{{ url = "http://127.0.0.1:3141/main/files/tiny-2.0-py3-none-any.whl", hashes = {{ sha256 = "{sums["tiny-2.0"]}" }} }}]
"""
    code(machine, pylock_toml=pylock)
    apply(machine, "uv", requirements="pylock.toml")
    assert packages(machine)["tiny"] == "2.0"
    code(machine, pylock_toml=pylock.replace(sums["tiny-2.0"], sums["tiny-1.0"]))
    run = apply(machine, "uv", requirements="pylock.toml", ok=False)
    assert "wsgi:apps:shop:requirements: " in run.states["shop-release"]["comment"]
    assert re.search("[Hh]ash", run.states["shop-release"]["comment"])
    run = apply(machine, "pip", requirements="pylock.toml", ok=False)
    assert (
        "wsgi:apps:shop:requirements: only uv can install 'pylock.toml'; set installer: uv"
        in run.states["shop-release"]["comment"]
    )
    assert packages(machine)["tiny"] == "2.0"
    assert remains(machine) == set()


def test_wrong_or_missing_hash_fails_the_release(machine, sums, installer):
    code(machine)
    apply(machine, installer, requirements=["tiny==2.0"])
    right = f"other==1.0 --hash=sha256:{sums['other-1.0']}\ntiny==1.0 --hash=sha256:{sums['tiny-1.0']}\n"
    for wrong in (right.replace(sums["tiny-1.0"], sums["tiny-2.0"]), right.splitlines()[0] + "\n"):
        code(machine, requirements_txt=wrong)
        run = apply(machine, installer, requirements="requirements.txt", ok=False)
        assert run.failed == {"shop-release", "shop-live", "shop-site"}
        assert re.search("(?i)hash", run.states["shop-release"]["comment"])
        assert packages(machine)["tiny"] == "2.0"
    code(machine, requirements_txt=right)
    apply(machine, installer, requirements="requirements.txt")
    assert packages(machine)["tiny"] == "1.0"
    assert remains(machine) == set()


def test_best_version_of_all_indexes_is_installed(machine, sums, installer):
    code(machine)
    more = INDEX.replace("/main/", "/more/")
    # Where pillar sets no index, pip's configuration on the machine applies.
    apply(machine, installer, requirements=["tiny>=1"], extra_index=[more])
    assert packages(machine)["tiny"] == "3.0"
    machine.exec("cp /etc/pip.conf /root/pip.conf")
    machine.exec(f"printf 'index-url = {INDEX}\\n' >> /etc/pip.conf")
    try:
        apply(machine, installer, requirements=["tiny>=1", "other"], index=None)
    finally:
        machine.exec("cp /root/pip.conf /etc/pip.conf")
    assert packages(machine)["tiny"] == "2.0"


@pytest.mark.parametrize("wheels", ["/srv/wheels", "wheels"])
def test_folder_of_wheels_needs_no_index(machine, sums, installer, wheels):
    code(machine)
    machine.exec("cp -r /srv/wheels /srv/salt-top/shop/wheels")
    machine.exec("rm -f /srv/index/requests")
    apply(machine, installer, requirements=["tiny"], wheels=wheels, index=False)
    assert packages(machine)["tiny"] == "1.0"
    assert "gunicorn" in packages(machine)
    assert machine.exec("cat /srv/index/requests", check=False).stdout == ""


def test_missing_folder_of_wheels_is_named(machine, sums):
    code(machine)
    run = apply(machine, "pip", ok=False, wheels="/srv/weels", requirements=["tiny==2.0"])
    assert "wsgi:apps:shop:wheels: the folder '/srv/weels' does not exist" in run.states["shop-release"]["comment"]


def test_credentials_of_an_index_are_never_shown(machine, sums, installer):
    """Neither while the installer waits for a slow index nor afterwards."""
    code(machine)
    machine.put("/srv/index/credentials", f"builder:{PLAIN}", 0o600)
    machine.put("/srv/index/delay", "2")
    machine.put(
        "/root/watch.py",
        "import glob, os, time\n"
        "seen = set()\n"
        "while not os.path.exists('/root/stop'):\n"
        "    for path in glob.glob('/proc/[0-9]*/cmdline'):\n"
        "        try:\n"
        "            seen.add(open(path, 'rb').read())\n"
        "        except OSError:\n"
        "            pass\n"
        "    time.sleep(0.05)\n"
        "open('/root/seen', 'wb').write(b'\\n'.join(seen))\n",
    )
    machine.exec("rm -f /root/stop /root/seen; touch /root/before")
    watch = threading.Thread(target=machine.exec, args=(["python3", "/root/watch.py"],))
    watch.start()
    try:
        line = f"other @ {PRIVATE.replace('/simple/', '/files/')}other-1.0-py3-none-any.whl"
        run = apply(machine, installer, index=PRIVATE, extra_index=[PRIVATE], requirements=["tiny==1.0", line])
        assert packages(machine)["other"] == "1.0"
        wrong = PRIVATE.replace(PASSWORD, f"not-{PASSWORD}")
        failed = apply(machine, installer, index=wrong, requirements=["tiny==2.0"], ok=False)
        assert "shop-release" in failed.failed
    finally:
        machine.exec("touch /root/stop; rm -f /srv/index/credentials /srv/index/delay")
        watch.join()
    seen = machine.exec("tr '\\0' ' ' < /root/seen").stdout
    assert re.search({"pip": "pip install .*-r ", "uv": "uv pip install .*-r "}[installer], seen)
    shown = [json.dumps(each.raw, ensure_ascii=False) for each in (run, failed)]
    shown += [machine.call("wsgi.settings"), json.dumps(machine.call("wsgi.plan")), seen]
    for secret in (PASSWORD, PLAIN):
        assert [text for text in shown if secret in text] == []
        holders = machine.exec(
            ["grep", "-rlF", "-e", secret, "/etc", "/srv/wsgi", "/var", "/run", "/usr/local", "/tmp", "/home"],
            check=False,
        ).stdout
        assert holders == ""
    assert "***" in machine.call("wsgi.settings")
    packages(machine)


@pytest.mark.parametrize("changed", ["code", "comments", "health"])
def test_second_release_with_equal_requirements_starts_no_installer(machine, sums, installer, changed):
    code(machine, requirements_txt="-r base.txt\n", base_txt="tiny==1.0\n")
    apply(machine, installer, requirements="requirements.txt")
    before = machine.status("shop")["release"]
    if changed == "code":
        machine.put("/srv/salt-top/shop/more.py", f"# by {installer}\n")
    else:
        machine.put("/srv/salt-top/shop/base.txt", f"# by {installer}\n\ntiny==1.0  # {changed}\n")
    started = machine.observe("state.apply", "wsgi")["started"]
    assert machine.status("shop")["release"] != before
    assert [each for each in started if "compileall" in each]  # the release was built, and seen to be
    assert [each for each in started if re.search("venv|pip|uv", each)] == []


def test_unresolvable_requirement_leaves_the_live_release_serving(machine, sums, installer):
    code(machine)
    apply(machine, installer, requirements=["tiny==1.0"])
    run = apply(machine, installer, requirements=["tiny==7.0"], ok=False)
    assert run.failed == {"shop-release", "shop-live", "shop-site"}
    comment = run.states["shop-release"]["comment"]
    assert re.search(r"wsgi:apps:shop:requirements: .* failed:\n(.*\n)*.*tiny==7\.0", comment)
    assert packages(machine)["tiny"] == "1.0"
    assert remains(machine) == set()
    apply(machine, installer, requirements=["tiny==2.0"])
    assert packages(machine)["tiny"] == "2.0"


def test_killed_build_is_redone_and_its_installer_is_killed(machine, sums, installer):
    code(machine)
    apply(machine, installer, requirements=["tiny==1.0"])
    machine.pillar({"apps": {"shop": shop(installer, requirements=["other==1.0"])}})
    machine.put("/srv/index/delay", "120")
    running = ["pgrep", "-f", {"pip": "/bin/python -I -m pip", "uv": "uv pip install"}[installer]]
    try:
        # A cache would spare it the wait.
        machine.exec("rm -rf /var/lib/wsgi/build/shop/.cache")
        # Otherwise systemd would kill what the killed run left.
        machine.exec("systemd-run --unit=killed --collect -p KillMode=process salt-call state.apply wsgi")
        assert wait_for(lambda: machine.exec(running, check=False).stdout, 60)
        machine.exec("kill -9 $(systemctl show -P MainPID killed)")
    finally:
        machine.exec("rm /srv/index/delay")
    left = {*machine.exec(running).stdout.split()}
    assert left
    assert packages(machine)["tiny"] == "1.0"
    assert remains(machine) != set()
    machine.apply()
    assert packages(machine)["other"] == "1.0"
    assert left & {*machine.exec(running, check=False).stdout.split()} == set()
    assert remains(machine) == set()


def test_full_disk_is_reported_and_leaves_no_partial_environment(machine, sums, installer):
    code(machine)
    apply(machine, installer, requirements=["tiny==1.0"])
    machine.exec(f"cp -a {ENVIRONMENTS} /root/environments")
    machine.exec(f"mount -t tmpfs -o size=800m,mode=755 tmpfs {ENVIRONMENTS}")
    try:
        machine.exec(f"cp -a /root/environments/. {ENVIRONMENTS}")
        # Enough for uv's environment, and not for what goes into it; not even enough for pip's.
        machine.exec(
            f"fallocate -l $(($(df --output=avail -B1 {ENVIRONMENTS} | tail -1) - 16000000)) {ENVIRONMENTS}/.ballast"
        )
        run = apply(machine, installer, requirements=["big==1.0"], ok=False)
        assert run.failed == {"shop-release", "shop-live", "shop-site"}
        assert "No space left on device" in run.states["shop-release"]["comment"]
        assert packages(machine)["tiny"] == "1.0"
        assert remains(machine) == {f"{ENVIRONMENTS}/.ballast"}
        machine.exec(f"mount -o remount,size=1200m {ENVIRONMENTS}")
        machine.apply()
        assert packages(machine)["big"] == "1.0"
    finally:
        machine.pillar({"apps": {}})
        machine.apply()
        machine.exec(f"umount {ENVIRONMENTS}; rm -rf /srv/wsgi/shop /root/environments")


def test_finished_environment_belongs_to_root_and_has_no_hard_links(machine, sums, installer):
    code(machine)
    apply(machine, installer, requirements=["tiny==1.0", "other"])
    linked = machine.exec(f"find {ENVIRONMENTS} -type f -links +1").stdout
    assert linked == ""
    assert machine.exec(f"find {ENVIRONMENTS} -not -user root").stdout == ""
    assert machine.exec(f"find {ENVIRONMENTS} -name '*.pyc' | head -1").stdout


def test_apps_under_pypy_and_cpython_run_side_by_side(machine, sums, installer):
    code(machine)
    apps = {
        name: shop(installer, server="waitress", python=python, domains=[f"{name}.example.com"], index=None)
        for name, python in (("one", "pypy3"), ("two", "/usr/bin/python3"))
    }
    machine.pillar({"apps": apps})
    machine.apply()
    found = [json.loads(machine.get("/", host=f"{name}.example.com").body)["python"] for name in apps]
    assert found == ["PyPy", "CPython"]
    machine.pillar({"apps": {**apps, "one": {**apps["one"], "python": "python3.99"}}})
    run = machine.apply(ok=False)
    assert re.search(
        r"wsgi:apps:one:python: 'python3\.99' is not installed \(installed: .*pypy3.*, python3, .*\); install it first",
        run.states["one-release"]["comment"],
    )
    assert json.loads(machine.get("/", host="one.example.com").body)["python"] == "PyPy"
