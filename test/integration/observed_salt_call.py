"""Runs salt-call under observation, with Salt's own Python: observed_salt_call.py REPORT ARGUMENTS…

Writes to REPORT, as JSON, the commands that it `started`, the files that it `opened`, the execution `modules` that it
loaded, and the text of each template that it `compiled`, as often as it did.
"""

import json
import os
import sys

import jinja2
import salt.scripts

STARTS = ("subprocess.Popen", "os.exec", "os.fork", "os.forkpty", "os.system")
MODULES = "salt.loaded.int.module."

started = []
opened = []
compiled = []


def hook(event, arguments):
    if event in STARTS:
        started.append(f"{event} {arguments[1] if len(arguments) > 1 else arguments}")
    elif event == "open":
        path = arguments[0]
        opened.append(os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else str(path))


def observed_compile(self, source, *args, _compile=jinja2.Environment.compile, **kwargs):
    compiled.append(str(source))
    return _compile(self, source, *args, **kwargs)


sys.addaudithook(hook)
jinja2.Environment.compile = observed_compile
report = sys.argv[1]
sys.argv[:2] = ["salt-call"]
try:
    salt.scripts.salt_call()
finally:
    modules = [name[len(MODULES) :] for name in sys.modules if name.startswith(MODULES)]
    with open(report, "w") as file:
        json.dump({"started": started, "opened": opened, "modules": modules, "compiled": compiled}, file)
