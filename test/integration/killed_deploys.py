"""
Kills deploys of the app `ledger` on the machine, each at another operation on a file, and examines the machine after each.

killed_deploys.py [--back]    deploys v1 and v2 in turn; with --back always v2 over v1, which rollback_on_failure undoes

Salt is loaded once, and each run is a fork of it. Prints a JSON list with a dict of findings for each killed run.
"""

import http.client
import json
import os
import signal
import subprocess
import sys
import traceback

import salt.client
from salt.exceptions import CommandExecutionError

OPERATIONS = ("rename", "symlink", "unlink", "mkdir", "rmdir", "fsync")
LIVE = "/var/lib/wsgi/live/ledger"
RETIRED = "/var/lib/wsgi/home/ledger/retired"
FOLDERS = ("/etc", "/run/wsgi", "/srv/wsgi", "/var/lib/wsgi", "/var/log/wsgi")


def forked(work):
    """Run `work` in a process of its own, and return what it returned or what it wrote before it was killed."""
    out, to = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(out)
        try:
            os.write(to, json.dumps({"returned": work(to)}, default=str).encode() + b"\n")
        finally:
            if sys.exc_info()[0]:
                traceback.print_exc()
            os._exit(0)
    os.close(to)
    with open(out) as said:
        lines = [json.loads(line) for line in said]
    os.waitpid(pid, 0)
    return lines[-1] if lines else {}


def call(function, *arguments, **named):
    caller.sminion.functions.pack["__context__"].clear()
    return caller.cmd(function, *arguments, **named)


def deploy(version, number=None):
    """
    Deploy a version, and count the operations on files that come after its health check.

    number : int
        The operation at which the run is killed.

    Returns a dict with the list `operations`, or with `killed`, the last operation.
    """

    def work(to):
        ready, operations = Switch.ready, []

        def counted(name):
            real = getattr(os, name)

            def operation(*arguments, **named):
                where = next((each for each in arguments[::-1] if isinstance(each, str)), "")
                operations.append(f"{name} {where}")
                if len(operations) == number:
                    os.write(to, json.dumps({"killed": operations[-1]}).encode() + b"\n")
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **named)

            return operation

        def then(*arguments):
            ready(*arguments)
            for name in OPERATIONS:
                setattr(os, name, counted(name))

        Switch.ready = then
        failed = ""
        try:
            call("wsgi.deploy", "ledger", source=f"/srv/{version}")
        except CommandExecutionError as error:
            failed = str(error)
        return {"operations": operations, "failed": failed}

    found = forked(work)
    return found.get("returned", found)


def next_runs(_):
    """Return what the functions report of the app before the next run, what two runs do, and what is reported then."""
    found = {"override": override(), "history": history()}
    runs = [next(iter(call("state.single", "wsgi.generation_live", name="ledger").values())) for _ in range(2)]
    found["runs"] = [{key: run[key] for key in ("result", "changes", "comment")} for run in runs]
    return {**found, "override_then": override(), "history_then": history()}


def override():
    return call("wsgi.status", "ledger")["ledger"].get("override", "")


def history():
    """Return the generations of the last entries, the newest first."""
    return [each["generation"] for each in call("wsgi.history", "ledger", limit=3)]


def live():
    return os.path.basename(os.readlink(LIVE))


def served():
    connection = http.client.HTTPConnection("127.0.0.1", timeout=20)
    connection.request("GET", "/")
    return connection.getresponse().read().decode()


def retired():
    with open(RETIRED) as file:
        return file.read().split()


def printed(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout.split()


def round_(version, number):
    """Kill one run, let two more follow, and return the findings."""
    retired_before = len(retired())
    found = {"before": live(), "served_before": served(), "version": version, **deploy(version, number)}
    found.update({"live": live(), "served": served()})
    looked = forked(next_runs)
    found.update(looked.get("returned", looked))
    found.update({"live_then": live(), "served_then": served(), "retired": retired()[retired_before:]})
    timers = ["list-units", "--type=timer", "--state=active", "--plain", "--no-legend", "wsgi-ledger.*"]
    found["timers"] = [word.split(".")[1] for word in printed("systemctl", *timers) if word.endswith(".timer")]
    found["left"] = printed("find", *FOLDERS, "-name", ".wsgi-staged-*", "-o", "-path", f"{LIVE}?*")
    found["generations"] = [
        each for each in os.listdir("/etc/wsgi/ledger") if os.path.isdir(f"/etc/wsgi/ledger/{each}")
    ]
    return found


def moments(operations):
    """Return the numbers of the operations to kill a deploy at: renames, links, and some that follow the live link."""
    links = [number for number, each in enumerate(operations, 1) if each == f"rename {LIVE}"]
    after = links[-1] - 3 if BACK else 0
    names = ("rename", "symlink", "unlink /etc/systemd/system/timers.target", "unlink generation.json")
    chosen = [number for number, each in enumerate(operations, 1) if each.startswith(names) and number >= after]
    return sorted({*chosen, links[-1] + 1, links[-1] + 4})


BACK = "--back" in sys.argv
caller = salt.client.Caller("/etc/salt/minion")
call("wsgi.status", "ledger")  # loads what all forks have

from wsgi_formula.changes.switch import Switch
from wsgi_formula.served import Served

# To ask Salt for the formula's templates would be most of what each run costs.
served_by_salt = Served.file
Served.file = lambda served, url: (
    next(filter(os.path.isfile, [f"/srv/formula/{url[len('salt://') :]}"]), None) or served_by_salt(served, url)
)

deploy("v1")
rounds = []
for number in moments(deploy("v2")["operations"]):
    if BACK and served() != "v1":
        deploy("v1")
    rounds.append(round_("v1" if served() == "v2" else "v2", number))
json.dump(rounds, sys.stdout)
