"""The machine under test, and the suites of kitchen.yml.

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
    """Return kitchen.yml, the home of platforms, suites and their pillars, as a dict."""
    return yaml.safe_load((ROOT / "kitchen.yml").read_text())


@cache
def servers():
    """Return wsgi/servers.yaml: the name of each server -> its row."""
    return yaml.safe_load((ROOT / "wsgi/servers.yaml").read_text())


def platforms():
    return [platform["name"] for platform in kitchen()["platforms"]]


def osfinger(platform):
    """Return the grain `osfinger` of a platform."""
    return "-".join(platform.split("-")[:2]).capitalize()


def suites(platform="debian-12"):
    """Return the pillars below `wsgi:` of all suites on a platform, by their names."""
    (row,) = (row for row in kitchen()["platforms"] if row["name"] == platform)
    merged = {suite["name"]: _merged(row, suite) for suite in kitchen()["suites"]}
    return {name: suite["provisioner"]["pillars"]["wsgi.sls"]["wsgi"] for name, suite in merged.items()}


def _merged(platform, suite):
    """Merge the settings of a platform and a suite as Kitchen does: the suite wins."""
    if not (isinstance(platform, dict) and isinstance(suite, dict)):
        return suite
    return {**platform, **{key: _merged(platform.get(key), value) for key, value in suite.items()}}


@cache
def image(platform, provisioned=False):
    """Return the name of the platform's image; `provisioned`: with the packages installed that the plain image only has
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
    """Return the name of an image with a browser."""
    name = build_image("debian-12")
    install = "apt-get update && apt-get install -y --no-install-recommends chromium fonts-dejavu-core"
    build(f"{name}-browser", f"FROM {name}\nRUN {install}\n")
    return f"{name}-browser"


@dataclass
class Response:
    """A response; header names are case-insensitive."""

    status: int
    body: str
    headers: email.message.Message


class Run:
    """One state run.

    states:   id -> {"result": True, False or None, "changes": {...}, "comment": "..."}; where one id
              has several states, the worst result, all changes and all comments
    changed:  ids of the states that changed something (with test=True: would change it)
    failed:   ids of the states that failed
    warnings: the warnings of all states
    raw:      what Salt returned: a dict of states, or a list of errors when rendering failed
    seconds:  how long `salt-call` took, its start included
    """

    def __init__(self, raw, seconds):
        self.raw = raw
        self.seconds = seconds
        self.states = {}
        for state in self._returns():
            self._add(state)
        self.warnings = [each for state in self._returns() for each in state.get("warnings", [])]
        self.changed = {id for id, state in self.states.items() if state["changes"]}
        self.failed = {id for id, state in self.states.items() if state["result"] is False}

    def _returns(self):
        """Return what each state returned, in their order."""
        return sorted(self.raw.values(), key=lambda state: state["__run_num__"]) if isinstance(self.raw, dict) else []

    def _add(self, state):
        known = self.states.setdefault(state["__id__"], {"result": True, "changes": {}, "comment": ""})
        worst_first = (False, None, True)
        known["result"] = min(known["result"], state["result"], key=worst_first.index)
        known["changes"].update(state["changes"])
        known["comment"] = "\n".join(filter(None, [known["comment"], str(state["comment"])]))

    @property
    def ok(self):
        return isinstance(self.raw, dict) and not self.failed

    def hook_output(self, state):
        """Return what the hooks that a state ran have printed, by their labels such as "build: make assets"."""
        return self.states[state]["changes"].get("hooks", {})

    def __str__(self):
        if not isinstance(self.raw, dict):
            return "The states did not render:\n" + "\n".join(map(str, self.raw))
        shown = self.failed or self.changed
        return (
            "\n".join(
                f"{id}: {state['comment']}\n{json.dumps(state['changes'], indent=2)}"
                for id, state in self.states.items()
                if id in shown
            )
            or "Nothing changed."
        )


def wait_for(condition, seconds=30, pause=0.2):
    """Call a function until it returns something true, and return that; return None when it does not in time."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            return None
        time.sleep(pause)
    return found


class Load:
    """A load on the machine; `report` (see test/load.py) is set when it has ended."""

    report = None


class Machine(Container):
    """A Debian machine under systemd with Salt and the formula, in a container of its own.

    The checkout, or the tests' copy of it, is read-only at /srv/formula; its test/ is served too, so that
    salt://apps/x is test/apps/x. Methods raise CommandFailed, an AssertionError, when they fail.
    """

    # Where Salt's configuration and the pillar are; kitchen-salt keeps both below /tmp/kitchen.
    config_dir = "/etc/salt"
    pillar_path = "/srv/pillar/wsgi.sls"
    checkout = ROOT
    used: ClassVar = set()  # the machines on which a command has been run since a test last cleared this

    @classmethod
    def boot(cls, platform="debian-12", provisioned=True, labels=(), volumes=(), **options):
        """Boot a new machine with an empty pillar.

        `provisioned`: with the usual packages installed; `volumes`: folders on the host's disk;
        `options` are further ones of the SDK, such as network="some-network".
        """
        options = {"labels": list(labels), "volumes": list(volumes), **options}
        machine = cls.start(image(platform, provisioned), file_roots=["/srv/formula/test"], **options)
        machine.pillar({})
        return machine

    @classmethod
    def start(cls, image, *, file_roots=(), volumes=(), network=None, aliases=(), **options):
        """Boot `image` with further options of the SDK, and configure Salt in it; see Container.start.
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
        """Return the machine that Kitchen converged, from its verifier's --hosts=docker://root@ID."""
        machine = cls(hosts.rpartition("@")[2].rpartition("/")[2])
        machine.config_dir = "/tmp/kitchen/etc/salt"
        machine.pillar_path = "/tmp/kitchen/srv/pillar/wsgi.sls"
        return machine

    def exec(self, command, check=True, stdin=None):
        """Run a command as root: a list, or a string for the shell. `check=False` allows any exit code."""
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
        """Start a command that runs beside the test, and return its Process; see daemon.py."""
        self.used.add(self)
        return Process(self.name, words(command), stdin)

    def pillar(self, wsgi):
        """Set the whole pillar to {"wsgi": wsgi}."""
        self.put(self.pillar_path, yaml.safe_dump({"wsgi": wsgi}, sort_keys=False), 0o600)

    def apply(self, *args, sls="wsgi", test=False, ok=True):
        """Run `state.apply` of `sls` (None: the highstate, which takes 2 s longer, to sync modules) with further arguments
        for Salt, and return the Run. With ok=True, CommandFailed unless every state succeeds."""
        function = ["state.apply", sls] if sls else ["state.highstate"]
        started = time.monotonic()
        raw = self._salt_call(*function, *args, *(["test=True"] if test else []))
        run = Run(raw, time.monotonic() - started)
        if ok and not run.ok:
            raise CommandFailed(f"{' '.join(function)} failed on {self.name}\n{run}")
        return run

    def call(self, function, *args):
        """Call a function of an execution module, such as "wsgi.status", and return what it returns."""
        return self._salt_call(function, *args)

    def status(self, name):
        """Return what `wsgi.status` reports of one app."""
        return self.call("wsgi.status", name)[name]

    def live_generation(self, name):
        """Return the id of an app's live generation; "" when none is live."""
        return self.exec(f"readlink /var/lib/wsgi/live/{name}", check=False).stdout.strip().rpartition("/")[2]

    def observe(self, *args):
        """Run `salt-call ARGS` and return what observed_salt_call.py reports of it, and what it `returned`."""
        report = "/root/observed.json"
        script = ["/opt/salt/bin/python", "/srv/formula/test/integration/observed_salt_call.py", report, "--out=json"]
        returned = json.loads(self.exec([*script, *args]).stdout)["local"]
        return {**json.loads(self.exec(["cat", report]).stdout), "returned": returned}

    def observe_idle_run(self, sls="wsgi"):
        """Observe a `state.apply` of `sls`; fails the test when that changes anything."""
        observed = self.observe("state.apply", sls)
        run = Run(observed["returned"], 0)
        if not run.ok or run.changed:
            raise CommandFailed(f"the run was not idle\n{run}")
        return observed

    def wait_until(self, command, seconds=30, otherwise="true"):
        """Repeat a shell command until it succeeds; when it does not in time, CommandFailed with its output
        and with that of the command `otherwise`."""
        waiting = shlex.join(["timeout", str(seconds), "sh", "-c", f"until {command}; do sleep 0.1; done"])
        self.exec(f"{waiting} || {{ {otherwise}; false; }}")

    def _salt_call(self, *args):
        done = self.exec(["salt-call", f"--config-dir={self.config_dir}", "--out=json", *args], check=False)
        with contextlib.suppress(ValueError, KeyError):
            return json.loads(done.stdout)["local"]
        raise CommandFailed(f"salt-call {shlex.join(args)}: code {done.rc}\n{done.stdout}{done.stderr}")

    def get(self, path="/", host=None, port=80, timeout=30, options=()):
        """Request http://127.0.0.1:PORT/PATH from within the machine, once and with the path as it is; `options`
        are further ones of curl's, and the status may be any. ConnectionError when no response comes."""
        # Headers on stderr, so that the body stays alone on stdout.
        curl = ["curl", "--silent", "--show-error", "--path-as-is", "--dump-header", "/dev/stderr"]
        header = ["--header", f"Host: {host}"] if host else []
        url = f"http://127.0.0.1:{port}{path}"
        done = self.exec([*curl, "--max-time", timeout, *options, *header, url], check=False)
        if done.rc:
            raise ConnectionError(f"{self.name}: {path}: {done.stderr.strip()}")
        status_line, _, headers = done.stderr.partition("\n")
        return Response(int(status_line.split()[1]), done.stdout, email.message_from_string(headers))

    def send(self, request, port=80):
        """Send bytes as they are to a port of the machine, and return what comes back until the connection is closed."""
        program = (
            f"import socket, sys; sock = socket.create_connection(('127.0.0.1', {port}), 10);"
            " sock.sendall(bytes.fromhex(sys.stdin.read()));"
            " sys.stdout.buffer.write(b''.join(iter(lambda: sock.recv(65536), b'')))"
        )
        return self.exec(["python3", "-c", program], stdin=request.hex()).stdout

    def browse(self, url, expressions, *options):
        """Open a page in a browser in the machine's network, and return the values of JavaScript expressions on it by their
        names; `options` are further ones of test/browser.py."""
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
        """Send requests while the `with` body runs, for at most so many `seconds`. The options clients, host, path, port,
        tls, mode, timeout, pause … are those of test/load.py. The body starts once every client has had a response or a
        failure."""
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
        """Copy a file or folder of this computer as root's; not to /run, which is not on the container's disk."""
        path, archive = Path(path), io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.add(source, path.name, filter=lambda member: member.replace(uid=0, gid=0, deep=False))
        client().api.put_archive(self.name, str(path.parent), archive.getvalue())

    def restart(self):
        """Reboot: stop everything, empty /run, start again, and wait for systemd."""
        client().api.restart(self.name)
        self.wait()

    def logs(self):
        """Return the last lines that PID 1 has written."""
        return client().api.logs(self.name, tail=20).decode()

    def logs_since(self, began):
        """Return the last lines of the apps' logs and nginx's error logs that were written to since a time.time()."""
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
        """The machine in testinfra: machine.host.service("nginx").is_running"""
        return testinfra.get_host(f"docker://root@{self.name}")


def find_traces(machine, name):
    """Return all that a machine has of an app except its code, logs and home, as a text to compare: users, files, units,
    entries of process managers, and processes with their PIDs; "" for none."""
    return machine.exec(
        f"getent passwd wsgi-{name} wsgibuild-{name};"
        " find /etc /etc/nginx/wsgi/live/ /run/wsgi /var/lib/wsgi/live /var/lib/wsgi/build -regextype posix-extended"
        r" \( -path '/etc/salt*' -o -path /etc/nginx/wsgi/trees \) -prune -o"
        f" -regex '.*/(wsgi-|wsgibuild-)?{name}([.].*)?' -not -name '*.lock' -print | sort;"
        f" ls -d /etc/wsgi/{name}/*/ /etc/wsgi/{name}/*/* /run/wsgi/{name}/*;"
        f" systemctl list-units --all --plain --no-legend 'wsgi-{name}.*' | awk '{{print $1, $3}}' | sort;"
        f" supervisorctl status | grep -o '^{name}[.][^ ]*';"
        " /usr/local/lib/wsgi/circus/bin/circusctl --endpoint=ipc:///run/wsgi/circus/endpoint list"
        f" | tr , '\\n' | grep -o '{name}[.].*';"
        f" curl -s --unix-socket /run/wsgi/gaffer/api http://gaffer/jobs | tr , '\\n' | grep '\"{name}[.]';"
        # What has ended stays defunct until circus looks at it.
        f" ps -eo pid=,user:40=,args= | grep -E ' wsgi(build)?-({name}) |[/]({name})/|[ \"]({name})[.]'"
        " | grep -v -E 'ps -eo|<defunct>$'",
        check=False,
    ).stdout


def find_leftovers(machine):
    """Return files, users and processes of the formula that a machine still has after `wsgi.clean`; "" for none."""
    return machine.exec(
        "find / -xdev -not -path '/proc/*' -not -path '/srv/formula/*' -not -path '/var/cache/*' -not -path '/var/lib/dpkg/*'"
        " -not -path '/opt/*' -not -path '/usr/share/*' -iname '*wsgi*'"
        " | grep -v -E 'uwsgi|wsgiref|/srv/pillar|/srv/formula|cache/salt';"
        " getent passwd | grep wsgi; ps -eo args | grep '[g]unicorn'",
        check=False,
    ).stdout
