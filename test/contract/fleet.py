"""The servers that wsgi/servers.yaml claims, each with an app of its own, side by side on one machine."""

import concurrent.futures
import functools
import itertools
import json
import re
import threading

import yaml
from container import ROOT, CommandFailed
from harness import wait_for

ROWS = yaml.safe_load((ROOT / "wsgi/servers.yaml").read_text())
# Those that only other systems can have: test/integration/test_process_managers.py tests them there.
ELSEWHERE = yaml.safe_load((ROOT / "wsgi/os_family/Debian.yaml").read_text())["process_managers"]
DEFAULTS = yaml.safe_load((ROOT / "wsgi/defaults.yaml").read_text())["app"]
WAITRESS = [
    "{environment}/bin/waitress-serve",
    "--unix-socket={socket}",
    "--unix-socket-perms=660",
    "--threads=1",
    "--trusted-proxy=*",
    "--trusted-proxy-headers=x-forwarded-for x-forwarded-proto",
    "contract:application",
]
# The test matrix: what is asked beyond every server of servers.yaml as it comes, and what it
# needs in pillar. `server` is the key itself where it isn't said.
VARIANTS = {
    "uwsgi-environment": {"server": "uwsgi", "install": "environment"},
    "command": {"command": WAITRESS, "requirements": ["waitress==3.0.2"]},
}
MATRIX = [*ROWS, *(name for name in VARIANTS if name not in ROWS)]
# What an app may be asked to be under any server. Where a server can't, its row doesn't say so.
NEUTRAL = ("workers", "threads", "request_timeout", "max_requests", "memory_limit")
AGENT = "/srv/formula/test/contract/agent.py"


def servers(manager):
    """The rows of the test matrix that a process manager can hold."""
    return [name for name in MATRIX if manager in holders(name)]


def managers():
    """Every process manager that servers.yaml claims."""
    return sorted({manager for name in MATRIX for manager in holders(name)})


def pairs():
    """Every pair that servers.yaml claims, (server, process manager)."""
    return [(name, manager) for name in MATRIX for manager in holders(name)]


def holders(name):
    """The process managers that can hold a server here."""
    return [manager for manager in row(name)["process_managers"] if manager not in ELSEWHERE]


def once():
    """Every server to one process manager, each of which occurs."""
    return {name: holders(name)[number % len(holders(name))] for number, name in enumerate(MATRIX)}


def rest_of(manager):
    """The servers that a process manager can hold, to that one, where `once` names another one."""
    return {name: manager for name in servers(manager) if once()[name] != manager}


def chosen(request):
    """The parameters of each of the file's tests that this run has, which -k may have made few."""
    return [
        item.callspec.params
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec")
    ]


def chosen_servers(request, managers):
    """Return the servers of a file that this run has selected tests for, to their process managers."""
    names = {params.get("server") for params in chosen(request)}
    return {name: manager for name, manager in managers.items() if name in names} or managers


def row(name):
    return ROWS[VARIANTS.get(name, {}).get("server", name)]


def honoured(name, **settings):
    """The settings that a server can keep."""
    return {
        setting: value for setting, value in settings.items() if setting in row(name)["honours"] and setting in DEFAULTS
    }


def refused(name):
    """The settings that a server can't keep."""
    return [setting for setting in NEUTRAL if setting not in row(name)["honours"] and setting in DEFAULTS]


def pillar_of(name, manager, interface="wsgi", **settings):
    """The pillar of an app under a server and a process manager."""
    asgi = {"application": "contract_asgi:application", "interface": "asgi"}
    return {
        "server": name,
        "process_manager": manager,
        "source": "salt://apps/contract",
        "application": "contract:application",
        "domains": [f"{name}.example.com"],
        "env": {"APP": name},
        "keep_releases": 50,
        "health": {"deadline": 60},
        **VARIANTS.get(name, {}),
        **(asgi if interface == "asgi" else {}),
        **settings,
    }


class Agent:
    """test/contract/agent.py on the machine: does many things there at once, and soon."""

    def __init__(self, machine):
        self.machine = machine
        self.lock = threading.Lock()
        self.process = None

    def do(self, what, **arguments):
        """A Future of what the agent says."""
        future = concurrent.futures.Future()
        with self.lock:
            if self.process is None:
                self._start()
            number = next(self.numbers)
            self.waiting[number] = future
            self.process.write(json.dumps({"id": number, "do": what, "with": arguments}) + "\n")
        return future

    def _start(self):
        self.numbers, self.waiting = itertools.count(), {}
        self.process = self.machine.spawn(["python3", AGENT], stdin=True)
        self.reader = threading.Thread(target=self._read, args=[self.process, self.waiting], daemon=True)
        self.reader.start()

    def _read(self, process, waiting):
        for line in process.lines:
            said = json.loads(line)
            future = waiting.pop(said["id"])
            if "error" in said:
                future.set_exception(ConnectionError(said["error"]))
            else:
                future.set_result(said["result"])
        with self.lock:
            self.process = None
        for future in waiting.values():
            future.set_exception(ConnectionError("the machine went down"))

    def close(self):
        with self.lock:
            if self.process is None:
                return
            self.process.close_stdin()
        self.reader.join()


class Answer:
    """What a request was answered with; times are the machine's monotonic clock."""

    def __init__(self, said):
        self.status = said["status"]
        self.headers = said["headers"]
        self.body = said["body"]
        self.interim = said["interim"]
        self.sent = said["sent"]
        self.arrivals = said["arrivals"]

    def __repr__(self):
        return f"{self.status} {self.headers} {self.body[:2000]!r}"

    def values(self, name):
        return [value for header, value in self.headers if header.lower() == name.lower()]

    @property
    def told(self):
        """What the app saw."""
        assert self.status == 200, self
        return json.loads(self.body)


class Site:
    """One server's app, asked over nginx from within the machine."""

    def __init__(self, fleet, name):
        self.fleet = fleet
        self.name = name
        self.row = row(name)
        self.host = f"{name}.example.com"
        self.user = f"wsgi-{name}"

    def sending(self, *requests, **options):
        """A Future of the answers to requests over one connection."""
        return self.fleet.agent.do("ask", host=self.host, requests=list(requests), **options)

    def ask(self, target="/", **request):
        """The answer to one request; see agent.py for what it may be."""
        return self.converse({"target": target, **request})[0]

    def converse(self, *requests):
        return [Answer(said) for said in self.sending(*requests).result()]

    def at_once(self, count, target):
        """The answers to equal requests sent at the same time."""
        sent = [self.sending({"target": target}) for _ in range(count)]
        return [Answer(each.result()[0]) for each in sent]

    def served_at_once(self, wanted, rounds=10):
        """What the app told in the first round of 16 requests of which so many were served at once, or in
        the best of some. Which worker gets a request is up to the kernel, which may prefer one for a while."""
        best = []
        for _ in range(rounds):
            told = [answer.told for answer in self.at_once(16, "/?do=tell&seconds=0.3")]
            best = max(best, told, key=at_once)
            if at_once(best) >= wanted:
                break
        return best

    def processes(self):
        """PID to resident MiB."""
        found = self.fleet.agent.do("processes", user=self.user).result()
        return {int(pid): mib for pid, mib in found.items()}

    def logs(self):
        """Return the text of all logs of the app."""
        return self.fleet.machine.exec(f"cat /var/log/wsgi/{self.name}/*.log").stdout

    def streams(self):
        """Return whether the client got each part of an answer before the app made the next one. A server that streams may
        be late now and then on a busy machine, so one success of several tries is enough."""

        def streamed():
            answer = self.ask("/?do=stream&count=4&pause=0.25")
            made = [float(time) for time in answer.body.split()]
            assert len(made) == 4
            return answer.arrivals[0] < made[1] and answer.arrivals[-2] < made[-1]

        return wait_for(streamed, 20)

    def generations(self):
        return self.fleet.agent.do("folders", path=f"/etc/wsgi/{self.name}").result()

    def serves(self):
        try:
            return self.ask().status == 200
        except ConnectionError:
            return False

    def workers(self, count=2, seconds=10):
        """The PIDs that answer: `count` of them, or as many as are found in some seconds. Who
        answers is up to the kernel, which may prefer one for a while."""
        found = set()
        wait_for(lambda: found.update(self._answering()) or len(found) >= count, seconds)
        return found

    def _answering(self):
        return [answer.told["pid"] for answer in self.at_once(16, "/?do=tell&seconds=0.05") if answer.status == 200]


class Fleet:
    """One app for each of some servers; `managers` says which process manager holds it."""

    def __init__(self, machine, managers, interface="wsgi"):
        self.machine = machine
        self.agent = Agent(machine)
        self.interface = interface
        self.managers = managers
        self.sites = {name: Site(self, name) for name in managers}

    def apply(self, mount="/", **settings):
        """Gives each app its mount, and those of the settings that its server can keep. Never raises:
        one server that fails is no reason not to ask the others."""
        self.settings = settings
        self.apps = {
            name: pillar_of(name, self.managers[name], self.interface, mount=mount, **honoured(name, **settings))
            for name in self.sites
        }
        self.machine.pillar({"apps": self.apps})
        self.run = self.machine.apply(ok=False)

    def site(self, name):
        """A site, of which the last apply brought up the app."""
        for what in ("release", "live", "site"):
            state = self.run.states.get(f"{name}-{what}")
            if state is None or state["result"] is False:
                raise CommandFailed(state["comment"] if state else str(self.run))
        return self.sites[name]

    def each(self, experiment):
        """Does something with every site at once; see Outcomes."""
        with concurrent.futures.ThreadPoolExecutor(len(self.sites)) as pool:
            return Outcomes({name: pool.submit(self._try, experiment, name) for name in self.sites})

    def _try(self, experiment, name):
        return experiment(self.site(name))

    def status(self):
        return self.machine.call("wsgi.status")

    @functools.cached_property
    def nginx(self):
        """nginx's version, a tuple of int."""
        return tuple(map(int, re.search(r"nginx/([\d.]+)", self.machine.exec("nginx -v").stderr)[1].split(".")))


class Outcomes:
    """What came of an experiment with every site; a site's failure is raised where it is asked for."""

    def __init__(self, futures):
        self.futures = futures

    def of(self, site):
        return self.futures[site.name].result()


def at_once(answers):
    """How many of the answers' times overlapped at most."""
    return max((sum(one["began"] <= other["began"] < one["ended"] for one in answers) for other in answers), default=0)
