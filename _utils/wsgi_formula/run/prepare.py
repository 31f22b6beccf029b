"""
New generations: which one an app's settings ask for, whether the live one is that, and all files that one is made of.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import shlex
import subprocess
from collections.abc import Mapping
from typing import Any

from .. import files
from ..app.release import Release
from ..build.hooks import hook_variables
from ..errors import WsgiError
from ..host import Host
from ..paths import ETC, LOG, PATH, RUN, TMPFILES
from ..pillar.app import PORTABLE_SETTINGS, App
from ..pillar.edge import METRICS_PORT
from ..pillar.schema import PLACEHOLDER
from ..pillar.servers import long_options
from ..redact import tail
from .generation import Generation
from .programs import program_templates
from .record import LAYOUT, fingerprint, health_check_of, new_record

SPAWN = "/usr/local/lib/wsgi/spawn"

# Seconds, beyond a request's time-out, in which a worker must accept a connection that waits.
ACCEPT_SLACK = 15

# The keys of a server's row that decide its process.
DECIDING = ("protocol", "spawned", "keepalive", "notify", "config", "command", "stats")

# The keys of a record that tell what a generation does, in every version of the formula.
DECIDED = (
    "server",
    "process_manager",
    "protocol",
    "user",
    "release",
    "environment",
    "spawned",
    "markers",
    "settings",
    "env",
)


def desired_id(host: Host, app: App, release: Release) -> str:
    """
    Return the id of the generation that an app's settings ask for, which is the same on every host.

    It is a hash of all that decides the process: the release, the settings, and the files that it is made from.

    app : App
        Its settings, as ``desired_app`` gives them.
    """
    sources = [*_sources(app), *program_templates(app)]
    return files.digest(
        LAYOUT,
        release.id,
        app.process_settings,
        {key: value for key, value in app.row.items() if key in DECIDING},
        _guarded_settings(app),
        [host.file_text(source) for source in sources],
    )


def adopt(current: Generation, id: str, app: App, release: Release) -> None:
    """
    Keep a live generation that a formula before version 1.0 made, where it does what is desired.

    Only the text of the programs has changed since, not what they do, so that another id is no reason to replace it.

    id : str
        From ``desired_id``.
    app : App
        The app's settings, as ``desired_app`` gives them.
    """
    record = current.record
    if "desired_id" in record or record.get("layout") != LAYOUT:
        return
    desired = new_record(app, release, record.get("version"))
    if all(record.get(key) == desired[key] for key in DECIDED):
        record["desired_id"] = id
        if not current.host.opts.get("test"):
            current.write_record()


def replacement_reason(current: Generation | None, id: str) -> str | None:
    """
    Return why another generation must replace the live one, as a clause for a state's comment; None where none must.

    id : str
        From ``desired_id``.
    """
    if current is None:
        return "no generation was live"
    if current.desired_id != id:
        return "its release, its settings, or the formula's files for its server have changed"
    return current.drift_reason()


def prepare_generation(host: Host, name: str, app: App, release: Release, id: str) -> Generation:
    """
    Write all files of a new generation. Nothing of it runs yet.

    name : str
        The app.
    app : App
        Its settings, as ``desired_app`` gives them.
    release : Release
        Built already.
    id : str
        From ``desired_id``; the generation has a count behind it where one of that id is there already.
    """
    record = {**new_record(app, release, _server_version(app, release)), "desired_id": id}
    new = Generation(host, name, _unused_id(name, id), record)
    uid, gid = new.uid, new.gid
    texts = generation_files(new, app)
    files.ensure_dir(f"{ETC}/{name}", 0o755)
    files.ensure_dir(new.config_dir, 0o750, 0, gid)
    # The record comes first, so that the next run can retire whatever a killed run leaves.
    new.write_record()
    for path, text in texts.items():
        is_own = path.startswith(new.config_dir)
        files.write(path, text, 0o640 if is_own else 0o644, 0, gid if is_own else 0)
    new.record["files"] = {path: fingerprint(path) for path in texts}
    new.write_record()
    files.ensure_dir(LOG, 0o755)
    files.ensure_dir(f"{LOG}/{name}", 0o750, 0, gid)
    # The folder is root's, so that the app can't replace a log by a link; the logs are the app's.
    for log in {part.log for part in new.parts}:
        if not os.path.exists(log):
            files.write(log, "", 0o640)
        os.chown(log, uid, gid)
        new.log_offsets[log] = os.path.getsize(log)
    for path, mode, owner, group in _runtime_folders(new):
        files.ensure_dir(path, mode, owner, group)
    for path in (*new.markers, new.reopen_file):
        files.write(path, "", 0o644)
    return new


def _unused_id(name: str, id: str) -> str:
    """Return an id, with a count where a generation of that id is there already."""
    found, count = id, 1
    while os.path.lexists(f"{ETC}/{name}/{found}"):
        count += 1
        found = f"{id}-{count}"
    return found


def _server_version(app: App, release: Release) -> str | None:
    """
    Return the server's version: as pip has installed it, or as the distribution's server prints it.

    Raises ``WsgiError`` where that server can't be run.
    """
    row = app.row
    if app["install"] == "environment":
        return release.environment.installed_version(row["package"]) if row["package"] else None
    command, account = row["show_version"], pwd.getpwnam(app["user"])
    result = subprocess.run(
        command,
        user=account.pw_uid,
        group=account.pw_gid,
        extra_groups=[],
        cwd="/",
        env={"PATH": PATH, "HOME": "/nonexistent"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    version = re.search(r"\d[\w.+-]*", result.stdout)
    if result.returncode or not version:
        raise WsgiError(f"{' '.join(command)} failed:\n{tail(result.stdout)}")
    return version.group()


def generation_files(generation: Generation, app: App) -> dict[str, str]:
    """
    Return the files that a generation is made of, except for its record: a dict of paths to texts.

    app : App
        The app's settings, as ``desired_app`` gives them.

    A server's template knows ``app``; ``generation``, its ``Generation``; ``options``, the app's ``server_options`` for
    that server; and ``guards``, the names of the settings that the guard keeps for it.
    """
    host = generation.host
    generation.server_program.command = server_command(generation, app)
    values = {
        "app": app,
        "generation": generation,
        "options": app.own_options,
        "guards": _guarded_settings(app),
    }
    sources = _sources(app)
    settings = {"settings.json": json.dumps(program_settings(generation, app), indent=1) + "\n"} if sources else {}
    made = {
        file: host.render(source, **values) if source.endswith(".jinja") else host.file_text(source)
        for source, file in sources.items()
    }
    return {
        f"{generation.config_dir}/env": environment_text(generation, app),
        **{f"{generation.config_dir}/{file}": text for file, text in {**settings, **made}.items()},
        f"{TMPFILES}/wsgi-{generation.unit}.conf": _tmpfiles(generation),
        **{path: text for part in generation.parts for path, text in part.files().items()},
    }


def _sources(app: App) -> dict[str, str]:
    """Return what a generation's own files are made from, source to file; one that is no template is copied."""
    if not app["application"]:
        return {}
    config = app.row["config"]
    own = config and f"{app['server']}/{config}"
    return {
        "common/wsgi_worker.py": "wsgi_worker.py",
        "common/wsgi_application.py": "wsgi_application.py",
        **({own if own.endswith(".py") else f"{own}.jinja": config} if own else {}),
    }


def program_settings(generation: Generation, app: App) -> dict[str, Any]:
    """
    Return what the programs of a generation read from ``settings.json``, as ``wsgi/common/wsgi_worker.py`` explains it.

    app : App
        The app's settings, as ``desired_app`` gives them.
    """
    host = generation.host
    options = app.own_options
    return {
        "app": generation.name,
        "unit": generation.unit,
        "server": app["server"],
        "interface": app["interface"],
        "application": app["application"],
        "code": generation.code,
        "environment": generation.environment.path,
        "socket": None if app.single_process else generation.server_sockets[0],
        "server_dir": generation.server_dir,
        "runtime_dir": generation.runtime_dir,
        "live_link": generation.live_link,
        **{setting: app[setting] for setting in PORTABLE_SETTINGS},
        "guarded": [setting for setting in _guarded_settings(app) if app[setting]],
        "statsd": f"127.0.0.1:{METRICS_PORT}" if app["metrics"] else None,
        "server_options": options,
        "option_words": long_options(options),
        "distribution": host.family.get(app["server"], {}),
    }


def server_command(generation: Generation, app: App) -> list[str]:
    """
    Return the command that starts a generation's server, a list of words.

    app : App
        The app's settings, as ``desired_app`` gives them.
    """
    row, spawned = app.row, app.single_process
    values = {
        "bin": "/usr/bin" if app["install"] == "distribution" else f"{generation.environment.path}/bin",
        "config": generation.config_file,
        "folder": generation.config_dir,
        "environment": generation.environment.path,
        "code": generation.code,
        "application": app["application"],
        # `spawn` fills in the socket of each worker.
        "socket": "{socket}" if spawned else generation.server_sockets[0],
        **{setting: app[setting] for setting in PORTABLE_SETTINGS},
    }
    words = [_filled(str(word), values) for word in row["command"] or app["command"]]
    if not spawned:
        return words
    spawn = [SPAWN, "--workers", str(app["workers"]), "--link", f"{generation.server_dir}/{generation.protocol}"]
    spawn += ["--patience", str(app["graceful_timeout"])]
    if row.get("loads_late"):
        check = health_check_of(app)
        # Without the query: every user of the machine can read a command line.
        spawn += ["--health-path", check["path"].partition("?")[0], "--health-host", check["host"]]
    spawn += ["--accept-timeout", str(app["request_timeout"] + ACCEPT_SLACK)]
    if app["memory_limit"]:
        spawn += ["--memory-limit", str(app["memory_limit"])]
    return [*spawn, "--", *words]


def _filled(word: str, values: Mapping[str, Any]) -> str:
    """Return a word of a command with its placeholders replaced; unknown ones stay."""
    return PLACEHOLDER.sub(lambda found: str(values.get(found[1], found[0])), word)


def _guarded_settings(app: App) -> list[str]:
    """Return the names of the settings that the guard keeps for an app's server."""
    honours = app.supported
    # Where no successor comes first, the server's own way to replace a worn worker is as good, and safer.
    own = ("max_requests", "memory_limit") if app.replaces_late else ()
    return [name for name in PORTABLE_SETTINGS if honours.get(name) == "guard" and name not in own]


def environment_text(generation: Generation, app: App) -> str:
    """Return the app's environment as a file that ``wsgi/common/with-environment`` reads: shell assignments."""
    variables = hook_variables(app, generation.environment)
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in variables.items())


def _runtime_folders(generation: Generation) -> tuple[tuple[str, int, int, int], ...]:
    """
    Return a generation's folders below /run, parents first: path, mode, owner and group of each.

    No app may write where nginx finds sockets, nor reach the sockets of another app.
    """
    nginx = pwd.getpwnam(generation.host.family["nginx"]["user"]).pw_gid
    return (
        (RUN, 0o755, 0, 0),
        (f"{RUN}/{generation.name}", 0o755, 0, 0),
        (generation.runtime_dir, 0o750, 0, nginx),
        (generation.server_dir, 0o700, generation.uid, generation.gid),
    )


def _tmpfiles(generation: Generation) -> str:
    """Return what makes a generation's folders and files below /run again after a reboot, for systemd-tmpfiles."""
    lines = [f"d {path} {mode:04o} {uid} {gid} -\n" for path, mode, uid, gid in _runtime_folders(generation)]
    lines += [f"f {path} 0644 root root -\n" for path in (*generation.markers, generation.reopen_file)]
    return "".join(lines)
