"""Isolation of builds: a running app cannot change its releases, and neither can a finished build.

The attacks run as the app's user while root builds, or as a command of the build."""

import pytest
from pillars import app

HOME = "/var/lib/wsgi/home/shop"
SHOP = "/srv/wsgi/shop"
# Scripts that dpkg runs as root.
TARGET = "/var/lib/dpkg/info"

# Swaps a folder of its own for a link while root walks through it and changes the owners.
SWAP = f"""
import ctypes, os, sys
LIBC = ctypes.CDLL(None, use_errno=True)
HOME, RELEASES, TARGET, me = "{HOME}", "{SHOP}/releases", "{TARGET}", os.getuid()
bait, link = f"{{HOME}}/bait", f"{{HOME}}/link"
os.symlink(TARGET, link)
os.mkdir(bait)
for name in os.listdir(TARGET):
    os.close(os.open(f"{{bait}}/{{name}}", os.O_CREAT | os.O_WRONLY, 0o666))
first = next(os.scandir(bait)).name
os.chmod(f"{{bait}}/{{first}}", 0o777)
print("ready", flush=True)
while not os.path.exists(f"{{HOME}}/stop"):
    for release in os.listdir(RELEASES):
        code = f"{{RELEASES}}/{{release}}/code"
        try:
            if os.stat(code).st_uid != me:
                continue
            where = f"{{[each.path for each in os.scandir(code) if each.is_dir()][-1]}}/bait"
            os.rename(bait, where)
            while os.stat(f"{{where}}/{{first}}").st_mode & 0o777 == 0o777:
                pass
        except (OSError, IndexError):
            continue
        LIBC.syscall(316, -100, where.encode(), -100, link.encode(), 2)  # renameat2 with RENAME_EXCHANGE
        print("swapped in", release, flush=True)
"""

# Opens each path that belongs to the app's user, even for a moment, to everybody.
OPEN_UP = f"""
import glob, os
print("ready", flush=True)
while not os.path.exists("{HOME}/stop"):
    for path in glob.glob("{SHOP}/releases/*/code") + glob.glob("{SHOP}/environments/*"):
        try:
            os.chmod(path, 0o777)
            print("opened", path, flush=True)
        except OSError:
            pass
    for path in glob.glob("{SHOP}/releases/*"):
        try:
            if os.stat(f"{{path}}/code").st_uid:
                print("entered", path, flush=True)
        except OSError:
            pass
"""

# Does everything that a build can do to its own code, and leaves unmarked processes that continue.
EVIL = """
import os, struct, subprocess
everybody = [(1, 2**32 - 1), (2, os.getuid()), (4, 2**32 - 1), (16, 2**32 - 1), (32, 2**32 - 1)]
acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, 7, id) for tag, id in everybody)
os.makedirs("made/inner")
os.link("hello.py", "made/twice.py")
os.link("hello.py", os.path.expanduser("~/outside.py"))
os.symlink("/etc/shadow", "made/link")
for parent, folders, files in os.walk("."):
    for name in [".", *folders, *files]:
        path = os.path.join(parent, name)
        if os.path.islink(path):
            continue
        os.chmod(path, 0o7777)
        for attribute in ("system.posix_acl_access", "system.posix_acl_default"):
            try:
                os.setxattr(path, attribute, acl)
            except OSError:
                pass
again = "while :; do echo '# more' >> hello.py; chmod -R 7777 .; sleep 0.01; done"
hide = ["unshare", "--user", "--map-root-user", "--pid", "--fork"]
for wrapped in ([], hide):
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [*wrapped, "sh", "-c", again]
    subprocess.Popen(command, env={"PATH": os.environ["PATH"]}, start_new_session=True, **quiet)
print("done as", os.environ["USER"])
"""


@pytest.fixture(scope="module")
def shop(machine):
    """The machine with the live app `shop`, whose code has some folders."""
    machine.put("/etc/salt/minion.d/file-lists.conf", "fileserver_list_cache_time: 0\n")
    for folder in ("a", "b", "c"):
        machine.put(f"/srv/salt-top/shop/{folder}/file.py", "")
    machine.put("/srv/salt-top/shop/evil.py", EVIL)
    machine.exec("cp /srv/formula/wsgi/examples/hello/hello.py /srv/salt-top/shop")
    assert converge(machine).changed
    return machine


def converge(machine, ok=True, **settings):
    machine.pillar({"apps": {"shop": app(**{"source": "salt://shop", **settings})}})
    return machine.apply(ok=ok)


def change_code(machine):
    """Change the source, so that the next run builds another release."""
    machine.exec("date +'# %N' >> /srv/salt-top/shop/a/file.py")


def as_app(machine, program):
    """Start a program as the app's user; return a function that stops it and returns its output."""
    machine.exec(f"rm -rf {HOME}/stop {HOME}/bait {HOME}/link; systemctl reset-failed attack 2>/dev/null; true")
    machine.put("/tmp/attack.py", program)
    machine.exec(
        "systemd-run --unit=attack --uid=wsgi-shop --gid=wsgi-shop -p StandardOutput=truncate:/tmp/attack.out"
        " -p StandardError=inherit python3 /tmp/attack.py"
    )
    machine.wait_until("grep -q ready /tmp/attack.out", otherwise="cat /tmp/attack.out")

    def stop():
        machine.exec(f"touch {HOME}/stop; while systemctl is-active -q attack; do sleep 0.1; done")
        return machine.exec("cat /tmp/attack.out").stdout

    return stop


def breaches(machine):
    """List files of the app's releases and environments that are not root's or that others can change."""
    found = machine.exec(
        f"find {SHOP}/releases {SHOP}/environments"
        r" \( ! -user root -o ! -type l -perm /7022 -o -type f -links +1 -o ! -type f ! -type d ! -type l \) -ls"
    ).stdout
    lists = f"import os; print([p for r in ('releases', 'environments') for p, _, f in os.walk('{SHOP}/' + r)"
    lists += " for n in ['.', *f] if {'system.posix_acl_access', 'system.posix_acl_default', 'security.capability'}"
    lists += " & {*os.listxattr(f'{p}/{n}', follow_symlinks=False)}])"
    return found + machine.exec(["python3", "-c", lists]).stdout.replace("[]\n", "")


def serves(machine):
    return machine.get("/healthz").status == 200


def test_app_that_swaps_folders_for_links_gets_no_file_of_root(shop):
    stop = as_app(shop, SWAP)
    change_code(shop)
    shop.apply()
    assert stop() == "ready\n"
    assert shop.exec(f"find {TARGET} ! -user root").stdout == ""
    assert breaches(shop) == ""


def test_app_can_neither_chmod_nor_read_its_release_during_the_build(shop):
    stop = as_app(shop, OPEN_UP)
    change_code(shop)
    converge(shop, extra_index=["http://127.0.0.1:1/simple/"])  # another environment, too
    assert stop() == "ready\n"
    assert breaches(shop) == ""


def test_modes_and_acls_that_a_build_sets_are_removed_and_its_processes_are_killed(shop):
    run = converge(shop, hooks={"build": [["python3", "evil.py"]]})
    (printed,) = run.states["shop-release"]["changes"]["hooks"].values()
    assert printed == "done as wsgibuild-shop"
    assert breaches(shop) == ""
    assert shop.exec("ps -u wsgibuild-shop -o args=", check=False).stdout == ""
    code = f"{SHOP}/releases/{shop.status('shop')['release']}/code"
    assert shop.exec(f"readlink {code}/made/link; stat -c %U:%G /etc/shadow").stdout.split() == [
        "/etc/shadow",
        "root:shadow",
    ]
    # The hard link outside still belongs to the build user, and is a separate file by now.
    home = "/var/lib/wsgi/build/shop"
    assert shop.exec(f"stat -c '%U %h' {home}/outside.py").stdout.split() == ["wsgibuild-shop", "1"]
    assert shop.exec(f"stat -c '%a %U' {home}").stdout.split() == ["700", "wsgibuild-shop"]
    refused = shop.exec(
        ["setpriv", "--reuid=wsgi-shop", "--regid=wsgi-shop", "--clear-groups", "ls", home], check=False
    )
    assert "Permission denied" in refused.stderr
    assert serves(shop)


def test_build_that_leaves_a_named_pipe_fails_and_the_live_release_keeps_serving(shop):
    before = shop.exec(f"ls {SHOP}/releases").stdout
    run = converge(shop, ok=False, hooks={"build": ["mkfifo a/pipe"]})
    assert run.failed == {"shop-release", "shop-live", "shop-site"}
    assert (
        "/code/a/pipe is a named pipe; a build may leave only files, folders" in run.states["shop-release"]["comment"]
    )
    assert shop.exec(f"ls {SHOP}/releases").stdout == before
    assert serves(shop)


def test_build_command_can_use_the_environment_and_has_a_home_of_its_own(shop):
    """The environment belongs to root by then."""
    command = 'python -c "import gunicorn" && echo $USER $LOGNAME $HOME && echo 1 > ~/kept'
    run = converge(shop, hooks={"build": [command]})
    (printed,) = run.states["shop-release"]["changes"]["hooks"].values()
    assert printed == "wsgibuild-shop wsgibuild-shop /var/lib/wsgi/build/shop"


@pytest.mark.parametrize(
    "damage",
    [
        f"rm -rf {SHOP}/releases/*/code",
        f"chown -R wsgi-shop {SHOP}/releases/*/code",
        f"chmod g+w {SHOP}/environments/*",
    ],
)
def test_damaged_release_is_rebuilt_beside_the_live_one_and_loses_no_request(shop, damage):
    converge(shop)
    before = shop.status("shop")
    assert shop.apply().changed == set()
    shop.exec(damage)
    with shop.load(clients=4, pause=0.02) as load:
        run = shop.apply()
    assert load.report["lost"] == 0, load.report
    assert {"shop-release", "shop-live"} <= run.changed
    after = shop.status("shop")
    assert after["release"].partition("-")[0] == before["release"].partition("-")[0]
    assert after["release"] != before["release"]
    code = f"{SHOP}/releases/{after['release']}/code"
    assert shop.exec(f"stat -c %U:%G:%a {code}; ls {code}").stdout.split()[0] == "root:wsgi-shop:750"
    assert shop.apply().changed == set()


def test_missing_environment_is_rebuilt(shop):
    shop.exec(f"rm -rf {SHOP}/environments/*")
    assert "shop-release" in shop.apply().changed
    assert serves(shop)
    assert shop.apply().changed == set()


def test_deploy_creates_a_missing_build_user(shop):
    """It is missing after an update of the formula until the next highstate."""
    shop.exec("userdel wsgibuild-shop; rm -rf /var/lib/wsgi/build")
    change_code(shop)
    shop.call("wsgi.deploy", "shop")
    assert shop.exec("stat -c %U /var/lib/wsgi/build/shop").stdout.strip() == "wsgibuild-shop"
    assert breaches(shop) == ""
    assert shop.apply().changed == set()


def test_changing_the_user_chowns_the_home_but_not_the_targets_of_its_links(shop):
    shop.exec("echo secret > /root/secret; chmod 600 /root/secret; useradd --system their-shop")
    enter = "setpriv --reuid=wsgi-shop --regid=wsgi-shop --clear-groups"
    shop.exec(f"cd {HOME} && {enter} ln -s /root/secret link2 && {enter} mkfifo pipe && touch root-s")
    converge(shop, user="their-shop")
    assert shop.exec("stat -c '%a %U' /root/secret").stdout.split() == ["600", "root"]
    owners = shop.exec(f"stat -c %U {HOME} {HOME}/link2 {HOME}/pipe {HOME}/root-s").stdout.split()
    assert owners == ["their-shop"] * 3 + ["root"]
    assert serves(shop)


def test_removing_the_app_removes_its_build_user_and_kills_its_processes(shop):
    shop.exec("setpriv --reuid=wsgibuild-shop --clear-groups setsid sleep 4321 > /dev/null 2>&1 & true")
    shop.pillar({"apps": {}})
    shop.apply()
    assert shop.exec("ps -eo args= | grep '[s]leep 4321'; getent passwd wsgibuild-shop", check=False).stdout == ""
    assert shop.exec("ls /var/lib/wsgi/build").stdout == ""
    assert (
        shop.exec(f"stat -c '%a %U' {HOME} {SHOP}; find {HOME} {SHOP} -nouser -o -nogroup").stdout.split()
        == [
            "700",
            "root",
        ]
        * 2
    )
