"""
The switch: an app goes from its live generation to a new one, and no request is lost.

``Switch.run`` tells it whole: the seven steps of the README, and what is settled before and after them. What is written down is true at every instant, wherever
a run is killed:

- Before step *live*, nothing says that the new generation was live. The next run retires it, without ``before_retire``
  and without a rollback to it.
- In step *live*, all that is to be true from then on is first written into the new generation's record. Then the link
  is renamed: one system call, before which nothing has changed, and after which everything has.
- ``recovery.settle`` writes each fact where it belongs. Killed before that, the next run does it first.
- Only then is the generation before drained and retired. The next run finishes that, too.

A rollback for ``rollback_on_failure`` is another such change of the link, to a generation that runs already.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import secrets
import time
from collections.abc import Callable
from typing import Any

from .. import files
from ..app import history
from ..app.override import Overrides, check_override_unchanged, dated_override, forget_cached
from ..app.release import Release
from ..build.hooks import run_hooks
from ..edge import maintenance, static
from ..edge.nginx import Nginx
from ..errors import WsgiError
from ..host import Host
from ..lock import app_lock
from ..paths import LIB
from ..pillar.app import App
from ..run import probe
from ..run.generation import Generation, retire_generation
from ..run.jobs import check_schedule
from ..run.prepare import prepare_generation
from ..run.programs import check_running
from .outcome import Outcome
from .recovery import recover, settle
from .retirement import drain, drain_others, retire, retire_others, run_generation_hooks


class Switch:
    """
    One change of an app.

    host : Host
    name : str
        The app.
    app : App
        Its settings, as ``desired_app`` gives them.
    release : Release
        Built already.
    id : str
        Of the new generation, from ``desired_id``; it is counted up where an equal one is there.
    rollback_to : str
        The id of the generation that the change is a rollback to.
    override : callable
        Takes the new generation's id, and returns the override that is in force from then on, as ``active_override``
        does. Without it, the override stays as it is.
    """

    old: Generation | None
    # From step *build* on.
    new: Generation
    outcome: Outcome

    def __init__(
        self,
        host: Host,
        name: str,
        app: App,
        release: Release,
        id: str,
        rollback_to: str | None = None,
        override: Callable[[str], dict] | None = None,
    ) -> None:
        self.host = host
        self.name = name
        self.app = app
        self.release = release
        self.id = id
        self.rollback_to = rollback_to
        self.override = override
        self._change = ""  # the id of the entry in the history
        self._override_before: dict[str, Any] = {}
        self._drained: list[str] = []

    def run(self) -> Outcome:
        """
        Bring the new generation live, and retire those before it.

        Returns the ``Outcome``. Raises ``WsgiError`` where the new generation will not serve: then it is gone again, and
        the old one serves on.
        """
        with app_lock(self.name, "a change"):
            self.recover()
            try:
                self.validate()
                self.build()
                self.start()
                self.ready()
                self.live()
            except BaseException as error:
                self.abandon(error)
                raise
            self.settle()
            self.after_live()
            self.drain()
            self.retire()
            return self.outcome

    def recover(self) -> None:
        """Settle what a killed run has left."""
        self.old = recover(self.host, self.name)
        self._override_before = self.host.once(Overrides).on_disk.get(self.name, {})

    def validate(self) -> None:
        """Check all that can be checked before anything is touched."""
        check_override_unchanged(self.host, self.name)
        self.host.once(Nginx).check(self.name)
        check_schedule(self.name, self.app)
        static.check(self.name, self.app, self.release)

    def build(self) -> None:
        """Write the configuration of the new generation, and run the before_live commands in its release."""
        self.new = prepare_generation(self.host, self.name, self.app, self.release, self.id)
        self.outcome = Outcome(self.new)
        self._run_before_live()

    def start(self) -> None:
        """Start the server and the programs beside it."""
        self.new.start()

    def ready(self) -> None:
        """Wait until the health check of every worker passes, and the programs beside the server run."""
        wait_until_healthy(self.new, self.app)
        self.new.wait_for_processes()

    def live(self) -> None:
        """Move the traffic to the new generation."""
        static.build(self.host, self.name, self.app, self.release)
        history.keep_settings(self.new, self.app)
        event = "rollback" if self.rollback_to else "live"
        override = self.override and self.override(self.new.id)
        self._change = go_live(self.new, event, override, **self._facts, to=self.rollback_to)

    def abandon(self, error: BaseException) -> None:
        """
        Remove the new generation; the old one serves on.

        Raises ``WsgiError`` with what the new generation's log tells of the error, where it tells anything.
        """
        reason: BaseException = error
        if hasattr(self, "new") and history.live_id(self.name) != self.new.id:
            log = getattr(error, "log", self.new.log)
            excerpt = self.new.failure(log)
            retire_generation(self.host, self.name, self.new.id)
            if isinstance(error, (WsgiError, OSError)) and excerpt:
                reason = WsgiError(f"{error}\n{log} says:\n{excerpt}")
        if isinstance(error, (WsgiError, OSError)):
            with contextlib.suppress(OSError):  # the disk may be full, and that is what the error says
                history.add(self.host, self.name, "failed", **self._facts, to=self.rollback_to, error=reason)
        if reason is not error:
            raise reason from error

    def settle(self) -> None:
        """Write down that the new generation is live. From here on a failure is reported, and does not fail the change."""
        self.host.__dict__.pop("listening", None)
        self.outcome.failures += settle(self.new)
        if self.override:
            forget_cached(self.host, self.name)

    def after_live(self) -> None:
        """Run the after_live commands; with ``rollback_on_failure``, give the traffic back where one fails."""
        succeeded = run_after_live(self.app, self.outcome)
        if not succeeded and self.app["rollback_on_failure"] and self.old:
            self.roll_back(self.old)

    def roll_back(self, old: Generation) -> None:
        """
        Give the traffic back to the old generation, and remove the new one.

        Raises ``WsgiError`` in any case, with what made the change fail.
        """
        outcome = self.outcome
        release = Release(self.name, old.release)
        facts = {fact: release.record.get(fact) for fact in ("source", "revision")}
        facts.update({"release": old.release, "server": old.server, "to": old.id, "error": "\n".join(outcome.failures)})
        try:
            go_live(old, "rollback", self._override_before if self.override else None, **facts)
        except (WsgiError, OSError) as error:
            why = f"rollback_on_failure: generation {old.id} did not get the traffic back: {error}"
            raise WsgiError("\n".join([*outcome.failures, why])) from error
        outcome.failures += settle(old)
        forget_cached(self.host, self.name)
        if outcome.attempt(drain, self.new):
            outcome.attempt(retire, self.host, self.name, self.new.id, outcome)
        raise WsgiError("\n".join([*outcome.failures, "rollback_on_failure: it was live, and is gone again"]))

    def drain(self) -> None:
        """Wait until the old generation has no connection any more; so for each that a killed run left."""
        self._drained = drain_others(self.host, self.name, self.outcome)

    def retire(self) -> None:
        """Stop and remove the drained generations; write down what failed since the new one was live."""
        retire_others(self.host, self.name, self.app, self._drained, self.outcome)
        if self.outcome.failures:
            failures = "\n".join(self.outcome.failures)
            self.outcome.attempt(history.add_error, self.name, self._change, failures)

    @property
    def _facts(self):
        """The facts of the change for the history."""
        made_of = {fact: self.release.record.get(fact) for fact in ("source", "revision")}
        return {"release": self.release.id, "server": self.app["server"], **made_of}

    def _run_before_live(self):
        """Run the before_live commands, those that run once per release only if they have not run in it yet."""
        new, release = self.new, self.release
        ran = release.record.get("ran", [])
        hooks = [
            hook for hook in self.app["hooks"]["before_live"] if hook["every"] == "change" or hook["command"] not in ran
        ]
        app = self.app.replace(hooks={"before_live": hooks})
        account = (new.uid, new.gid)
        for hook, printed in run_hooks(app, "before_live", release, new.environment, *account):
            self.outcome.printed.update(printed)
            ran = [*ran, hook["command"]]
            release.remember(new.gid, ran=ran)


def finish(host: Host, name: str, app: App, current: Generation) -> Outcome:
    """
    Finish what a killed change, or one whose after_live commands failed, has left to do.

    current : Generation
        The live one.

    Returns the ``Outcome``.
    """
    outcome = Outcome(current)
    with app_lock(name, "a change"):
        retire_others(host, name, app, drain_others(host, name, outcome), outcome)
        if current.record.get("pending_hooks"):
            run_after_live(app, outcome)
    return outcome


def run_after_live(app: App, outcome: Outcome) -> bool:
    """
    Run an app's after_live commands in its live generation. Until all have succeeded, the next run repeats them.

    outcome : Outcome
        Gets what they printed, and the failure of the first that failed.

    Returns whether all have succeeded.
    """
    generation = outcome.generation
    if not outcome.attempt(run_generation_hooks, generation, app, "after_live", outcome):
        return False
    if generation.record.pop("pending_hooks", None):
        outcome.attempt(generation.write_record)
    return True


def go_live(generation: Generation, event: str, override: dict | None, **facts: Any) -> str:
    """
    Move an app's traffic to a generation by one rename: nginx follows the link at every connect.

    All that becomes true by it is written into the generation's record first; see ``recovery``.

    event : str
        ``live`` or ``rollback``, as ``history.entry`` takes it; so are ``facts``.
    override : dict
        The override that is in force from then on, empty for none; None where it stays as it is.

    Returns the id of the change in the history.
    """
    host, name = generation.host, generation.name
    # Before the first page that names its files; those of the generation before stay, too.
    static.publish(host, name, host.settings.apps[name], Release(name, generation.release))
    change = secrets.token_hex(8)
    entry = history.entry(host, event, generation=generation.id, change=change, **facts)
    becomes_true: dict[str, Any] = {"at": time.time(), "entry": entry}
    if override is not None:
        becomes_true["override"] = dated_override(host, override)
    generation.record["going_live"] = becomes_true
    generation.write_record()
    for folder in (LIB, f"{LIB}/live"):
        files.ensure_dir(folder, 0o755)
    maintenance.disable_fast_path(name)
    try:
        files.replace_symlink(generation.runtime_dir, generation.live_link)
    except OSError:
        maintenance.enable_fast_path(name)
        raise
    return change


def wait_until_healthy(generation: Generation, app: App) -> None:
    """
    Wait until the health check of every worker passes.

    Raises ``WsgiError`` where the server has ended, or the check's deadline is over.
    """
    health = app["health"]
    host = app.health_host
    deadline = time.monotonic() + health["deadline"]
    last = "nothing listened on its socket"
    waiting = list(generation.sockets)
    while waiting:
        left = deadline - time.monotonic()
        if left <= 0:
            raise WsgiError(
                f"generation {generation.id} under {generation.server} was not healthy within "
                f"{health['deadline']} s (wsgi:apps:{generation.name}:health): {last}."
            )
        check_running([generation.server_program])
        # One after the other, so that each has passed once.
        while waiting and os.path.exists(waiting[0]):
            try:
                status = probe.request_status(generation.protocol, waiting[0], health["path"], host, min(left, 10))
            except (OSError, http.client.HTTPException) as error:
                last = f"GET {health['path']}: {error or type(error).__name__}"
                break
            if status != health["status"]:
                last = f"GET {health['path']} answered {status} instead of {health['status']}"
                break
            waiting.pop(0)
        if waiting:
            time.sleep(0.1)
