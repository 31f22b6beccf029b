"""Privileges: an app is not root, cannot write its code or read another app, and its secrets are not shown."""

import json

import pytest
import yaml
from pillars import PAIRS, inspected

SECRET = "s3cr3t-that-nobody-sees"
NASTY = "a 'b' \"c\" $HOME `id` %s %(x)s $(id) @(x) \\ ünï\nnext line "


# The usual pairs, and one of each other kind of server and process manager.
KINDS = [
    *PAIRS,
    ("waitress", "systemd"),
    ("gunicorn", "circus"),
    ("passenger", "systemd"),
    ("mod_wsgi", "supervisor"),
]


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def pair(machine, request):
    """The machine with two apps under one server, of which the first has a secret, and the run that brought them up."""
    server, manager = request.param
    machine.pillar(
        {
            "apps": {
                name: inspected(
                    server,
                    process_manager=manager,
                    domains=[f"{name}.example.com"],
                    env={"SECRET": SECRET, "NASTY": NASTY, "NUMBER": 7} if name == "one" else {},
                )
                for name in ("one", "two")
            }
        }
    )
    return machine, machine.apply()


def ask(machine, name, query=""):
    return json.loads(machine.get(f"/?{query}", host=f"{name}.example.com").body)


def test_app_runs_as_a_user_of_its_own(pair):
    machine, _ = pair
    uid = int(machine.exec("id -u wsgi-one").stdout)
    seen = ask(machine, "one")
    assert seen["uid"] == uid != 0
    assert set(seen["groups"]) <= {seen["gid"]} == {int(machine.exec("id -g wsgi-one").stdout)}
    pids = machine.status("one")["pids"]
    # Helpers of Passenger's agent may have ended meanwhile.
    owners = machine.exec(["stat", "-c", "%u", *(f"/proc/{pid}" for pid in pids)], check=False).stdout.split()
    assert len(owners) >= 2
    assert {*owners} == {str(uid)}


def test_environment_arrives_byte_for_byte(pair):
    machine, _ = pair
    environment = ask(machine, "one")["env"]
    assert environment["SECRET"] == SECRET
    assert environment["NASTY"] == NASTY
    assert environment["NUMBER"] == "7"
    assert "SECRET" not in ask(machine, "two")["env"]


def test_app_cannot_write_its_code_nor_its_configuration(pair):
    machine, _ = pair
    own = machine.exec(
        "find /srv/wsgi/one /etc/wsgi /etc/systemd/system /usr/local/lib/wsgi /etc/tmpfiles.d /var/lib/wsgi/live"
    ).stdout.split()
    assert len(own) > 100
    writable = machine.exec(
        "setpriv --reuid wsgi-one --regid wsgi-one --clear-groups find / -xdev"
        " -not -path '/proc/*' -not -path '/tmp*' -not -path '/var/tmp*' -not -path '/dev/*'"
        " -not -type l -writable 2>/dev/null || true"
    ).stdout.split()
    allowed = ("/var/lib/wsgi/home/one", "/var/log/wsgi/one/", "/run/lock", "/sys/fs/cgroup")
    assert [path for path in writable if not path.startswith(allowed)] == []


@pytest.mark.parametrize(
    "path",
    [
        "/etc/wsgi/one/*/env",
        "/etc/wsgi/one/*/generation.json",
        "/etc/wsgi/one/*/*.*",
        "/srv/wsgi/one/releases/*/code/inspected.py",
        "/srv/wsgi/one/environments/*/pyvenv.cfg",
        "/var/log/wsgi/one/*.log",
        "/var/lib/wsgi/home/one",
    ],
)
def test_app_cannot_read_the_files_of_another(pair, path):
    machine, _ = pair
    for found in machine.exec(f"ls -d {path}").stdout.split():
        assert ask(machine, "two", f"read={found}")["read"] == "Permission denied"


def test_only_nginx_and_the_app_reach_its_socket(pair):
    machine, _ = pair
    connect = (
        "import os, socket, sys; folder = os.path.realpath('/var/lib/wsgi/live/one') + sys.argv[1];"
        " socket.socket(socket.AF_UNIX).connect(f'{folder}/{sys.argv[2]}')"
    )
    name = machine.exec("cd /var/lib/wsgi/live/one && ls *.sock | head -1").stdout.strip()

    def reached(user, folder, groups="--init-groups"):
        command = ["setpriv", "--reuid", user, "--regid", user, groups, "python3", "-c", connect, folder, name]
        return machine.exec(command, check=False)

    # nginx connects through root's folder, the app through its own.
    assert reached("www-data", "").rc == 0
    assert reached("wsgi-one", ".own").rc == 0
    for user, folder in [("wsgi-one", ""), ("wsgi-two", ""), ("wsgi-two", ".own"), ("www-data", ".own")]:
        refused = reached(user, folder, "--clear-groups")
        assert refused.rc == 1
        assert "PermissionError" in refused.stderr


def test_secret_is_stored_in_one_file_and_the_history_and_never_shown(pair):
    machine, run = pair
    assert SECRET not in json.dumps(run.raw)
    holders = machine.exec(
        f"grep -rl {SECRET} /etc /srv/wsgi /var/lib/wsgi /var/log /run/wsgi /usr/local /home /root /tmp --exclude-dir=nginx 2>/dev/null || true"
    ).stdout.split()
    (own,) = [path for path in holders if not path.startswith("/var/lib/wsgi/history/one/")]
    assert machine.exec(f"stat -c '%a %U %G' {own}").stdout.strip() == "640 root wsgi-one"
    kept = machine.exec(["stat", "-c", "%a %U %G", *({*holders} - {own})]).stdout.splitlines()
    assert {*kept} == {"600 root root"}
    assert SECRET not in machine.exec("ps -ewwo args").stdout
    for function in ("wsgi.settings", "wsgi.status", "wsgi.validate", "wsgi.plan"):
        assert SECRET not in json.dumps(machine.call(function))


def test_changes_name_a_changed_secret_without_its_value(pair):
    machine, _ = pair
    pillar = yaml.safe_load(machine.exec("cat /srv/pillar/wsgi.sls").stdout)["wsgi"]
    pillar["apps"]["one"]["env"]["SECRET"] = "another-secret-of-theirs"
    machine.pillar(pillar)
    run = machine.apply()
    assert run.states["one-live"]["changes"]["env"] == "changed: SECRET"
    assert "another-secret" not in json.dumps(run.raw)
    assert ask(machine, "one")["env"]["SECRET"] == "another-secret-of-theirs"


def test_secret_in_the_log_of_the_app_is_redacted_by_wsgi_logs(pair):
    machine, _ = pair
    secret = ask(machine, "one")["env"]["SECRET"]
    assert machine.get(f"/?raise={secret}", host="one.example.com").status == 500
    shown = machine.call("wsgi.logs", "one")
    assert "RuntimeError: ***" in shown
    assert secret not in shown
