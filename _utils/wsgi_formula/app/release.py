"""
Releases: an app's code and its virtual environment, built once and never edited.

``/srv/wsgi/<app>/releases/<release>/`` has ``code``, the link ``environment`` into ``/srv/wsgi/<app>/environments``,
where releases with the same requirements share one, and ``release.json``, which is written last and marks a release as
finished.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Collection
from pwd import struct_passwd
from typing import Any

from .. import files, step
from ..build import ownership
from ..build.environment import Environment, Recipe, environment_inputs, undamaged
from ..build.hooks import run_hooks
from ..build.source import source_of
from ..build.users import prepare_builder, take_over
from ..errors import WsgiError
from ..host import Host
from ..paths import SRV
from ..pillar.app import App
from ..pillar.hazards import hazards
from . import history


class Release:
    """
    A release of an app, built or not.

    name : str
        The app.
    id : str
        The hash of what the release is made from, perhaps with ``-2``, ``-3``, … after it: see ``undamaged``.
    """

    def __init__(self, name: str, id: str) -> None:
        self.name = name
        self.id = id
        self.path = f"{SRV}/{name}/releases/{id}"
        self.code = f"{self.path}/code"
        self._record = f"{self.path}/release.json"

    @property
    def record(self) -> dict[str, Any]:
        """
        The release's record; an empty dict where the release is not finished.

        It has ``environment``, an id, ``source``, ``revision`` and ``built``, and of a release that was live ``live``,
        both in seconds since 1970.
        """
        consequence = "it is made again; commands that run once per release may run again"
        record = files.read_json(self._record, {"environment": str}, consequence)
        return record or (self._derived_record() if self.is_damaged else {})

    @property
    def is_damaged(self) -> bool:
        """Whether the release's record could not be read."""
        return self._record in files.damaged_records

    def _derived_record(self) -> dict[str, Any]:
        """Return the facts of a damaged record that the app's history and the release's folder still tell."""
        entries = [entry for entry in history.entries(self.name) if entry.get("release") == self.id]
        live_times = [entry["at"] for entry in entries if entry["event"] != "failed"]
        facts: dict[str, Any] = {
            fact: entry[fact] for entry in entries for fact in ("source", "revision") if fact in entry
        }
        try:
            environment = os.path.basename(os.readlink(f"{self.path}/environment"))
        except OSError:
            return {}
        return {"environment": environment, **facts, **({"live": live_times[-1]} if live_times else {})}

    @property
    def environment(self) -> Environment:
        """The virtual environment of a finished release."""
        return Environment(self.name, self.record["environment"])

    @property
    def others(self) -> list[Release]:
        """The app's other releases that were live and are whole, the one that was live last first."""
        others = [release for release in _last_live_first(self.name) if release.id != self.id]
        return [release for release in others if release.record.get("live") and release.whole()]

    def built(self, gid: int) -> bool:
        """Return whether the release and its environment are whole and a group may read them."""
        return (
            files.group_of(self._record) == gid and bool(self.record) and self.whole() and self.environment.built(gid)
        )

    def whole(self) -> bool:
        """Return whether the release was finished and only root may write to its code and its environment."""
        return self.finished() and ownership.is_roots(self.code) and self.environment.whole()

    def finished(self) -> bool:
        """Return whether the release was finished once; it may be damaged by now."""
        return os.path.lexists(self._record)

    def build(self, gid: int) -> dict[str, str]:
        """Raise ``WsgiError``: only the desired release can be built, and this one is of an earlier generation."""
        raise WsgiError(f"release {self.id} of {self.name} is damaged; run `wsgi.unpin {self.name}`")

    def mend(self, gid: int) -> None:
        """Replace a damaged record by the facts that are still known."""
        if self.is_damaged:
            self.remember(gid)

    def remember(self, gid: int | None, **facts: Any) -> None:
        """Add facts to the release's record, which a group may read."""
        text = json.dumps({**self.record, **facts}, indent=1) + "\n"
        files.write(self._record, text, 0o640, 0, gid or 0)


class DesiredRelease(Release):
    """
    The release that an app's settings come to.

    host : Host
    app : App
        The app, as ``desired_app`` returns it.

    Raises ``WsgiError`` where its source is not available.
    """

    def __init__(self, host: Host, app: App) -> None:
        self.host = host
        self.app = app
        self.source = source_of(host, app)
        hash = files.digest(self.source.identity, environment_inputs(host, app), _build_commands(app))
        super().__init__(app.name, undamaged_release(app.name, hash).id)

    @property
    def _facts(self) -> dict[str, Any]:
        return {"source": self.source.text, "revision": self.source.revision}

    def mend(self, gid: int) -> None:
        if self.is_damaged:
            self.remember(gid, **self._facts)

    def build(self, gid: int) -> dict[str, str]:
        """
        Build the release: fetch its code, build its environment, run its ``build`` hooks, and give all to root.

        gid : int
            The group of the app's user, which may read the release.

        A user of its own runs what comes from outside. Returns the labels of the hooks to their output. Raises
        ``WsgiError`` with the last lines of a failed step's output, and then removes the release.
        """
        for folder in (SRV, f"{SRV}/{self.name}", f"{SRV}/{self.name}/environments", f"{SRV}/{self.name}/releases"):
            files.ensure_dir(folder, 0o755)
        builder = prepare_builder(self.host, self.name)
        # A killed run may have left some.
        step.kill_user_processes(builder)
        try:
            self._fetch_code(builder)
            recipe = self._build_environment(builder, gid)
            printed = self._run_build_hooks(builder, gid, recipe.environment)
            self._compile_bytecode(builder, recipe.python)
            self._finish(builder, gid, recipe.environment)
        except BaseException:
            step.kill_user_processes(builder)
            files.remove(self.path)
            raise
        return printed

    def _fetch_code(self, builder: struct_passwd) -> None:
        """Fetch the code, and let the builder write to it until the release is finished."""
        uid, gid = builder.pw_uid, builder.pw_gid
        files.remove(self.path)
        # No other user, not even the app's own, gets in before all is root's.
        files.ensure_dir(self.path, 0o710, 0, gid)
        files.ensure_dir(self.code, 0o750)
        self.source.fetch(self.code, uid, gid)
        ownership.give_tree(self.code, uid, gid, former={0, uid})

    def _build_environment(self, builder: struct_passwd, gid: int) -> Recipe:
        """Build the environment, unless another release has, and link to it."""
        recipe = Recipe(self.host, self.app, self.code, self.source.requirements)
        recipe.build(builder, gid)
        os.symlink(f"../../environments/{recipe.environment.id}", f"{self.path}/environment")
        return recipe

    def _run_build_hooks(self, builder: struct_passwd, gid: int, environment: Environment) -> dict[str, str]:
        """Run the ``build`` hooks, and return their labels to their output."""
        # The environment is root's and the app's group's by now, perhaps for other releases, too.
        account = (builder.pw_uid, builder.pw_gid, builder, [gid])
        printed: dict[str, str] = {}
        for _, output in run_hooks(self.app, "build", self, environment, *account):
            printed.update(output)
        return printed

    def _compile_bytecode(self, builder: struct_passwd, python: str) -> None:
        """Compile the code's bytecode, which the app itself may not write beside the code."""
        command = [python, "-I", "-m", "compileall", "-q", "."]
        with contextlib.suppress(WsgiError):
            step.run(command, self.name, cwd=self.code, uid=builder.pw_uid, gid=builder.pw_gid)

    def _finish(self, builder: struct_passwd, gid: int, environment: Environment) -> None:
        """Give the code to root, and write the record."""
        take_over(builder, self.code, gid)
        files.ensure_dir(self.path, 0o750, 0, gid)
        # Even after a power cut, the record is on the disk only if the release is.
        os.sync()
        self.remember(gid, **self._facts, environment=environment.id, built=round(time.time()))


def undamaged_release(name: str, hash: str) -> Release:
    """Return an app's whole release of a hash, or else the one to be built: see ``environment.undamaged``."""
    return undamaged(hash, f"{SRV}/{name}/releases", lambda id: Release(name, id))


def _build_commands(app: App) -> list:
    return [hook["command"] for hook in app["hooks"]["build"]]


def _known_requirements(host: Host, app: App) -> list[str]:
    requirements = app["requirements"]
    if not isinstance(requirements, str):
        return requirements
    with contextlib.suppress(WsgiError):  # the release's state reports it
        return (source_of(host, app).read(requirements) or "").splitlines()
    return []


def _last_live_first(name: str) -> list[Release]:
    releases = [Release(name, id) for id in files.list_dir(f"{SRV}/{name}/releases")]
    return sorted(releases, key=lambda release: release.record.get("live", 0), reverse=True)


def prune_releases(name: str, keep: int, in_use: Collection[str]) -> set[str]:
    """
    Remove old releases, and the environments that no kept release uses; return the ids of the kept releases.

    name : str
        The app.
    keep : int
        How many releases stay: those that were live last.
    in_use : set of str
        The ids of releases that stay in any case.
    """
    releases, environments = f"{SRV}/{name}/releases", f"{SRV}/{name}/environments"
    ids = [release.id for release in _last_live_first(name)]
    kept = {*ids[:keep], *in_use}
    for id in {*ids} - kept:
        files.remove(f"{releases}/{id}")
    used = {Release(name, id).record.get("environment") for id in kept}
    for id in {*files.list_dir(environments)} - used:
        files.remove(f"{environments}/{id}")
    return kept


def release_hazards(host: Host) -> list[str]:
    """
    Return a sentence for each hazard in the apps' settings and requirements, with its pillar key at the beginning.

    The requirements in a file of the code count where they can be read without a fetch.
    """
    found: list[str] = []
    for name, app in host.settings.apps.items():
        if app["threads"] > 1 or app["preload"]:
            found += hazards(f"wsgi:apps:{name}", app, _known_requirements(host, app))
    return found
