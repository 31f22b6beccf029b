"""Secrets from sdb, an encrypted pillar and files reach the app, and nobody else."""

import json

import pytest
from pillars import inspected

SECRETS = {name: f"hunter2-{name}-{'x' * 20}" for name in ("sdb", "gpg", "file", "quoted")}


def environ(machine):
    return json.loads(machine.get("/").body)["env"]


@pytest.fixture(scope="module")
def secretive(machine):
    """The machine, whose Salt has an sdb, and a secret that is encrypted for its pillar."""
    machine.put("/etc/salt/minion.d/vault.conf", "vault:\n  driver: yaml\n  files: [/srv/vault.yaml]\n", 0o600)
    machine.put("/srv/vault.yaml", json.dumps({"shop": {"password": SECRETS["sdb"]}}), 0o600)
    machine.put(
        "/etc/shop.env",
        f"# of the shop\nFROM_FILE={SECRETS['file']}\nexport QUOTED='{SECRETS['quoted']} it' # so\n\nBOTH=file\n",
        0o600,
    )
    machine.exec("mkdir -p -m 700 /etc/salt/gpgkeys")
    machine.exec(
        "gpg --homedir /etc/salt/gpgkeys --batch --pinentry-mode loopback --passphrase '' --quick-generate-key salt default default never"
    )
    encrypted = machine.exec(
        f"printf %s {SECRETS['gpg']} | gpg --homedir /etc/salt/gpgkeys --armor --trust-model always --encrypt --recipient salt"
    ).stdout
    return machine, encrypted


def apply(machine, encrypted, ok=True, **settings):
    env = {"FROM_SDB": "sdb://vault/shop:password", "FROM_GPG": "GPG", "BOTH": "pillar", **settings.pop("env", {})}
    shop = inspected("gunicorn", env=env, **{"env_files": ["/etc/shop.env"], **settings})
    machine.pillar({"apps": {"shop": shop}})
    text = machine.exec(["cat", machine.pillar_path]).stdout
    block = "|\n" + "".join(f"          {line}\n" for line in encrypted.splitlines())
    machine.put(
        machine.pillar_path, "#!yaml|gpg\n" + text.replace("FROM_GPG: GPG", f"FROM_GPG: {block.rstrip()}"), 0o600
    )
    run = machine.apply(ok=ok)
    for secret in SECRETS.values():
        assert secret not in str(run.raw)
    return run


def test_app_gets_secrets_from_sdb_an_encrypted_pillar_and_files(secretive):
    machine, encrypted = secretive
    apply(machine, encrypted)
    found = environ(machine)
    assert found["FROM_SDB"] == SECRETS["sdb"]
    assert found["FROM_GPG"] == SECRETS["gpg"]
    assert found["FROM_FILE"] == SECRETS["file"]
    assert found["QUOTED"] == SECRETS["quoted"] + " it"
    assert found["BOTH"] == "pillar"
    assert machine.apply().changed == set()


def test_nobody_else_can_read_the_secrets(secretive):
    machine, _ = secretive
    for secret in SECRETS.values():
        found = machine.exec(
            ["grep", "-rlsF", secret, "/etc", "/srv/wsgi", "/var", "/run", "/tmp", "/usr/local"], check=False
        )
        readable = machine.exec(f"for file in {' '.join(found.stdout.split())}; do stat -c '%A %n' $file; done").stdout
        assert [line for line in readable.splitlines() if line[7] != "-"] == []
    commands = machine.exec("cat /proc/[0-9]*/cmdline").stdout
    shown = [machine.call(f"wsgi.{function}") for function in ("settings", "status", "validate")]
    shown += [machine.call(f"wsgi.{function}", "shop") for function in ("logs", "history")]
    for secret in SECRETS.values():
        assert secret not in commands
        assert secret not in str(shown)


@pytest.mark.parametrize("where", ["sdb", "file"])
def test_changed_secret_makes_a_new_generation(secretive, where):
    machine, encrypted = secretive
    before = machine.status("shop")
    path = {"sdb": "/srv/vault.yaml", "file": "/etc/shop.env"}[where]
    machine.exec(f"sed -i s/hunter2-{where}-/hunter3-{where}-/ {path}")
    with machine.load(clients=4, pause=0.02) as load:
        run = apply(machine, encrypted)
    assert load.report["lost"] == 0, load.report
    assert run.changed == {"shop-live"}
    variable = {"sdb": "FROM_SDB", "file": "FROM_FILE"}[where]
    assert run.states["shop-live"]["changes"]["env"] == f"changed: {variable}"
    assert environ(machine)[variable].startswith(f"hunter3-{where}-")
    after = machine.status("shop")
    assert after["generation"] != before["generation"]
    assert not set(before["pids"]) & set(after["pids"])


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"env": {"FROM_SDB": "sdb://vault/shop:nothing"}},
            "wsgi:apps:shop:env:FROM_SDB: sdb has no value for sdb://vault/shop:nothing",
        ),
        (
            {"env": {"FROM_SDB": "sdb://volt/shop:password"}},
            "wsgi:apps:shop:env:FROM_SDB: sdb://volt/shop:password is not available",
        ),
        ({"env_files": ["/etc/none.env"]}, "wsgi:apps:shop:env_files: there is no file '/etc/none.env'"),
        ({"env_files": ["/etc/bad.env"]}, "wsgi:apps:shop:env_files: line 2 of '/etc/bad.env' is not NAME=value"),
    ],
)
def test_missing_secret_is_reported_and_the_live_generation_keeps_serving(secretive, settings, problem):
    machine, encrypted = secretive
    machine.put("/etc/bad.env", "A=1\nhunter2-in-the-wrong-place\n", 0o600)
    before = machine.status("shop")["pids"]
    run = apply(machine, encrypted, ok=False, **settings)
    assert run.failed == {"shop-release", "shop-live", "shop-site"}
    assert problem in run.states["shop-release"]["comment"]
    assert "wrong-place" not in str(run.raw)
    assert machine.status("shop")["pids"] == before
    apply(machine, encrypted)
    assert machine.status("shop")["health"]["ok"]
