"""The servers of wsgi/servers.yaml, each with an app of its own, side by side on one machine."""

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
# Process managers that other systems have: test/integration/test_process_managers.py tests these there.
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
# Rows of the test matrix besides the servers of servers.yaml, with their pillar; `server` defaults to the key.
VARIANTS = {
    "uwsgi-environment": {"server": "uwsgi", "install": "environment"},
    "command": {"command": WAITRESS, "requirements": ["waitress==3.0.2"]},
}
MATRIX = [*ROWS, *(name for name in VARIANTS if name not in ROWS)]
# The settings that mean the same under every server; the row of a server has those that it supports.
NEUTRAL = ("workers", "threads", "request_timeout", "max_requests", "memory_limit")
AGENT = "/srv/formula/test/contract/agent.py"


def servers(manager):
    """Return the rows of the test matrix that a process manager can run."""
    return [name for name in MATRIX if manager in holders(name)]


def managers():
    """Return every process manager in servers.yaml."""
    return sorted({manager for name in MATRIX for manager in holders(name)})


def pairs():
    """Return every pair of server and process manager in servers.yaml."""
    return [(name, manager) for name in MATRIX for manager in holders(name)]


def holders(name):
    """Return the process managers that can run a server on this platform."""
    return [manager for manager in row(name)["process_managers"] if manager not in ELSEWHERE]


def once():
    """
    Return every server with one process manager, so that each process manager occurs.

    Which one follows from the row's place: a row at the end of servers.yaml, or of VARIANTS, leaves the others theirs.
    """
    variants = [name for name in MATRIX if name not in ROWS]
    places = [*enumerate(ROWS), *((-1 - number, name) for number, name in enumerate(variants))]
    return {name: holders(name)[place % len(holders(name))] for place, name in places}


def rest_of(manager):
    """Return the servers that a process manager can run and that have another one in `once`, each with that manager."""
    return {name: manager for name in servers(manager) if once()[name] != manager}


def chosen(request):
    """Return the parameters of each of the file's tests that this run has selected."""
    return [
        item.callspec.params
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec")
    ]


def chosen_servers(request, managers):
    """Return the servers that this run has selected tests of a file for, each with its process manager."""
    names = {params.get("server") for params in chosen(request)}
    return {name: manager for name, manager in managers.items() if name in names} or managers


def row(name):
    return ROWS[VARIANTS.get(name, {}).get("server", name)]


def honoured(name, **settings):
    """Return those of the settings that a server supports."""
    return {
        setting: value for setting, value in settings.items() if setting in row(name)["honours"] and setting in DEFAULTS
    }


def refused(name):
    """Return the settings that a server does not support."""
    return [setting for setting in NEUTRAL if setting not in row(name)["honours"] and setting in DEFAULTS]


def pillar_of(name, manager, interface="wsgi", **settings):
    """Return the pillar of an app under a server and a process manager."""
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
    """test/contract/agent.py on the machine, which does many things there at once."""

    def __init__(self, machine):
        self.machine = machine
        self.lock = threading.Lock()
        self.process = None

    def do(self, what, **arguments):
        """Return a Future of what the agent answers."""
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
    """A response; times are those of the machine's monotonic clock."""

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
    def json(self):
        """The JSON in which the app describes the request."""
        assert self.status == 200, self
        return json.loads(self.body)


class Site:
    """One server's app, requested through nginx from within the machine."""

    def __init__(self, fleet, name):
        self.fleet = fleet
        self.name = name
        self.row = row(name)
        self.host = f"{name}.example.com"
        self.user = f"wsgi-{name}"

    def sending(self, *requests, **options):
        """Return a Future of the responses to requests over one connection."""
        return self.fleet.agent.do("ask", host=self.host, requests=list(requests), **options)

    def ask(self, target="/", **request):
        """Return the response to one request; agent.py describes its keys."""
        return self.converse({"target": target, **request})[0]

    def converse(self, *requests):
        return [Answer(said) for said in self.sending(*requests).result()]

    def at_once(self, count, target):
        """Return the responses to equal requests sent at the same time."""
        sent = [self.sending({"target": target}) for _ in range(count)]
        return [Answer(each.result()[0]) for each in sent]

    def served_at_once(self, wanted, rounds=10):
        """Return what the app answered in the first round of 16 requests of which `wanted` were served at once, or in
        the best of all rounds: the kernel chooses the worker, and may prefer one for a while."""
        best = []
        for _ in range(rounds):
            seen = [answer.json for answer in self.at_once(16, "/?do=tell&seconds=0.3")]
            best = max(best, seen, key=at_once)
            if at_once(best) >= wanted:
                break
        return best

    def processes(self):
        """Return the app's processes, PID to resident MiB."""
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
        """Return `count` PIDs that answer, or as many as are found in some seconds: the kernel chooses the worker, and
        may prefer one for a while."""
        found = set()
        wait_for(lambda: found.update(self._answering()) or len(found) >= count, seconds)
        return found

    def _answering(self):
        return [answer.json["pid"] for answer in self.at_once(16, "/?do=tell&seconds=0.05") if answer.status == 200]


class Fleet:
    """One app for each of some servers; `managers` has the process manager of each."""

    def __init__(self, machine, managers, interface="wsgi"):
        self.machine = machine
        self.agent = Agent(machine)
        self.interface = interface
        self.managers = managers
        self.sites = {name: Site(self, name) for name in managers}

    def apply(self, mount="/", **settings):
        """Apply a mount and settings to all apps, to each those that its server supports. A server that fails raises
        nothing here, so that the others are tested."""
        self.settings = settings
        self.apps = {
            name: pillar_of(name, self.managers[name], self.interface, mount=mount, **honoured(name, **settings))
            for name in self.sites
        }
        self.machine.pillar({"apps": self.apps})
        self.run = self.machine.apply(ok=False)

    def site(self, name):
        """Return a site; CommandFailed if the last apply did not bring up its app."""
        for what in ("release", "live", "site"):
            state = self.run.states.get(f"{name}-{what}")
            if state is None or state["result"] is False:
                raise CommandFailed(state["comment"] if state else str(self.run))
        return self.sites[name]

    def each(self, experiment):
        """Run an experiment with every site at once, and return the Outcomes."""
        with concurrent.futures.ThreadPoolExecutor(len(self.sites)) as pool:
            return Outcomes({name: pool.submit(self._try, experiment, name) for name in self.sites})

    def _try(self, experiment, name):
        return experiment(self.site(name))

    def status(self):
        return self.machine.call("wsgi.status")

    @functools.cached_property
    def nginx(self):
        """The version of nginx as a tuple of int."""
        return tuple(map(int, re.search(r"nginx/([\d.]+)", self.machine.exec("nginx -v").stderr)[1].split(".")))


class Outcomes:
    """The results of an experiment with every site; `of` returns a site's result or raises its failure."""

    def __init__(self, futures):
        self.futures = futures

    def of(self, site):
        return self.futures[site.name].result()


def at_once(answers):
    """Return the greatest number of requests that were in progress at the same time."""
    return max((sum(one["began"] <= other["began"] < one["ended"] for one in answers) for other in answers), default=0)
