"""A Salt master with its minions, on a network of their own.

master = Master.boot(["web1", "web2"])
master.pillar({"apps": {"hello": {...}}})            # everything below `wsgi:`, for all minions or for one
runs = master.salt("*", "state.apply", "wsgi")       # minion -> harness.Run; fails the test when a state failed
assert runs["web1"].changed == {"hello-release", "hello-live", "hello-site"}
assert master.minions["web1"].get("/").status == 200 # each is a Machine, whose salt-call asks the master
"""

import concurrent.futures
import contextlib
import json
import shlex
import time
import uuid
from pathlib import Path

import yaml
from container import CommandFailed
from daemon import client
from harness import Machine, Run, image, wait_for

# The unit of Salt's own packages, with another program.
SERVICE = """[Unit]
After=network-online.target
[Service]
Type=notify
NotifyAccess=all
LimitNOFILE=8192
KillMode={kill_mode}
ExecStart=/opt/salt/bin/python {program}
[Install]
WantedBy=multi-user.target
"""
FORMULA = "/srv/formulas/wsgi-formula"
PROGRAM = "/usr/local/lib/counting_master.py"
ROOTS = json.dumps({"file_roots": {"base": ["/srv/salt", FORMULA]}})


class Minion(Machine):
    """A machine with a salt-minion of a master, once it is configured."""

    @classmethod
    def boot(cls, id, platform, **options):
        minion = cls.start(image(platform, True), hostname=id, **options)
        minion.id = id
        minion.exec("rm -r /srv/pillar /srv/salt-top")
        return minion

    def configure(self, **settings):
        """Start salt-minion with further settings."""
        own = {"master": "salt", "id": self.id, "log_level_logfile": "debug", "acceptance_wait_time": 1}
        self.put("/etc/salt/minion", json.dumps({**own, **settings}))
        start_service(self, "salt-minion", "/opt/salt/bin/salt-minion", "process")

    def forget(self):
        """Empty the cache of the minion, so that it has no synced module or file. Its apps keep serving."""
        self.exec("systemctl stop salt-minion && rm -rf /var/cache/salt/minion && systemctl start salt-minion")

    def pillar(self, wsgi):
        raise NotImplementedError("A minion's pillar is its master's: master.pillar(wsgi, minion)")


class Master(Machine):
    """A Salt master whose file roots are /srv/salt, with test/apps, and FORMULA, a copy of this checkout."""

    CONFIGURATION = "/etc/salt/master.d/wsgi.conf"
    configured = None  # its text

    @classmethod
    def boot(cls, minions=("web1", "web2"), platform="debian-12", labels=()):
        network = f"wsgi-{uuid.uuid4().hex[:12]}"
        client().networks.create(network, labels=dict(label.split("=") for label in labels))
        options = {"network": network, "labels": list(labels)}
        with concurrent.futures.ThreadPoolExecutor() as pool:
            booting = {id: pool.submit(Minion.boot, id, platform, **options) for id in minions}
            master = cls.start(image(platform, True), hostname="salt", aliases=["salt"], **options)
            master.network = network
            master.exec("ln -s /opt/salt/bin/salt* /usr/local/bin/ 2>/dev/null; mkdir -p /etc/salt/master.d /srv/salt")
            master.exec("cp -r /srv/formula/test/apps /srv/salt/")
            master.put(PROGRAM, Path(__file__).with_name("counting_master.py").read_text())
            own = {
                "auto_accept": True,
                "worker_threads": 3,
                "gather_job_timeout": 5,
                "log_level_logfile": "debug",
            }
            master.put("/etc/salt/master", json.dumps(own))
            master.minions = {id: minion.result() for id, minion in booting.items()}
        master.configure(ROOTS)
        # Minions start last, since one whose master does not answer waits before it retries.
        for minion in master.minions.values():
            minion.configure()
        master.reset()
        return master

    def reset(self):
        """Serve this checkout and an empty pillar, and remove all apps and caches of the minions."""
        self.restore_formula()
        self.pillar({})
        self.put("/srv/salt/top.sls", json.dumps({"base": {"*": ["wsgi"]}}))
        self.configure(ROOTS)
        for minion in self.minions.values():
            if not minion.exec("test -e /srv/wsgi", check=False).rc:
                minion.call("saltutil.sync_all")  # with modules of another version wsgi.clean refuses to run
                minion.apply(sls="wsgi.clean")
                minion.forget()
        self.wait_for_minions()

    def configure(self, text):
        """Write the text of CONFIGURATION and restart salt-master, if that changes it."""
        if text != self.configured:
            self.put(self.CONFIGURATION, text)
            start_service(self, "salt-master", PROGRAM, "mixed")
            self.configured = text

    def wait_for_minions(self):
        """Wait until every minion answers."""
        if not wait_for(self.answers, 60):
            raise CommandFailed(f"{self.name}: the minions don't answer\n{self.exec('journalctl -n 30').stdout}")

    def answers(self):
        """Return whether every minion answers."""
        pong = self.exec(["salt", "--out=json", "--timeout=2", "*", "test.ping"], check=False).stdout
        with contextlib.suppress(ValueError):
            return parse(pong) == dict.fromkeys(self.minions, True)

    def restore_formula(self):
        """Replace the formula that the master serves by a copy of the checkout."""
        self.exec(
            f"rm -rf {FORMULA} && mkdir -p {FORMULA} && tar -C /srv/formula --exclude=.git --exclude=__pycache__ -c . "
            f"| tar -C {FORMULA} --no-same-owner -x && salt-run fileserver.clear_file_list_cache"
        )

    def pillar(self, wsgi, minion=None):
        """Set the whole pillar of all minions, or of one, to {"wsgi": wsgi}."""
        self.put("/srv/pillar/top.sls", json.dumps({"base": {id: [id] for id in self.minions}}))
        for id in [minion] if minion else self.minions:
            self.put(f"/srv/pillar/{id}.sls", yaml.safe_dump({"wsgi": wsgi}, sort_keys=False), 0o600)

    def salt(self, target, function, *args, ok=True):
        """Run `salt TARGET FUNCTION ARGS` and return a dict of minion to what it returned, state runs as a Run.
        With ok=True, CommandFailed unless every minion answers and succeeds."""
        started = time.monotonic()
        # --static would use another client of Salt, which gives up on a busy minion.
        argv = ["salt", "--out=json", "--timeout=60", target, function, *args]
        done = self.exec(argv, check=False)
        try:
            returned = parse(done.stdout)
        except ValueError:
            raise CommandFailed(f"{shlex.join(argv)}: code {done.rc}\n{done.stdout}{done.stderr}") from None
        if function in ("state.apply", "state.highstate", "state.sls"):
            returned = {id: Run(raw, time.monotonic() - started) for id, raw in returned.items()}
        if ok and (done.rc or not returned):
            shown = "\n".join(f"{id}: {found}" for id, found in returned.items())
            raise CommandFailed(f"{shlex.join(argv)}: code {done.rc}\n{shown}{done.stderr}")
        return returned

    @contextlib.contextmanager
    def requests(self):
        """Return a context manager with a list of the requests to the master, filled when the `with` body ends. Each
        is a dict of `command`, such as `_file_hash`, `minion`, and `path`, for a file."""
        found = []
        begun = len(self._requests())
        yield found
        found += map(json.loads, self._requests()[begun:])

    def _requests(self):
        return self.exec("cat /var/log/salt/requests").stdout.splitlines()

    def destroy(self):
        for machine in (*self.minions.values(), self):
            machine.remove()
        client().networks.get(self.network).remove()


def start_service(container, name, program, kill_mode):
    """Start or restart a program of Salt as a service."""
    container.put(f"/etc/systemd/system/{name}.service", SERVICE.format(program=program, kill_mode=kill_mode))
    container.exec(f"systemctl daemon-reload && systemctl enable --quiet {name} && systemctl restart {name}")


def parse(stdout):
    """Return what several minions returned, which `salt --out=json` prints as one object after the other."""
    returned = {}
    decoder = json.JSONDecoder()
    while stdout:
        found, end = decoder.raw_decode(stdout)
        returned.update(found)
        stdout = stdout[end:].lstrip()
    return returned
