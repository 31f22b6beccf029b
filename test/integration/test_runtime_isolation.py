"""Isolation at runtime: links of an app below /run mislead neither root nor nginx, missing files come back, and no
process is left."""

import json
import time

import pytest
from harness import wait_for
from pillars import app

# One server of each kind, by its app's name.
KINDS = {
    "gunicorn-supervisor": app("gunicorn", process_manager="supervisor"),
    "uwsgi-emperor": app("uwsgi", process_manager="emperor"),
    "waitress-systemd": app("waitress", process_manager="systemd"),
    "gunicorn-circus": app("gunicorn", process_manager="circus"),
}
SECRET = "for those whom bravo knows"
# Replaces each socket by a link again and again, in each folder that permits it.
TAKES_THE_PLACE = """
while :; do
    for folder in /run/wsgi/NAME/*/; do
        cd "$folder" 2> /dev/null || continue
        for socket in http uwsgi http-1 http-2 http-1.1 http-2.1; do
            ln -s /var/lib/wsgi/live/bravo/http.sock new.$$ && mv -T new.$$ $socket.sock
        done
    done
done 2> /dev/null
"""
ARGUMENTS = [
    "a b",
    "x;y",
    " ;z",
    "#c",
    "%(here)s",
    "%%(here)s",
    "%",
    "%s",
    "$HOME",
    "`id`",
    "\\",
    '"',
    "'",
    "[x]",
    "ünï",
    "=",
]
WRITES_ITS_ARGUMENTS = (
    "import json, os, sys, time; json.dump(sys.argv[1:], open(os.environ['HOME'] + '/words', 'w')); time.sleep(9999)"
)


@pytest.fixture(scope="module")
def pillar():
    apps = {name: {**said, "domains": [f"{name}.example.com"]} for name, said in KINDS.items()}
    protected = {
        "basic_auth": {
            "users": {
                "somebody": "$6$abcdefgh$19SzoEYl62SOHgX8LnYk9NwScE/lVAASVtTgY8elV7AqreqZPQfhyrskOuPlZTjfj0gPie2MhYTtxTciuPk8N/"
            }
        },
        "env": {"GREETING": SECRET},
        "domains": ["bravo.example.com"],
    }
    return {"apps": {**apps, "bravo": app(**protected)}}


@pytest.fixture(scope="module")
def served(machine, pillar):
    machine.pillar(pillar)
    machine.apply()
    return machine


def as_the_app(machine, name, command):
    user = f"wsgi-{name}"
    return machine.exec(
        ["setpriv", "--reuid", user, "--regid", user, "--clear-groups", "sh", "-c", command], check=False
    )


def answer(machine, name):
    return machine.get("/", host=f"{name}.example.com")


def serves(machine, name):
    return wait_for(lambda: answer(machine, name).status == 200, 60)


def processes_of(machine, user):
    """Return the command lines of a user's processes, without zombies."""
    lines = machine.exec(f"ps -o stat=,args= -U {user}", check=False).stdout.splitlines()
    return [line for line in lines if not line.startswith("Z")]


# Turns a generation into one of older versions, whose sockets were not in a folder of their own.
OLD_LAYOUT = """
set -e
cd /etc/wsgi/NAME/ID
sed -i 's/ID[.]own/ID/' settings.json
sed -i 's/^umask = .*/umask = 0/' gunicorn.conf.py
sed -i '/"layout": /d' generation.json
sed -i 's/^command=.* -- /command=/; s/^directory/user=wsgi-NAME\\numask=007\\ndirectory/' /etc/supervisor/conf.d/wsgi-NAME.ID.conf
cd /run/wsgi/NAME
rm -r ID ID.own ID.reopen
install -d -m 2750 -o wsgi-NAME -g www-data ID
touch ID/http ID/keepalive ID/reopen
supervisorctl update
"""


@pytest.mark.parametrize("name", KINDS)
def test_link_in_place_of_a_socket_does_not_lead_nginx_to_another_app(served, name):
    assert answer(served, "bravo").status == 401
    served.exec("systemctl reset-failed attack 2>/dev/null; true")
    served.put("/srv/attack", TAKES_THE_PLACE.replace("NAME", name), 0o755)
    identity = [f"--property=User=wsgi-{name}", f"--property=Group=wsgi-{name}"]
    served.exec(["systemd-run", "--quiet", "--unit=attack", *identity, "sh", "/srv/attack"])
    try:
        asked = [answer(served, name) for _ in range(10)]
        # Its servers have to restart meanwhile.
        served.exec(f"pkill -KILL -U wsgi-{name} -f 'gunicorn|uwsgi|uWSGI|spawn|waitress'", check=False)
        asked += [answer(served, name) for _ in range(20) if not time.sleep(0.1)]
    finally:
        served.exec("systemctl stop attack")
    assert [each.body for each in asked if SECRET in each.body or each.status == 401] == []
    own = f"/run/wsgi/{name}/{served.live_generation(name)}.own"
    assert served.exec(f"find {own} -user root").stdout == ""
    served.exec(f"find {own} -type l -delete")
    served.exec(f"pkill -KILL -U wsgi-{name}", check=False)
    assert serves(served, name)


@pytest.mark.parametrize("name", KINDS)
def test_log_rotation_follows_no_link_of_an_app(served, name):
    served.exec("touch --date=2001-01-01 /root/victim")
    as_the_app(
        served,
        name,
        f"for folder in /run/wsgi/{name} /run/wsgi/{name}/*/; do cd $folder && rm -f reopen && ln -s /root/victim reopen; done",
    )
    served.exec("logrotate --force /etc/logrotate.d/wsgi")
    assert served.exec("stat --format=%y /root/victim").stdout.startswith("2001-01-01 ")


@pytest.mark.parametrize("name", KINDS)
def test_app_cannot_change_the_files_that_nginx_looks_for(served, name):
    changed = as_the_app(
        served,
        name,
        f"cd /run/wsgi/{name} && for each in $(find . /var/lib/wsgi/live/{name}/ 2>/dev/null) *.reopen; do"
        # Its sockets and the pipe to its log are its own.
        " case $each in *.own*) continue; esac; [ ! -w $each ] || [ -S $each ] || [ -p $each ] || echo $each; done",
    )
    assert changed.stdout == ""
    published = served.exec(f"stat -c '%a %U %G' /var/lib/wsgi/live/{name}/").stdout
    assert published == "750 root www-data\n"


def test_missing_runtime_files_are_restored_by_the_next_run(served):
    live = {name: f"/run/wsgi/{name}/{served.live_generation(name)}" for name in KINDS}
    served.exec(f"rm -r /run/wsgi/gunicorn-supervisor {live['uwsgi-emperor']}/uwsgi.sock")
    served.exec(f"rm {live['waitress-systemd']}/workers")
    served.exec(f"cd {live['gunicorn-circus']} && rm http.sock && touch http.sock")
    assert served.apply().changed == {f"{name}-live" for name in KINDS}
    assert [answer(served, name).status for name in KINDS] == [200] * len(KINDS)
    assert served.apply().changed == set()


def test_emptied_runtime_folder_is_refilled(served):
    served.exec("rm -rf /run/wsgi/*")
    run = served.apply(ok=False)
    assert run.failed == {"gunicorn-circus-live", "gunicorn-circus-site"}
    assert "`systemctl restart wsgi-circus`" in run.states["gunicorn-circus-live"]["comment"]
    served.exec("systemctl restart wsgi-circus")
    served.apply()
    assert [answer(served, name).status for name in KINDS] == [200] * len(KINDS)
    assert served.apply().changed == set()


def test_orphaned_server_is_replaced_when_its_process_manager_restarts(served):
    name = "gunicorn-supervisor"
    (before,) = served.exec(
        "supervisorctl pid $(supervisorctl status | grep -o '^gunicorn-supervisor[^ ]*')"
    ).stdout.split()
    with served.load(clients=4, host=f"{name}.example.com", pause=0.02) as load:
        served.exec("systemctl kill --signal=KILL --kill-who=main supervisor")
        assert answer(served, name).status == 200
        served.exec("systemctl restart supervisor")
        assert wait_for(lambda: served.exec(["test", "-e", f"/proc/{before}"], check=False).rc, 60)
    assert load.report["lost"] == 0, load.report
    # Its master and both workers.
    assert wait_for(lambda: len(processes_of(served, f"wsgi-{name}")) == 3, 60), processes_of(served, f"wsgi-{name}")
    assert served.apply().changed == set()


def test_generation_in_the_old_layout_is_replaced_under_load_without_loss(served):
    name = "gunicorn-supervisor"
    before = served.live_generation(name)
    served.exec(OLD_LAYOUT.replace("NAME", name).replace("ID", before))
    assert serves(served, name)
    assert served.exec(f"ls /run/wsgi/{name}").stdout == f"{before}\n"
    with served.load(clients=4, host=f"{name}.example.com", pause=0.02) as load:
        assert served.apply().changed == {f"{name}-live"}
    assert load.report["lost"] == 0, load.report
    left = served.exec(f"ls /run/wsgi/{name}; ls -d /etc/*/*/wsgi-{name}.* /etc/tmpfiles.d/wsgi-{name}.*").stdout
    assert f"{before}\n" not in left
    assert len(left.splitlines()) == 5


def test_stopped_supervisor_is_started_again(served):
    served.exec("systemctl stop supervisor")
    served.apply()
    assert answer(served, "gunicorn-supervisor").status == 200
    assert served.apply().changed == set()


def test_arguments_of_a_process_arrive_unchanged(served):
    processes = {"words": {"command": ["/usr/bin/python3", "-c", WRITES_ITS_ARGUMENTS, *ARGUMENTS]}}
    apps = {
        f"words-{name}": app(process_manager=name, processes=processes, domains=[f"{name}.example.com"])
        for name in ("supervisor", "systemd", "circus")
    }
    served.pillar({"apps": apps})
    served.apply()
    for name in apps:
        assert json.loads(served.exec(f"cat /var/lib/wsgi/home/{name}/words").stdout) == ARGUMENTS, name


def test_no_process_outlives_its_generation_or_its_app(served):
    managers = {"supervisor": "gunicorn", "circus": "gunicorn", "emperor": "uwsgi", "systemd": "gunicorn"}
    apps = {
        f"left-{manager}": app(
            server,
            process_manager=manager,
            source="salt://apps/orphans",
            application="orphans:application",
            workers=1,
            max_requests=3,
            domains=[f"left-{manager}.example.com"],
        )
        for manager, server in managers.items()
    }
    served.pillar({"apps": apps})
    served.apply()
    for name in apps:
        assert {answer(served, name).status for _ in range(8)} == {200}
    sleepers = {name: served.exec(f"pgrep -U wsgi-{name} sleep").stdout.split() for name in apps}
    assert all(len(pids) > 1 for pids in sleepers.values()), sleepers
    served.pillar({"apps": {name: {**said, "env": {"A": "new"}} for name, said in apps.items()}})
    served.apply()
    for name, pids in sleepers.items():
        assert not {*pids} & {*served.exec(f"pgrep -U wsgi-{name} sleep").stdout.split()}, name
        served.exec(["systemd-run", "--quiet", f"--property=User=wsgi-{name}", "sleep", "98765"])
    served.pillar({"apps": {name: {**said, "state": "absent"} for name, said in apps.items()}})
    served.apply()
    assert served.exec("ps -eo args | grep '[s]leep 98765'", check=False).stdout == ""
    assert served.exec("grep wsgi-left- /etc/passwd", check=False).stdout == ""
    groups = f"find /sys/fs/cgroup -type d -path '*{served.name}*' -name 'wsgi-left-*'"
    assert served.exec(groups, check=False).stdout == ""
