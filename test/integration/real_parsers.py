"""
real_parsers.py FOLDER: check that the programs that read rendered files accept and understand them.

FOLDER/cases.json is a list of {"kind", "path", "words", "says"}; prints a JSON list of [path, error].
Runs on the machine, with the standard library and the programs that are installed there.
"""

import json
import os
import re
import shlex
import subprocess
import sys

WITH_ENVIRONMENT = "/usr/local/lib/wsgi/with-environment"
# What a file says of itself that has nothing to do with values.
EXPECTED = re.compile(
    r"^\s*$|Unknown user|is not executable: No such file|transaction|Support for option", re.IGNORECASE
)


def run(*command, **options):
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False, **options
    )
    return done.returncode, done.stdout + done.stderr


def nginx(cases):
    made = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=x"]
    run("openssl", "req", *made, "-out", "/tmp/values/made.crt", "-keyout", "/tmp/values/made.key")
    for case in cases:
        folder = os.path.dirname(case["path"])
        _, sites = run("grep", "-rhoE", f"{folder}/wsgi/private/[^; ]+[.](crt|key)", f"{folder}/wsgi/sites")
        os.makedirs(f"{folder}/wsgi/private", exist_ok=True)
        for path in {*sites.split()}:
            os.symlink(f"/tmp/values/made{path[-4:]}", path)
        code, said = run("nginx", "-t", "-c", case["path"])
        warnings = [line for line in said.splitlines() if "[warn]" in line and not re.search(case["says"], line)]
        if code or warnings:
            yield case["path"], said[-600:]


def supervisor(cases):
    sys.path.append("/usr/lib/python3/dist-packages")
    from supervisor.options import ServerOptions

    for case in cases:
        main = f"{case['path']}.main"
        with open(case["path"], encoding="utf-8") as file:
            for log in re.findall(r"^stdout_logfile=(.*)/", file.read(), re.MULTILINE):
                os.makedirs(log, exist_ok=True)
        with open(main, "w") as file:
            file.write(f"[supervisord]\nlogfile=/tmp/s.log\nchildlogdir=/tmp\n[include]\nfiles = {case['path']}\n")
        options = ServerOptions()
        try:
            options.realize(["-c", main])
            words = shlex.split(options.process_group_configs[0].process_configs[0].command)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it raises
            yield case["path"], repr(error)[-600:]
            continue
        if words != case["words"]:
            yield case["path"], f"{words!r} instead of {case['words']!r}"[:600]


def circus(cases):
    sys.path.append("/tmp/circus")
    from circus.config import get_config
    from circus.util import replace_gnu_args  # what circus does to `args` before it splits them

    for case in cases:
        try:
            (watcher,) = get_config(case["path"])["watchers"]
            words = shlex.split(replace_gnu_args(watcher["args"], wid=1, shell=False, circus={}, env={}))
        except Exception as error:  # noqa: BLE001 - whatever it raises
            yield case["path"], repr(error)[-600:]
            continue
        if words != case["words"]:
            yield case["path"], f"{words!r} instead of {case['words']!r}"[:600]


def uwsgi(cases):
    for case in cases:
        with open(case["path"], encoding="utf-8") as file:
            text = re.sub(r"^(chdir|logto|touch-logreopen) = .*\n", "", file.read(), flags=re.MULTILINE)
        with open(f"{case['path']}.shown", "w", encoding="utf-8") as file:
            file.write(text)
        # It ends at the user that isn't there, when it has read and shown all.
        _, said = run("uwsgi", "--ini", f"{case['path']}.shown", "--show-config", "--uid", "nobody-at-all", timeout=20)
        shown, end, _ = said.partition(";end of configuration")
        missing = [line for line in case["says"] if line not in shown.splitlines()]
        if not end or missing:
            yield case["path"], f"{missing!r}\n{said[-600:]}"


def systemd(cases):
    paths = [case["path"] for case in cases]
    _, said = run("systemd-analyze", "verify", "--man=no", *paths)
    wrong = [line for line in said.splitlines() if not EXPECTED.search(line)]
    if wrong:
        yield os.path.dirname(paths[0]), "\n".join(wrong)[:2000]
    for path in paths:
        os.symlink(path, f"/run/systemd/system/{os.path.basename(path)}")
    run("systemctl", "daemon-reload")
    services = [case for case in cases if case["words"]]
    _, said = run("systemctl", "show", "--property=ExecStart", *(os.path.basename(case["path"]) for case in services))
    shown = re.findall(r"argv\[\]=(.*?) ; ignore_errors", said, re.DOTALL)
    for case, words in zip(services, shown):
        # It makes one of two only when it runs them.
        if words != " ".join(case["words"]).replace("$", "$$"):
            yield case["path"], f"{words!r} instead of {case['words']!r}"[:600]
    if len(shown) != len(services):
        yield os.path.dirname(paths[0]), f"systemd knows {len(shown)} of {len(services)} services"


def environment(cases):
    for case in cases:
        code, said = run("sh", WITH_ENVIRONMENT, os.path.dirname(case["path"]), "/usr/bin/env", "-0", encoding="utf-8")
        found = dict(line.split("=", 1) for line in said.split("\0") if "=" in line)
        wrong = [name for name, value in case["says"].items() if found.get(name) != value]
        if code or wrong:
            yield case["path"], f"{wrong!r} {said[-300:] if code else ''}"


def main(folder):
    with open(f"{folder}/cases.json") as file:
        cases = json.load(file)
    asked = {"nginx": nginx, "supervisor": supervisor, "circus": circus, "uwsgi": uwsgi, "systemd": systemd}
    asked["environment"] = environment
    wrong = []
    for kind, ask in asked.items():
        own = [case for case in cases if case["kind"] == kind]
        wrong += ask(own) if own else []
    print(json.dumps(wrong))


if __name__ == "__main__":
    main(sys.argv[1])
