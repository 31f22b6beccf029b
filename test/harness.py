"""The machine under test, and what kitchen.yml says of suites.

machine = Machine.boot("debian-12")
machine.pillar({"apps": {"hello": {...}}})           # everything below `wsgi:`
run = machine.apply()                                # state.apply wsgi; fails the test when a state failed
assert run.changed == {"hello-release", "hello-live"}
assert machine.get("/", host="hello.example.com").status == 200
with machine.load(clients=8, host="hello.example.com") as load:
    machine.apply()
assert load.report["lost"] == 0, load.report
"""

import contextlib
import email.message
import io
import json
import shlex
import tarfile
import time
import uuid
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import ClassVar

import testinfra
import yaml
from container import ROOT, SYSTEMD, CommandFailed, Container, Result, build_image, words
from daemon import Process, client
from docker.errors import APIError, BuildError, ContainerError


@cache
def kitchen():
    """kitchen.yml as a dict: the home of platforms, suites and each suite's pillar."""
    return yaml.safe_load((ROOT / "kitchen.yml").read_text())


@cache
def servers():
    """Return wsgi/servers.yaml: the name of each server -> its row."""
    return yaml.safe_load((ROOT / "wsgi/servers.yaml").read_text())


def platforms():
    return [platform["name"] for platform in kitchen()["platforms"]]


def osfinger(platform):
    """The Debian of a platform, as Salt's grain osfinger names it."""
    return "-".join(platform.split("-")[:2]).capitalize()


def suites(platform="debian-12"):
    """Suite name -> its pillar on a platform, the dict below `wsgi:`."""
    (row,) = (row for row in kitchen()["platforms"] if row["name"] == platform)
    merged = {suite["name"]: _merged(row, suite) for suite in kitchen()["suites"]}
    return {name: suite["provisioner"]["pillars"]["wsgi.sls"]["wsgi"] for name, suite in merged.items()}


def _merged(platform, suite):
    """Merge what a platform and a suite say, as Kitchen does: the suite wins."""
    if not (isinstance(platform, dict) and isinstance(suite, dict)):
        return suite
    return {**platform, **{key: _merged(platform.get(key), value) for key, value in suite.items()}}


@cache
def image(platform, provisioned=False):
    """The platform's image; `provisioned` has the packages installed that the first one only holds
    downloaded, which saves each machine some seconds of its first highstate."""
    name = build_image(platform)
    if provisioned:
        dockerfile = f"FROM {name}\nRUN apt-get install -y --no-download /var/cache/apt/archives/*.deb\n"
        name += "-provisioned"
        build(name, dockerfile)
    return name


def build(name, dockerfile):
    """Build an image that needs no files."""
    try:
        client().images.build(fileobj=io.BytesIO(dockerfile.encode()), tag=name, rm=True)
    except BuildError as error:
        raise CommandFailed("".join(part.get("stream", "") for part in error.build_log) + error.msg) from None


@cache
def browser_image():
    """An image with a browser, which no machine of the formula has."""
    name = build_image("debian-12")
    install = "apt-get update && apt-get install -y --no-install-recommends chromium fonts-dejavu-core"
    build(f"{name}-browser", f"FROM {name}\nRUN {install}\n")
    return f"{name}-browser"


@dataclass
class Response:
    """What a request was answered with; header names are case-insensitive."""

    status: int
    body: str
    headers: email.message.Message


class Run:
    """One state run.

    states:  id -> {"result": True, False or None, "changes": {...}, "comment": "..."}; where one id
             has several states, the worst result, all changes and all comments
    changed: ids of the states that changed something (with test=True: would change it)
    failed:  ids of the states that failed
    raw:     what Salt returned: a dict of states, or a list of errors when rendering failed
    seconds: how long `salt-call` took, its start included
    """

    def __init__(self, raw, seconds):
        self.raw = raw
        self.seconds = seconds
        self.states = {}
        if isinstance(raw, dict):
            for state in sorted(raw.values(), key=lambda state: state["__run_num__"]):
                self._add(state)
        self.changed = {id for id, state in self.states.items() if state["changes"]}
        self.failed = {id for id, state in self.states.items() if state["result"] is False}

    def _add(self, state):
        known = self.states.setdefault(state["__id__"], {"result": True, "changes": {}, "comment": ""})
        worst_first = (False, None, True)
        known["result"] = min(known["result"], state["result"], key=worst_first.index)
        known["changes"].update(state["changes"])
        known["comment"] = "\n".join(filter(None, [known["comment"], str(state["comment"])]))

    @property
    def ok(self):
        return isinstance(self.raw, dict) and not self.failed

    def __str__(self):
        if not isinstance(self.raw, dict):
            return "The states did not render:\n" + "\n".join(map(str, self.raw))
        told = self.failed or self.changed
        return (
            "\n".join(
                f"{id}: {state['comment']}\n{json.dumps(state['changes'], indent=2)}"
                for id, state in self.states.items()
                if id in told
            )
            or "Nothing changed."
        )


def wait_for(condition, seconds=30):
    """The first true value of a condition, which is asked again and again; None where there is none in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.2)
    return None


class Load:
    """A load on the machine; `report` (see test/load.py) is there once it has ended."""

    report = None


class Machine(Container):
    """A Debian machine under systemd with Salt and the formula, in a container of its own.

    The checkout, or the tests' copy of it, is read-only at /srv/formula; its test/ is served too, so that
    salt://apps/x is test/apps/x. Every method raises CommandFailed, an AssertionError, when what it asks for can't be had.
    """

    # Where Salt's configuration and the pillar are; kitchen-salt keeps both below /tmp/kitchen.
    config_dir = "/etc/salt"
    pillar_path = "/srv/pillar/wsgi.sls"
    checkout = ROOT
    used: ClassVar = set()  # the machines on which a command has been run since a test last cleared this

    @classmethod
    def boot(cls, platform="debian-12", provisioned=True, labels=(), volumes=(), **options):
        """A new machine with an empty pillar.

        `provisioned`: the usual packages are installed already; `volumes`: folders that lie on the host's disk;
        `options` are further ones of the SDK's, such as network="some-network".
        """
        options = {"labels": list(labels), "volumes": list(volumes), **options}
        machine = cls.start(image(platform, provisioned), file_roots=["/srv/formula/test"], **options)
        machine.pillar({})
        return machine

    @classmethod
    def start(cls, image, *, file_roots=(), volumes=(), network=None, aliases=(), **options):
        """Boots `image` with further options of the SDK's and configures Salt in it; see Container.start.
        `aliases` are further names of the machine in its network."""
        if network:
            endpoint = client().api.create_endpoint_config(aliases=list(aliases))
            options.update(network=network, networking_config={network: endpoint})
        container = client().containers.run(
            image,
            detach=True,
            cap_add=SYSTEMD["cap_add"],
            security_opt=SYSTEMD["security_opt"],
            tmpfs=dict.fromkeys(SYSTEMD["tmpfs"], ""),
            cgroupns=SYSTEMD["cgroupns"][0],
            volumes=[*SYSTEMD["volume"], f"{cls.checkout}:/srv/formula:ro", *volumes],
            **options,
        )
        machine = cls(container.short_id)
        machine.set_up(file_roots)
        return machine

    @classmethod
    def of_kitchen(cls, hosts):
        """The machine that kitchen converged, from its verifier's --hosts=docker://root@ID."""
        machine = cls(hosts.rpartition("@")[2].rpartition("/")[2])
        machine.config_dir = "/tmp/kitchen/etc/salt"
        machine.pillar_path = "/tmp/kitchen/srv/pillar/wsgi.sls"
        return machine

    def exec(self, command, check=True, stdin=None):
        """Runs a command as root: a list, or a string for the shell. `check=False` allows any exit code."""
        try:
            done = self.spawn(command, stdin is not None).wait(stdin)
        except APIError as error:  # such as that the machine is down
            done = Result(1, "", f"{error.explanation}\n")
        if check and done.rc:
            raise CommandFailed(
                f"{self.name}: {shlex.join(words(command))}: code {done.rc}\n{done.stdout}{done.stderr}"
            )
        return done

    def spawn(self, command, stdin=False):
        """Starts a command that runs beside the test, and returns its Process; see daemon.py."""
        self.used.add(self)
        return Process(self.name, words(command), stdin)

    def pillar(self, wsgi):
        """Sets the pillar to {"wsgi": wsgi}, whole."""
        self.put(self.pillar_path, yaml.safe_dump({"wsgi": wsgi}, sort_keys=False), 0o600)

    def apply(self, *args, sls="wsgi", test=False, ok=True):
        """Runs `state.apply` of `sls` (None: the highstate, which takes 2 s longer, to sync modules),
        with further arguments for Salt. With ok=True, fails with what Salt said unless every state succeeded."""
        function = ["state.apply", sls] if sls else ["state.highstate"]
        started = time.monotonic()
        raw = self._salt_call(*function, *args, *(["test=True"] if test else []))
        run = Run(raw, time.monotonic() - started)
        if ok and not run.ok:
            raise CommandFailed(f"{' '.join(function)} failed on {self.name}\n{run}")
        return run

    def call(self, function, *args):
        """Runs an execution module's function and returns what it returned: call("wsgi.status")."""
        return self._salt_call(function, *args)

    def _salt_call(self, *args):
        done = self.exec(["salt-call", f"--config-dir={self.config_dir}", "--out=json", *args], check=False)
        with contextlib.suppress(ValueError, KeyError):
            return json.loads(done.stdout)["local"]
        raise CommandFailed(f"salt-call {shlex.join(args)}: code {done.rc}\n{done.stdout}{done.stderr}")

    def get(self, path="/", host=None, port=80, timeout=30):
        """Requests http://127.0.0.1:PORT/PATH from within the machine, once; the status may be any.

        ConnectionError when no answer comes."""
        # Headers on stderr, so that the body stays alone on stdout.
        curl = ["curl", "--silent", "--show-error", "--dump-header", "/dev/stderr", "--max-time", timeout]
        header = ["--header", f"Host: {host}"] if host else []
        done = self.exec([*curl, *header, f"http://127.0.0.1:{port}{path}"], check=False)
        if done.rc:
            raise ConnectionError(f"{self.name}: {path}: {done.stderr.strip()}")
        status_line, _, headers = done.stderr.partition("\n")
        return Response(int(status_line.split()[1]), done.stdout, email.message_from_string(headers))

    def browse(self, url, expressions, *options):
        """What JavaScript's expressions, by name, come to on a page, in a browser that has the machine's network;
        with further options of test/browser.py."""
        try:
            found = client().containers.run(
                browser_image(),
                ["python3", "/browser.py", *options, url, json.dumps(expressions)],
                remove=True,
                init=True,
                network_mode=f"container:{self.name}",
                volumes=[f"{self.checkout}/test/browser.py:/browser.py:ro"],
            )
        except ContainerError as error:
            raise CommandFailed(str(error)) from None
        return json.loads(found)

    @contextlib.contextmanager
    def load(self, seconds=120, **options):
        """Sends requests while the `with` body runs, `seconds` at most: clients, host, path, port, tls,
        mode, timeout, pause, as test/load.py has them. The body starts once every client has had an answer,
        or a failure."""
        load = Load()
        files = f"/tmp/load-{uuid.uuid4().hex}"
        flags = [f"--{name}={value}" for name, value in {"seconds": seconds, **options}.items()]
        # Kitchen's machines have no checkout mounted, so the program is put there.
        self.put(f"{files}.py", (self.checkout / "test/load.py").read_text())
        clients = self.spawn(["python3", f"{files}.py", f"--stop={files}.stop", f"--report={files}.json", *flags])
        try:
            first = next(clients.lines, "")
            if first != "sending":
                raise CommandFailed(f"test/load.py didn't start: {first}\n{clients.wait().stderr}")
            yield load
        finally:
            self.exec(["touch", f"{files}.stop"], check=False)
            clients.wait()
        load.report = json.loads(self.exec(["cat", f"{files}.json"]).stdout)

    def copy(self, source, path):
        """Copies a file or folder of this computer, as root's; not to /run, which is not on the container's disk."""
        path, archive = Path(path), io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.add(source, path.name, filter=lambda member: member.replace(uid=0, gid=0, deep=False))
        client().api.put_archive(self.name, str(path.parent), archive.getvalue())

    def restart(self):
        """Reboots: stops everything, empties /run, starts again, waits for systemd."""
        client().api.restart(self.name)
        self.wait()

    def logs(self):
        """Return the last lines that PID 1 has written."""
        return client().api.logs(self.name, tail=20).decode()

    def logs_since(self, began):
        """Return the ends of the logs, apps' and nginx's errors, that have been written to since a time.time()."""
        ends = (
            "find /var/log/wsgi /var/log/nginx '(' -path '/var/log/wsgi/*.log' -o -name '*error.log' ')'"
            f" -size +0 -newermt @{began} -printf '%T@ %p\\n' | sort -rn | head -n 8 | cut -d ' ' -f 2"
            " | xargs -r tail -v -n 40 | cut -c -500"
        )
        return self.exec(["timeout", "10", "sh", "-c", ends], check=False).stdout

    def destroy(self):
        self.used.discard(self)
        client().api.remove_container(self.name, force=True, v=True)

    remove = destroy

    @cached_property
    def host(self):
        """The machine as testinfra sees it: machine.host.service("nginx").is_running"""
        return testinfra.get_host(f"docker://root@{self.name}")


def find_leftovers(machine):
    """Return what a machine still has of the formula after `wsgi.clean`: files, users and processes; "" for nothing."""
    return machine.exec(
        "find / -xdev -not -path '/proc/*' -not -path '/srv/formula/*' -not -path '/var/cache/*' -not -path '/var/lib/dpkg/*'"
        " -not -path '/opt/*' -not -path '/usr/share/*' -iname '*wsgi*'"
        " | grep -v -E 'uwsgi|wsgiref|/srv/pillar|/srv/formula|cache/salt';"
        " getent passwd | grep wsgi; ps -eo args | grep '[g]unicorn'",
        check=False,
    ).stdout
