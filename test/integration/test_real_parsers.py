"""Values that pass validation are accepted by the programs that read them: nginx, supervisor, systemd, circus, uWSGI, sh."""

import contextlib
import json
import os
import pwd
from unittest import mock

import pytest
import values
from container import ROOT
from hypothesis import HealthCheck, Phase, given, settings
from pillars import app
from unit.conftest import host_of
from wsgi_formula.app.desired import desired_release
from wsgi_formula.app.release import Release

# Found since `values` was imported.
from wsgi_formula.edge.nginx import Nginx
from wsgi_formula.run.generation import Generation
from wsgi_formula.run.managers.base import WITH_ENVIRONMENT
from wsgi_formula.run.prepare import generation_files
from wsgi_formula.run.record import new_record

FOLDER = "/tmp/values"
LONG = "ec2-203-0-113-255.eu-central-1.compute.amazonaws.com"
# Drawn names of a site may be equal, and drawn networks may overlap.
HARMLESS = r"conflicting server name|could not build optimal|low address bits|duplicate network|duplicate MIME"
NOBODY = pwd.struct_passwd(("www-data", "x", 33, 33, "", "/", "/bin/false"))


def drawn(strategy, count):
    """Return some examples of a strategy, the same in each run."""
    found = []

    @settings(
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=count,
        phases=[Phase.generate],
        suppress_health_check=[*HealthCheck],
    )
    @given(strategy)
    def draw(example):
        found.append(example)

    draw()
    return found


def on_port(number, said):
    """Return an app on ports of its own, since two may have drawn the same domain."""
    tls = {"tls": {**said["tls"], "listen": 9100 + number}} if "tls" in said else {}
    return {**said, "listen": 9000 + number, **tls}


def hosts(apps, size, cachedir):
    """Yield hosts with `size` of the apps each, without the apps that validation refuses."""
    taken = 0
    for start in range(0, len(apps), size):
        named = {f"a{start + number}": on_port(number, each) for number, each in enumerate(apps[start : start + size])}
        host = host_of({"apps": named, "nginx": {"metrics": True}}, opts={"cachedir": str(cachedir)})
        taken += len(host.settings.apps)
        yield host
    assert taken > 0.7 * len(apps), f"only {taken} of {len(apps)} apps were taken"


def edge_cases(host, folder):
    """Return nginx's files of a host, path to text, and the cases for real_parsers.py."""
    host.family["nginx"].update(
        conf_dir=f"{folder}/conf.d", own_dir=f"{folder}/wsgi", log_dir=f"{folder}/log", cache_dir=f"{folder}/cache"
    )
    files = host.once(Nginx).needed_changes(*host.settings.apps)
    files = {path: getattr(text, "text", text) for path, text in files.items() if text}
    files[f"{folder}/log/.there"] = ""
    files[f"{folder}/cache/.there"] = ""
    files[f"{folder}/nginx.conf"] = (
        f"pid {folder}/pid;\nevents {{ }}\nhttp {{\n    include {folder}/conf.d/*.conf;\n}}\n"
    )
    return files, [{"kind": "nginx", "path": f"{folder}/nginx.conf", "says": HARMLESS}]


def process_cases(host, name, folder):
    """Return the files of an app's generation and their cases."""
    app = host.settings.apps[name]
    release = desired_release(host, name)
    generation = Generation(host, name, "0123456789", new_record(app, release, "2.0.21"))
    texts = generation_files(generation, app)
    expected = {program.unit: program for program in generation.programs}
    files, cases = {}, []
    for path, text in texts.items():
        base = os.path.basename(path)
        place = f"{folder}/{base}"
        case = {"path": place, "words": None, "says": None}
        if base == "env":
            variables = {variable: str(value) for variable, value in app["env"].items()}
            case = {**case, "kind": "environment", "says": variables}
        elif path.startswith("/etc/systemd"):
            job = next((job for job in generation.jobs if base == job.service), None)
            program = expected.get(base[len("wsgi-") : -len(".service")])
            command = job.command if job else program.command if program else None
            words = program.wrapped(command) if program else [WITH_ENVIRONMENT, generation.config_dir, *(command or [])]
            case = {**case, "kind": "systemd", "words": command and words}
        elif path.startswith("/etc/supervisor"):
            program = expected[base[len("wsgi-") : -len(".conf")]]
            case = {**case, "kind": "supervisor", "words": program.wrapped(program.command)}
        elif path.startswith("/etc/wsgi/circus"):
            program = expected[base[: -len(".ini")]]
            words = program.wrapped(program.command, program.manager._logger(program))
            case = {**case, "kind": "circus", "words": words}
        elif base == "uwsgi.ini":
            case = {**case, "kind": "uwsgi", "says": list(plain_lines(app["server_options"].get("uwsgi", {})))}
        elif base == "settings.json":
            options = app["server_options"].get(app["server"], {})
            assert json.loads(text)["server_options"] == options, path
            continue
        else:
            continue
        files[place] = text
        cases.append(case)
    return files, cases


def plain_lines(options):
    """Yield the lines of those uWSGI options that have no placeholders."""
    for option, value in options.items():
        for item in value if isinstance(value, list) else [value]:
            text = str(item).lower() if isinstance(item, bool) else str(item)
            if not set(text) & set("%$@") and text.strip() == text and text:
                yield f"{option} = {text}"


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """The files of all drawn apps, path to text, and their cases for real_parsers.py."""
    cache = tmp_path_factory.mktemp("cache")
    files, cases = {}, []

    def add(found):
        files.update(found[0])
        cases.extend(found[1])

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(pwd, "getpwnam", lambda name: NOBODY))
        stack.enter_context(mock.patch.object(Release, "record", {"environment": "abcdef0123"}))
        for number, host in enumerate(hosts(drawn(values.edges(), 150), 6, cache)):
            add(edge_cases(host, f"{FOLDER}/edge/{number}"))
        for number, host in enumerate(hosts(drawn(values.processes(), 100), 10, cache)):
            for name in host.settings.apps:
                add(process_cases(host, name, f"{FOLDER}/processes/{number}/{name}"))
    return files, cases


@pytest.fixture(scope="module")
def wrong(machine, rendered, tmp_path_factory):
    """The files that the programs on the machine did not accept: a list of [path, error]."""
    files, cases = rendered
    files = {**files, f"{FOLDER}/cases.json": json.dumps(cases)}
    copied = tmp_path_factory.mktemp("values")
    for path, text in files.items():
        place = copied / os.path.relpath(path, FOLDER)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    machine.copy(copied, FOLDER)
    machine.exec("install -D -m 755 /srv/formula/wsgi/common/with-environment /usr/local/lib/wsgi/with-environment")
    machine.exec(
        "/opt/salt/bin/python -m pip install -q --target /tmp/circus circus==0.19.0 psutil==7.1.0 pyzmq==27.1.0 tornado==6.5.10"
    )
    machine.put("/tmp/real_parsers.py", (ROOT / "test/integration/real_parsers.py").read_text())
    return json.loads(machine.exec(f"PYTHONPATH=/tmp/circus python3 /tmp/real_parsers.py {FOLDER}").stdout)


@pytest.mark.parametrize("kind", ["nginx", "supervisor", "circus", "uwsgi", "systemd", "environment"])
def test_every_valid_value_is_read_as_it_was_meant_by_the_program_that_reads_it(rendered, wrong, kind):
    paths = {os.path.dirname(case["path"]) for case in rendered[1] if case["kind"] == kind}
    paths |= {case["path"] for case in rendered[1] if case["kind"] == kind}
    assert len(paths) > 20
    assert [each for each in wrong if each[0] in paths] == []


def test_long_host_name_is_served_beside_others(machine):
    machine.exec("rm -rf /run/systemd/system/wsgi-*; systemctl daemon-reload")
    longest = values.domain_of(253)
    machine.pillar(
        {
            "apps": {
                "long": app("uwsgi", domains=["bravo.test", LONG, longest]),
                "star": app("uwsgi", domains=["*.compute.amazonaws.com"]),
            }
        }
    )
    machine.apply()
    assert [machine.get("/", host=host).status for host in (LONG, longest, "a.compute.amazonaws.com")] == [200] * 3
    assert not machine.apply().changed
    # nginx accepts this directive only once.
    machine.exec("echo 'server_names_hash_bucket_size 1024;' > /etc/nginx/conf.d/hand.conf")
    machine.apply()
    machine.exec("nginx -t")
    assert machine.get("/", host=LONG).status == 200
