"""
One app at a time, without a highstate: forward to a revision, or back to what was live before.
"""

import pwd

from ..app import history
from ..app.desired import desired_app, desired_release, restored_settings
from ..app.override import active_override, deploy_override, describe_override, forget_cached, set_override
from ..app.release import Release
from ..build.source import with_revision
from ..edge.nginx import Nginx
from ..errors import Problem
from ..lock import app_lock
from ..pillar.source import parse_source
from ..redact import without_credentials
from ..run.generation import desired_id, live_generation, replacement_reason
from . import switch
from .switch import Change


def deploy_app(host, name, rev=None, source=None, wait=0):
    """
    Build and switch one app, to what pillar says or to another revision.

    host : Host
    name : str
        An app of ``host.settings.apps`` that is live.
    rev : str
        A branch, tag or commit of its repository, or a version of its package.
    source : str
        Another source altogether, as pillar would have it.
    wait : float
        Seconds to wait for another run that changes the app.

    Returns the ``Change``. What is deployed stays, whatever runs, until pillar's
    source changes. Raises ``Problem``; what was live serves on then, and is still wanted.
    """
    with app_lock(name, "wsgi.deploy", patience=wait):
        if switch.recover(host, name) is None:
            raise Problem(f"{name} is not live yet: state.apply wsgi sets up what it needs")
        if "pinned" in active_override(host, name):
            raise Problem(describe_override(host, name))
        set_override(host, name, _asked(host, name, rev, source), write=False)
        try:
            return _converge(host, name)
        except (Problem, OSError):
            forget_cached(host, name)
            raise


def _asked(host, name, rev, source):
    said = host.settings.apps[name]["source"]
    if rev is not None and source:
        raise Problem("rev and source can't both be given: a source holds its revision")
    if rev is None and not source:
        return {}
    if rev is not None and not isinstance(rev, str):
        # Salt reads 1.10 of a command line as 1.1.
        raise Problem(f"rev was read as {rev!r}; quote it twice, as in rev=\"'1.10'\"")
    try:
        wanted = with_revision(said, rev) if rev is not None else source
        parse_source(wanted)
    except ValueError as error:
        raise Problem(f"{without_credentials(source or rev)!r} {error}") from error
    return {} if wanted == said else deploy_override(host, name, wanted, rev)


def _converge(host, name):
    """The release, the generation and the site of one app as they are wanted."""
    asked = dict(host.overrides[name])
    app, user = desired_app(host, name), None
    try:
        user = pwd.getpwnam(app["user"])
        release = desired_release(host, name)
        printed = {} if release.built(user.pw_gid) else release.build(user.pw_gid)
    except KeyError:
        raise Problem(f"the user {app['user']} is not there: state.apply wsgi") from None
    except (Problem, OSError) as error:
        history.add(host, name, "failed", source=without_credentials(app["source"]), error=error)
        raise
    if asked:
        revision = release.source.revision
        if "commit" in revision:
            # A branch moves; what was deployed does not.
            asked["source"] = with_revision(asked["source"], revision["commit"])
            asked["ref"] = revision.get("ref")
    id = desired_id(host, app, release)
    current = live_generation(host, name)
    if replacement_reason(host, current, id):
        done = switch.change(host, name, app, release, id, override=lambda _: asked)
    else:
        done = Change(current)
        set_override(host, name, asked)
    done.printed = {**printed, **done.printed}
    _put_site(host, done)
    return done


def _put_site(host, done):
    """Have nginx's files fit the generation that is live. That it is, a failure here does not change any more."""
    try:
        host.once(Nginx).apply(done.generation.name)
    except (Problem, OSError) as error:
        done.failures.append(str(error))


def roll_back(host, name, to=None, pin=False):
    """
    Go back to a generation that was live before.

    to : str
        Its id, or that of a release; the one before the live one when not given.
    pin : bool
        Whether to stay there, whatever pillar says, until ``unpin``.

    Returns the ``Change``. Raises ``Problem``; what was live serves on then.
    """
    with app_lock(name, "wsgi.rollback", patience=0):
        current = switch.recover(host, name)
        if current is None:
            raise Problem(f"{name} is not live")
        target = _target(name, current, to)
        app = restored_settings(host, name, target)
        release = Release(name, history.kept_settings(name, target)["release"])
        id = desired_id(host, app, release)

        def override(new):
            # A rollback leaves a deploy, so the deploy's override ends with it.
            return {"pinned": new} if pin else {}

        done = switch.change(host, name, app, release, id, back_to=target, override=override)
        _put_site(host, done)
        return done


def _target(name, current, to):
    if to is None:
        found = history.rollback_target(name, current.id)
        if found is None:
            raise Problem(f"no generation of {name} from before {current.id} is kept (wsgi:apps:{name}:keep_releases)")
        return found
    went = [entry for entry in reversed(history.entries(name)) if entry["event"] != "failed"]
    there = [entry for entry in went if history.kept_settings(name, entry["generation"])]
    for entry in there:
        if to in (entry["generation"], entry.get("release")) and entry["generation"] != current.id:
            return entry["generation"]
    known = list(dict.fromkeys(entry["generation"] for entry in there if entry["generation"] != current.id))
    raise Problem(
        f"{to!r} is no generation or release that {name} can go back to ({', '.join(known) or 'there is none'})"
    )


def end_pin(host, name):
    """
    Let pillar have its word on an app again.

    Returns whether it was pinned.
    """
    with app_lock(name, "wsgi.unpin", patience=0):
        switch.recover(host, name)
        pinned = "pinned" in active_override(host, name)
        if pinned:
            set_override(host, name, {})
        return pinned
