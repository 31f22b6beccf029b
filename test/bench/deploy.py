"""Measure a deploy: a change of one line of a Django app with more than 30 dependencies, and its rollback, compared to
the plain way on the same machine: git pull, pip install, supervisorctl restart. Prints a table in Markdown.

~/.cache/wsgi-formula/venv/bin/python test/bench/deploy.py [--runs 7] [--keep]

(The virtual environment is test/run's.) All kinds of run take turns on one machine, while clients send requests. Exits
with 1 when a goal is missed: a change is live within 1.5 × the app's health check plus a run that has nothing to do, a
rollback within 2 s plus the health check, and neither loses a request.
"""

import json
import statistics
import sys
from pathlib import Path

from machine import arguments, booted, where

PILLAR = {
    "apps": {
        "shop": {
            "server": "gunicorn",
            "process_manager": "supervisor",
            "source": "git+file:///srv/shop.git@main",
            "application": "shop:application",
            "requirements": "requirements.txt",
            "domains": ["shop.example.com"],
            "workers": 2,
            "health": {"path": "/healthz"},
        }
    }
}

# Loads what such an app loads; / answers its version, and a POST with its body.
APP = """
import celery
import requests
import sentry_sdk
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path

from version import VERSION

settings.configure(
    SECRET_KEY="of a benchmark",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF="shop",
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "shop"}},  # never connected to
    CACHES={"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": "redis://localhost"}},
    INSTALLED_APPS=[
        *("django.contrib." + name for name in ("admin", "auth", "contenttypes", "messages", "sessions", "staticfiles")),
        "corsheaders",
        "django_filters",
        "rest_framework",
    ],
    MIDDLEWARE=[
        "django.middleware.security.SecurityMiddleware",
        "whitenoise.middleware.WhiteNoiseMiddleware",
        "corsheaders.middleware.CorsMiddleware",
        "django.middleware.common.CommonMiddleware",
    ],
)
application = get_wsgi_application()
tasks = celery.Celery("shop", broker="redis://localhost")


def index(request):
    return HttpResponse(request.body or VERSION, content_type="text/plain")


urlpatterns = [path("", index), path("healthz", lambda request: HttpResponse("ok"))]
"""

PLAIN = {
    "/etc/supervisor/conf.d/plain.conf": """[program:plain]
command=/srv/plain/.venv/bin/gunicorn --workers 2 --bind 127.0.0.1:8001 shop:application
directory=/srv/plain
user=www-data
""",
    "/etc/nginx/conf.d/plain.conf": """server {
    listen 80;
    server_name plain.example.com;
    location / {
        proxy_pass http://127.0.0.1:8001;
        proxy_set_header Host $host;
    }
}
""",
}
PLAIN_DEPLOY = (
    "cd /srv/plain && git pull -q && .venv/bin/pip install -q -r requirements.txt && supervisorctl restart plain"
)

# In the machine, so that Docker's own time is none of it.
TAKE_TURNS = '''
import configparser, contextlib, http.client, json, os, pathlib, pwd, shlex, socket, subprocess, sys, tempfile, time

RUNS, PLAIN_DEPLOY = int(sys.argv[1]), sys.argv[2]
SHOP, PLAIN = "shop.example.com", "plain.example.com"
PATIENCE = 120  # seconds


class UnixConnection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.host)


def answer(connection, host, path="/"):
    """Return status and body, or None if there is no response."""
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", path, headers={"Host": host, "Connection": "close"})
        found = connection.getresponse()
        return found.status, found.read().decode()


def seconds_until(begun, condition):
    while not condition():
        assert time.monotonic() < begun + PATIENCE, "this never came to be"
        time.sleep(0.02)
    return time.monotonic() - begun


def salt(*words):
    return ["salt-call", "--retcode-passthrough", "--out=json", *words]


def apply():
    return json.loads(subprocess.check_output(salt("state.apply", "wsgi"), timeout=PATIENCE))["local"].values()


def empty():
    begun = time.monotonic()
    states = apply()
    taken = time.monotonic() - begun
    assert not any(state["changes"] for state in states), states
    return taken


def health():
    """Start the live generation's server once more, as its process manager does."""
    id = os.path.basename(os.readlink("/var/lib/wsgi/live/shop"))
    program = configparser.ConfigParser(interpolation=None)
    program.read(f"/etc/supervisor/conf.d/wsgi-shop.{id}.conf")
    section = program[program.sections()[0]]
    user = pwd.getpwnam(section["user"])
    with tempfile.TemporaryDirectory(dir="/run") as folder:
        os.chown(folder, user.pw_uid, user.pw_gid)
        path = f"{folder}/http.sock"
        command = [*shlex.split(section["command"]), "--bind", f"unix:{path}"]
        who = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        begun = time.monotonic()
        server = subprocess.Popen(command, **who, cwd=section["directory"], stderr=subprocess.DEVNULL)
        try:
            return seconds_until(begun, lambda: answer(UnixConnection(path, timeout=10), SHOP, "/healthz") == (200, "ok"))
        finally:
            server.terminate()
            server.wait(PATIENCE)


@contextlib.contextmanager
def load(host):
    with tempfile.TemporaryDirectory() as folder:
        files = {"stop": f"{folder}/stop", "report": f"{folder}/report"}
        options = {"host": host, "clients": 2, "mode": "keepalive-post,close-get", "pause": 0.05, "seconds": 300, **files}
        flags = [f"--{name}={value}" for name, value in options.items()]
        clients = subprocess.Popen(["python3", "/srv/formula/test/load.py", *flags], stdout=subprocess.PIPE, text=True)
        found = {}
        try:
            assert clients.stdout.readline() == "sending\\n"
            yield found
        finally:
            pathlib.Path(files["stop"]).touch()
            clients.wait(PATIENCE)
        found.update(json.loads(pathlib.Path(files["report"]).read_text()))


def under_load(command, host, version):
    """Return the seconds to the first response of a version and to the end of the command, and the requests and losses."""
    with load(host) as report, tempfile.TemporaryFile("w+") as output:
        begun = time.monotonic()
        process = subprocess.Popen(command, stdout=output, stderr=output)
        live = ended = None
        while live is None or ended is None:
            if live is None and answer(http.client.HTTPConnection("127.0.0.1", timeout=10), host) == (200, version):
                live = time.monotonic() - begun
            if ended is None and process.poll() is not None:
                ended = time.monotonic() - begun
                output.seek(0)
                assert process.returncode == 0, output.read()
            assert time.monotonic() < begun + PATIENCE, f"{command}: {version} is not live"
            time.sleep(0.02)
    return {"live": live, "end": ended, "requests": report["requests"], "lost": report["lost"]}


def commit(version):
    pathlib.Path("/srv/work/version.py").write_text(f"VERSION = {version!r}\\n")
    subprocess.run(f"cd /srv/work && git commit -qam {version} && git push -q", shell=True, check=True)


turns = []
for run in range(RUNS + 1):
    apply()  # forward again, after a rollback
    turn = {"empty": empty(), "health": health()}
    old, new = f"v{run}", f"v{run + 1}"
    commit(new)
    turn["change"] = under_load(salt("state.apply", "wsgi"), SHOP, new)
    turn["rollback"] = under_load(salt("wsgi.rollback", "shop"), SHOP, old)
    turn["plain"] = under_load(["sh", "-c", PLAIN_DEPLOY], PLAIN, new)
    turns.append(turn)
print(json.dumps(turns[1:]))  # the first warms up
'''

KINDS = {
    "change": "change, `state.apply wsgi`",
    "rollback": "rollback, `wsgi.rollback`",
    "plain": "change, the plain way",
}
HEAD = "| what | seconds | to plain | goal | | lost |\n| --- | --- | --- | --- | --- | --- |"


def prepare(machine):
    """Serve the app at its version v0, by the formula and in the plain way."""
    requirements = Path(__file__).with_name("django-requirements.txt").read_text()
    machine.exec("git init -q --bare -b main /srv/shop.git && git init -q -b main /srv/work")
    for name, text in {"shop.py": APP, "version.py": "VERSION = 'v0'\n", "requirements.txt": requirements}.items():
        machine.put(f"/srv/work/{name}", text)
    machine.exec(
        "cd /srv/work && git config user.name bench && git config user.email bench@example.com && git add . && "
        "git commit -qm v0 && git remote add origin /srv/shop.git && git push -qu origin main"
    )
    machine.pillar(PILLAR)
    machine.apply()
    machine.exec("git clone -q /srv/shop.git /srv/plain && python3 -m venv /srv/plain/.venv")
    for path, text in PLAIN.items():
        machine.put(path, text)
    machine.exec("supervisorctl update")
    machine.exec(f"{PLAIN_DEPLOY} && nginx -s reload")


def table(turns):
    """Return the lines of the table, and whether a goal is missed."""
    empty, health = (statistics.median(turn[kind] for turn in turns) for kind in ("empty", "health"))
    goals = {"change": 1.5 * health + empty, "rollback": 2 + health}
    plain = statistics.median(turn["plain"]["live"] for turn in turns)
    lines = [line("a run that has nothing to do", empty), line("the health check", health)]
    missed = False
    for kind, command in KINDS.items():
        live, end = (statistics.median(turn[kind][moment] for turn in turns) for moment in ("live", "end"))
        requests, lost = (sum(turn[kind][count] for turn in turns) for count in ("requests", "lost"))
        goal = goals.get(kind)
        short = goal is not None and (live > goal or lost > 0)
        missed = missed or short
        bound = f"{goal:.2f} s, none lost" if goal else ""
        counts = f"{lost} of {requests}"
        lines.append(line(f"{command}: live", live, f"{live / plain:.2f}", bound, "missed" if short else "", counts))
        lines.append(line(f"{command}: its end", end, f"{end / plain:.2f}"))
    return lines, missed


def line(what, seconds, *cells):
    return f"| {' | '.join([what, f'{seconds:.2f} s', *cells, *[''] * (4 - len(cells))])} |"


def main():
    options = arguments(__doc__, runs=7).parse_args()
    with booted(options) as machine:
        prepare(machine)
        print(where(machine), "", HEAD, sep="\n", flush=True)
        report = machine.exec(["python3", "-c", TAKE_TURNS, options.runs, PLAIN_DEPLOY])
        lines, missed = table(json.loads(report.stdout))
        print(*lines, sep="\n")
        return missed


if __name__ == "__main__":
    sys.exit(main())
