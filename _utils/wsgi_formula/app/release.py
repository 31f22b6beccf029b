"""
Releases: an app's code and the virtual environment it runs in, built once, never edited.

``/srv/wsgi/<app>/releases/<release>/`` holds ``code``, ``environment``, a link into
``/srv/wsgi/<app>/environments`` that releases of equal requirements share, so that a change of
code alone installs nothing, and ``release.json``, written last: without it, it is not finished.
"""

import contextlib
import json
import os
import time

from .. import files, step
from ..build import ownership
from ..build.environment import Environment, Recipe, environment_inputs, undamaged
from ..build.hooks import run_hooks
from ..build.source import source_of
from ..build.users import prepare_builder, take_over
from ..errors import WsgiError
from ..paths import SRV
from ..pillar.hazards import hazards
from . import history


class Release:
    """
    A release on this machine, or one about to be.

    name, id : str
        The app; the hash of what the release is made from.
    """

    def __init__(self, name, id):
        self.name = name
        self.id = id
        self.path = f"{SRV}/{name}/releases/{id}"
        self.code = f"{self.path}/code"
        self._record = f"{self.path}/release.json"

    @property
    def record(self):
        """What is known of it, a dict; empty as long as it is not finished."""
        lost = "it is made again; commands that run once per release may run again"
        found = files.read_json(self._record, {"environment": str}, lost)
        return found or (self._derived_record() if self.is_damaged else {})

    @property
    def is_damaged(self):
        """Whether its record could not be read."""
        return self._record in files.damaged_records

    def _derived_record(self):
        """Its record, which was the last thing to be written of it, as far as other things tell."""
        entries = [each for each in history.entries(self.name) if each.get("release") == self.id]
        went = [each["at"] for each in entries if each["event"] != "failed"]
        facts = {fact: each[fact] for each in entries for fact in ("source", "revision") if fact in each}
        try:
            environment = os.path.basename(os.readlink(f"{self.path}/environment"))
        except OSError:
            return {}
        return {"environment": environment, **facts, **({"live": went[-1]} if went else {})}

    @property
    def environment(self):
        """Its ``Environment``, once it is finished."""
        return Environment(self.name, self.record["environment"])

    @property
    def others(self):
        """The other releases of its app that were live and are whole, those first that were so last."""
        others = [each for each in _last_live_first(self.name) if each.id != self.id]
        return [each for each in others if each.record.get("live") and each.whole()]

    def built(self, gid):
        """Whether it is on the machine, whole, and readable by a group."""
        return (
            files.group_of(self._record) == gid and bool(self.record) and self.whole() and self.environment.built(gid)
        )

    def whole(self):
        """Whether it was finished, for whichever group, and its code and its environment are root's and there."""
        return self.finished() and ownership.is_roots(self.code) and self.environment.whole()

    def finished(self):
        """Return whether the release was finished once; it may be damaged by now."""
        return os.path.lexists(self._record)

    def build(self, gid):
        """One that is only gone back to can't be built."""
        raise WsgiError(f"release {self.id} of {self.name} is not whole any more: `wsgi.unpin {self.name}`")

    def mend(self, gid):
        """Make its record again, as far as other things tell, where that was damaged."""
        if self.is_damaged:
            self.remember(gid)

    def remember(self, gid, **facts):
        """Add to its record."""
        text = json.dumps({**self.record, **facts}, indent=1) + "\n"
        files.write(self._record, text, 0o640, 0, gid)


class DesiredRelease(Release):
    """
    The release that an app's settings ask for.

    host : Host
    name : str
        The app.
    app : dict
        Its settings, as ``desired_app`` gives them.

    Raises ``WsgiError`` where its source can't be had.
    """

    def __init__(self, host, name, app):
        self.host = host
        self.app = app
        self.source = source_of(host, name, app)
        id = files.digest(self.source.identity, environment_inputs(host, app), _builds(app))
        super().__init__(name, undamaged_release(name, id).id)

    @property
    def _facts(self):
        return {"source": self.source.text, "revision": self.source.revision}

    def mend(self, gid):
        """Make its record again, where that was damaged."""
        if self.is_damaged:
            self.remember(gid, **self._facts)

    def build(self, gid):
        """
        Build what is not there yet, as a user of its own.

        gid : int
            The group of the app's user, who may read but not write the result.

        Returns what its commands printed, by command. Raises ``WsgiError`` with the last lines of what
        a failed step printed; nothing is left that could be taken for finished.
        """
        for folder in (SRV, f"{SRV}/{self.name}", f"{SRV}/{self.name}/environments", f"{SRV}/{self.name}/releases"):
            files.ensure_dir(folder, 0o755)
        builder = prepare_builder(self.host, self.name)
        account = {"uid": builder.pw_uid, "gid": builder.pw_gid}
        # A killed run may have left some.
        step.kill_user_processes(builder)
        try:
            files.remove(self.path)
            # Nobody else gets in before all is root's, not even the app.
            files.ensure_dir(self.path, 0o710, 0, builder.pw_gid)
            files.ensure_dir(self.code, 0o750)
            self.source.fetch(self.code, **account)
            # The app's own commands may write here, until all is built.
            ownership.give_tree(self.code, **account, former={0, builder.pw_uid})
            recipe = Recipe(self.host, self.name, self.app, self.code, self.source.requirements)
            recipe.build(builder, gid)
            environment = recipe.environment
            os.symlink(f"../../environments/{environment.id}", f"{self.path}/environment")
            printed = {}
            # The environment is root's and the app's by now, maybe for other releases, too.
            who = {**account, "builder": builder, "groups": [gid]}
            for _, shown in run_hooks(self.name, self.app, "build", self, environment, **who):
                printed.update(shown)
            # The app can't write bytecode beside its code.
            compile_all = [recipe.python, "-I", "-m", "compileall", "-q", "."]
            with contextlib.suppress(WsgiError):
                step.run(compile_all, self.name, cwd=self.code, **account)
            take_over(builder, self.code, gid)
            files.ensure_dir(self.path, 0o750, 0, gid)
            # After a power cut, no record may be on the disk of what is not.
            os.sync()
            self.remember(gid, **self._facts, environment=environment.id, built=round(time.time()))
        except BaseException:
            step.kill_user_processes(builder)
            files.remove(self.path)
            raise
        return printed


def undamaged_release(name, id):
    """Return the whole ``Release`` of an app with a hash, or the one to be built: see ``undamaged``."""
    return undamaged(id, f"{SRV}/{name}/releases", lambda each: Release(name, each))


def _builds(app):
    return [hook["command"] for hook in app["hooks"]["build"]]


def _known_requirements(host, name, app):
    requirements = app["requirements"]
    if not isinstance(requirements, str):
        return requirements
    with contextlib.suppress(WsgiError):  # the release's state tells of it
        return (source_of(host, name, app).read(requirements) or "").splitlines()
    return []


def _last_live_first(name):
    found = [Release(name, id) for id in files.list_dir(f"{SRV}/{name}/releases")]
    return sorted(found, key=lambda release: release.record.get("live", 0), reverse=True)


def prune_releases(name, keep, in_use):
    """
    Remove old releases, and the environments that none of the kept ones uses.

    name : str
        The app.
    keep : int
        How many stay: those that were live last.
    in_use : set of str
        The ids of releases that must stay, whatever their age.

    Returns the ids of those that are kept.
    """
    releases = f"{SRV}/{name}/releases"
    found = [release.id for release in _last_live_first(name)]
    kept = {*found[:keep], *in_use}
    for id in {*found} - kept:
        files.remove(f"{releases}/{id}")
    used = {Release(name, id).record.get("environment") for id in kept}
    for id in {*files.list_dir(f"{SRV}/{name}/environments")} - used:
        files.remove(f"{SRV}/{name}/environments/{id}")
    return kept


def release_hazards(host):
    """
    What the apps' settings allow and their requirements make dangerous.

    host : Host

    Returns a list of sentences, each beginning with the pillar key it is about. Of requirements
    in a file something is known only where the code need not be fetched for it.
    """
    found = []
    for name, app in host.settings.apps.items():
        if app["threads"] > 1 or app["preload"]:
            found += hazards(f"wsgi:apps:{name}", app, _known_requirements(host, name, app))
    return found
