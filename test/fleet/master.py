"""A Salt master with its minions, on a network of their own.

master = Master.boot(["web1", "web2"])
master.pillar({"apps": {"hello": {...}}})            # everything below `wsgi:`, for all minions or for one
runs = master.salt("*", "state.apply", "wsgi")       # minion -> harness.Run; fails the test when a state failed
assert runs["web1"].changed == {"hello-release", "hello-live", "hello-site"}
assert master.minions["web1"].get("/").status == 200 # each is a Machine, whose salt-call asks the master, too
"""

import concurrent.futures
import contextlib
import json
import shlex
import time
import uuid
from pathlib import Path

import yaml
from container import CommandFailed, Container, docker
from harness import Machine, Result, Run, image, wait_for

# As Salt's own packages have it, with another program.
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


class Minion(Machine):
    """A machine whose Salt asks a master."""

    @classmethod
    def boot(cls, id, network, platform, options):
        minion = cls.start(image(platform, True), f"--network={network}", f"--hostname={id}", *options)
        minion.id = id
        minion.exec("rm -r /srv/pillar /srv/salt-top")
        minion.configure()
        return minion

    def configure(self, **settings):
        """Starts salt-minion with these settings besides its own few."""
        own = {"master": "salt", "id": self.id, "log_level_logfile": "debug", "acceptance_wait_time": 1}
        self.put("/etc/salt/minion", json.dumps({**own, **settings}))
        start_service(self, "salt-minion", "/opt/salt/bin/salt-minion", "process")

    def forget(self):
        """Makes it a minion that has never synced a module nor fetched a file. What it serves, it goes on serving."""
        self.exec("systemctl stop salt-minion && rm -rf /var/cache/salt/minion && systemctl start salt-minion")

    def pillar(self, wsgi):
        raise NotImplementedError("A minion's pillar is its master's: master.pillar(wsgi, minion)")


class Master(Container):
    """A Salt master. Its file roots are /srv/salt, which has test/apps, and FORMULA, a copy of this checkout."""

    CONFIGURATION = "/etc/salt/master.d/wsgi.conf"
    configured = None  # its text

    @classmethod
    def boot(cls, minions=("web1", "web2"), platform="debian-12", labels=()):
        network = f"wsgi-{uuid.uuid4().hex[:12]}"
        options = [f"--label={label}" for label in labels]
        docker("network", "create", *options, network)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            booting = {id: pool.submit(Minion.boot, id, network, platform, options) for id in minions}
            master = cls.start(
                image(platform, True), f"--network={network}", "--network-alias=salt", "--hostname=salt", *options
            )
            master.network = network
            master.exec("ln -s /opt/salt/bin/salt* /usr/local/bin/ 2>/dev/null; mkdir -p /etc/salt/master.d /srv/salt")
            master.exec("cp -r /srv/formula/test/apps /srv/salt/")
            master.put(PROGRAM, Path(__file__).with_name("counting_master.py").read_text())
            own = {"auto_accept": True, "worker_threads": 3, "log_level_logfile": "debug"}
            master.put("/etc/salt/master", json.dumps(own))
            master.minions = {id: minion.result() for id, minion in booting.items()}
            master.reset()
        return master

    def reset(self):
        """Makes it serve this checkout and an empty pillar, and its minions fresh ones without an app."""
        self.restore_formula()
        self.pillar({})
        self.put("/srv/salt/top.sls", json.dumps({"base": {"*": ["wsgi"]}}))
        self.configure(json.dumps({"file_roots": {"base": ["/srv/salt", FORMULA]}}))
        for minion in self.minions.values():
            if not minion.exec("test -e /srv/wsgi", check=False).rc:
                minion.apply(sls="wsgi.clean")
                minion.forget()
        self.wait_for_minions()

    def configure(self, text):
        """Restarts salt-master with this text as its own CONFIGURATION, unless it has it."""
        if text == self.configured:
            return
        self.put(self.CONFIGURATION, text)
        start_service(self, "salt-master", PROGRAM, "mixed")
        self.configured = text
        self.wait_for_minions()

    def wait_for_minions(self):
        """Waits until every minion does what the master asks of it."""
        if not wait_for(self.answers, 60):
            raise CommandFailed(f"{self.name}: the minions don't answer\n{self.exec('journalctl -n 30').stdout}")

    def answers(self):
        """Whether every minion answers."""
        pong = self.exec(["salt", "--out=json", "--timeout=2", "*", "test.ping"], check=False).stdout
        with contextlib.suppress(ValueError):
            return parse(pong) == dict.fromkeys(self.minions, True)

    def restore_formula(self):
        """Makes the formula that the master serves a copy of the checkout again."""
        self.exec(
            f"rm -rf {FORMULA} && mkdir -p {FORMULA} && tar -C /srv/formula --exclude=.git --exclude=__pycache__ -c . "
            f"| tar -C {FORMULA} --no-same-owner -x"
        )

    def exec(self, command, check=True):
        """Runs a command as root: a list, or a string for the shell. `check=False` allows any exit code."""
        argv = ["sh", "-c", command] if isinstance(command, str) else [str(part) for part in command]
        done = docker("exec", self.name, *argv, check=check)
        return Result(done.returncode, done.stdout, done.stderr)

    def pillar(self, wsgi, minion=None):
        """Sets the pillar of all minions, or of one, to {"wsgi": wsgi}, whole."""
        self.put("/srv/pillar/top.sls", json.dumps({"base": {id: [id] for id in self.minions}}))
        for id in [minion] if minion else self.minions:
            self.put(f"/srv/pillar/{id}.sls", yaml.safe_dump({"wsgi": wsgi}, sort_keys=False), 0o600)

    def salt(self, target, function, *args, ok=True):
        """Runs `salt TARGET FUNCTION ARGS` and returns minion -> what it returned, a state run's as a Run.
        With ok=True, fails with what Salt said unless all succeeded, and every minion answered."""
        started = time.monotonic()
        # Not --static, which is another client of Salt's, and gives up on a minion that is busy.
        argv = ["salt", "--out=json", "--timeout=60", target, function, *args]
        done = self.exec(argv, check=False)
        try:
            returned = parse(done.stdout)
        except ValueError:
            raise CommandFailed(f"{shlex.join(argv)}: code {done.rc}\n{done.stdout}{done.stderr}") from None
        if function in ("state.apply", "state.highstate", "state.sls"):
            returned = {id: Run(raw, time.monotonic() - started) for id, raw in returned.items()}
        if ok and (done.rc or not returned):
            told = "\n".join(f"{id}: {found}" for id, found in returned.items())
            raise CommandFailed(f"{shlex.join(argv)}: code {done.rc}\n{told}{done.stderr}")
        return returned

    @contextlib.contextmanager
    def requests(self):
        """A list of the requests that the master got while the `with` body ran, filled when it has ended. Each is
        a dict of `command`, such as `_file_hash`, `minion`, and `path`, where it is one of a file."""
        found = []
        begun = len(self._requests())
        yield found
        found += map(json.loads, self._requests()[begun:])

    def _requests(self):
        return self.exec("cat /var/log/salt/requests").stdout.splitlines()

    def destroy(self):
        for machine in (*self.minions.values(), self):
            machine.remove()
        docker("network", "rm", self.network)


def start_service(container, name, program, kill_mode):
    """Starts a program of Salt's as a service, or restarts it."""
    container.put(f"/etc/systemd/system/{name}.service", SERVICE.format(program=program, kill_mode=kill_mode))
    container.exec(f"systemctl daemon-reload && systemctl enable --quiet {name} && systemctl restart {name}")


def parse(stdout):
    """What several minions returned, of which `salt --out=json` prints one object after the other."""
    returned = {}
    decoder = json.JSONDecoder()
    while stdout:
        found, end = decoder.raw_decode(stdout)
        returned.update(found)
        stdout = stdout[end:].lstrip()
    return returned
