"""
Deploys and rollbacks of one app, without a highstate.
"""

from __future__ import annotations

import pwd

from ..app import history
from ..app.desired import desired_app, desired_release, restorable_release, restored_settings
from ..app.override import (
    Overrides,
    active_override,
    deploy_override,
    describe_override,
    forget_cached,
    set_override,
)
from ..app.release import DesiredRelease
from ..build.source import with_revision
from ..edge.nginx import Nginx
from ..errors import WsgiError
from ..host import Host
from ..lock import app_lock
from ..pillar.source import parse_source
from ..redact import without_credentials
from ..run.generation import live_generation
from ..run.prepare import adopt, desired_id, replacement_reason
from .outcome import Outcome
from .recovery import recover
from .switch import Switch


def deploy_app(host: Host, name: str, rev: str | None = None, source: str | None = None, wait: float = 0) -> Outcome:
    """
    Build and switch one app, to pillar's source or to another one.

    host : Host
    name : str
        An app of ``host.settings.apps`` that is live.
    rev : str
        A branch, tag or commit of its repository, or a version of its package.
    source : str
        Another source, written as in pillar.
    wait : float
        Seconds to wait for another run that changes the app.

    Returns the ``Outcome``. What is deployed stays until pillar's source changes. Raises ``WsgiError`` where the new
    generation is not healthy; then the old one still serves, and stays the desired one.
    """
    with app_lock(name, "wsgi.deploy", patience=wait):
        if recover(host, name) is None:
            raise WsgiError(f"{name} is not live yet: run state.apply wsgi first")
        if "pinned" in active_override(host, name):
            raise WsgiError(describe_override(host, name))
        set_override(host, name, _new_override(host, name, rev, source), write=False)
        try:
            return _converge(host, name)
        except (WsgiError, OSError):
            forget_cached(host, name)
            raise


def _new_override(host, name, rev, source):
    pillars = host.settings.apps[name]["source"]
    if rev is not None and source:
        raise WsgiError("rev and source cannot be combined: a source contains its revision")
    if rev is None and not source:
        return {}
    if rev is not None and not isinstance(rev, str):
        # Salt reads 1.10 on a command line as 1.1.
        raise WsgiError(f"rev was read as {rev!r}; quote it twice, as in rev=\"'1.10'\"")
    try:
        text = with_revision(pillars, rev) if rev is not None else source
        parse_source(text)
    except ValueError as error:
        raise WsgiError(f"{without_credentials(source or str(rev))!r} {error}") from error
    return {} if text == pillars else deploy_override(host, name, text, rev)


def _converge(host, name):
    """Build the desired release of an app, bring the desired generation live, and update its site."""
    override = dict(host.once(Overrides).current[name])
    app, user = desired_app(host, name), None
    try:
        user = pwd.getpwnam(app["user"])
        release = desired_release(host, name)
        printed = {} if release.built(user.pw_gid) else release.build(user.pw_gid)
    except KeyError:
        raise WsgiError(f"the user {app['user']} does not exist: run state.apply wsgi") from None
    except (WsgiError, OSError) as error:
        history.add(host, name, "failed", source=without_credentials(app["source"]), error=error)
        raise
    if override:
        assert isinstance(release, DesiredRelease)
        revision = release.source.revision
        if "commit" in revision:
            # A branch moves; the deployed commit does not.
            override["source"] = with_revision(override["source"], revision["commit"])
            override["ref"] = revision.get("ref")
    id = desired_id(host, app, release)
    current = live_generation(host, name)
    if current:
        adopt(current, id, app, release)
    if current is None or replacement_reason(current, id):
        outcome = Switch(host, name, app, release, id, override=lambda _: override).run()
    else:
        outcome = Outcome(current)
        set_override(host, name, override)
    outcome.printed = {**printed, **outcome.printed}
    _update_site(host, outcome)
    return outcome


def _update_site(host, outcome):
    """Update nginx's files for the live generation; a failure is reported, and does not undo the change."""
    outcome.attempt(lambda: host.once(Nginx).apply(outcome.generation.name))


def roll_back(host: Host, name: str, to: str | None = None, pin: bool = False) -> Outcome:
    """
    Roll an app back to a generation that was live before.

    to : str
        Its id, or that of a release; by default the one before the live one.
    pin : bool
        Whether the app stays there until ``end_pin``, even when pillar changes.

    Returns the ``Outcome``. Raises ``WsgiError`` where the generation is not healthy; then the live one still serves.
    """
    with app_lock(name, "wsgi.rollback", patience=0):
        current = recover(host, name)
        if current is None:
            raise WsgiError(f"{name} is not live")
        target = _rollback_target(name, current, to)
        app = restored_settings(host, name, target)
        release = restorable_release(name, target)
        id = desired_id(host, app, release)

        def override(new):
            # A rollback ends the override of a deploy.
            return {"pinned": new} if pin else {}

        outcome = Switch(host, name, app, release, id, rollback_to=target, override=override).run()
        _update_site(host, outcome)
        return outcome


def _rollback_target(name, current, to):
    if to is None:
        found = history.rollback_target(name, current.id)
        if found is None:
            raise WsgiError(
                f"no generation of {name} from before {current.id} is kept; wsgi:apps:{name}:keep_releases sets how many are"
            )
        return found
    went = [entry for entry in reversed(history.entries(name)) if entry["event"] != "failed"]
    there = [entry for entry in went if history.kept_settings(name, entry["generation"])]
    for entry in there:
        if to in (entry["generation"], entry.get("release")) and entry["generation"] != current.id:
            return entry["generation"]
    known = list(dict.fromkeys(entry["generation"] for entry in there if entry["generation"] != current.id))
    raise WsgiError(
        f"{to!r} is not a generation or release that {name} can be rolled back to ({', '.join(known) or 'there is none'})"
    )


def end_pin(host: Host, name: str) -> bool:
    """
    End an app's pin, so that pillar decides again.

    Returns whether the app was pinned.
    """
    with app_lock(name, "wsgi.unpin", patience=0):
        recover(host, name)
        pinned = "pinned" in active_override(host, name)
        if pinned:
            set_override(host, name, {})
        return pinned
