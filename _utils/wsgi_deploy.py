"""
One app at a time, without a highstate: forward to a revision, or back to what was live before.
"""

import pwd

import wsgi_generation
import wsgi_history
import wsgi_lock
import wsgi_nginx
import wsgi_release
import wsgi_schema
import wsgi_source
import wsgi_wanted
from wsgi_host import Problem


def deploy(host, name, rev=None, source=None, wait=0):
    """
    Build and switch one app, to what pillar says or to another revision.

    host : wsgi_host.Host
    name : str
        An app of ``host.settings.apps`` that is live.
    rev : str
        A branch, tag or commit of its repository, or a version of its package.
    source : str
        Another source altogether, as pillar would have it.
    wait : float
        Seconds to wait for another run that changes the app.

    Returns the ``wsgi_generation.Change``. What is deployed stays, whatever runs, until pillar's
    source changes. Raises ``Problem``; what was live serves on then, and is still wanted.
    """
    with wsgi_lock.locked(name, "wsgi.deploy", patience=wait):
        if wsgi_generation.recover(host, name) is None:
            raise Problem(f"{name} is not live yet: state.apply wsgi sets up what it needs")
        if "pinned" in wsgi_wanted.in_force(host, name):
            raise Problem(wsgi_wanted.sentence(host, name))
        wsgi_wanted.override(host, name, _asked(host, name, rev, source), write=False)
        try:
            return _converge(host, name)
        except (Problem, OSError):
            wsgi_wanted.read_again(host, name)
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
        wanted = wsgi_source.with_revision(said, rev) if rev is not None else source
        wsgi_schema.parse_source(wanted)
    except ValueError as error:
        raise Problem(f"{wsgi_schema.without_credentials(source or rev)!r} {error}") from error
    return {} if wanted == said else wsgi_wanted.deployed(host, name, wanted, rev)


def _converge(host, name):
    """The release, the generation and the site of one app as they are wanted."""
    asked = dict(host.overrides[name])
    app, user = wsgi_wanted.app(host, name), None
    try:
        user = pwd.getpwnam(app["user"])
        release = wsgi_wanted.release(host, name)
        printed = {} if release.built(user.pw_gid) else release.build(user.pw_gid)
    except KeyError:
        raise Problem(f"the user {app['user']} is not there: state.apply wsgi") from None
    except (Problem, OSError) as error:
        wsgi_history.add(host, name, "failed", source=wsgi_schema.without_credentials(app["source"]), error=error)
        raise
    if asked:
        revision = release.source.revision
        if "commit" in revision:
            # A branch moves; what was deployed does not.
            asked["source"] = wsgi_source.with_revision(asked["source"], revision["commit"])
            asked["ref"] = revision.get("ref")
    id = wsgi_generation.wanted_id(host, app, release)
    current = wsgi_generation.live(host, name)
    if wsgi_generation.replacement(host, current, id):
        done = wsgi_generation.change(host, name, app, release, id, override=lambda _: asked)
    else:
        done = wsgi_generation.Change(current)
        wsgi_wanted.override(host, name, asked)
    done.printed = {**printed, **done.printed}
    _put_site(host, done)
    return done


def _put_site(host, done):
    """Have nginx's files fit the generation that is live. That it is, a failure here does not change any more."""
    try:
        wsgi_nginx.put(host, done.generation.name)
    except (Problem, OSError) as error:
        done.failures.append(str(error))


def rollback(host, name, to=None, pin=False):
    """
    Go back to a generation that was live before.

    to : str
        Its id, or that of a release; the one before the live one when not given.
    pin : bool
        Whether to stay there, whatever pillar says, until ``unpin``.

    Returns the ``wsgi_generation.Change``. Raises ``Problem``; what was live serves on then.
    """
    with wsgi_lock.locked(name, "wsgi.rollback", patience=0):
        current = wsgi_generation.recover(host, name)
        if current is None:
            raise Problem(f"{name} is not live")
        target = _target(name, current, to)
        app = wsgi_wanted.restored(host, name, target)
        release = wsgi_release.Release(name, wsgi_history.kept(name, target)["release"])
        id = wsgi_generation.wanted_id(host, app, release)

        def override(new):
            # A rollback leaves a deploy, so the deploy's override ends with it.
            return {"pinned": new} if pin else {}

        done = wsgi_generation.change(host, name, app, release, id, back_to=target, override=override)
        _put_site(host, done)
        return done


def _target(name, current, to):
    if to is None:
        found = wsgi_history.before(name, current.id)
        if found is None:
            raise Problem(f"no generation of {name} from before {current.id} is kept (wsgi:apps:{name}:keep_releases)")
        return found
    went = [entry for entry in reversed(wsgi_history.entries(name)) if entry["event"] != "failed"]
    there = [entry for entry in went if wsgi_history.kept(name, entry["generation"])]
    for entry in there:
        if to in (entry["generation"], entry.get("release")) and entry["generation"] != current.id:
            return entry["generation"]
    known = list(dict.fromkeys(entry["generation"] for entry in there if entry["generation"] != current.id))
    raise Problem(
        f"{to!r} is no generation or release that {name} can go back to ({', '.join(known) or 'there is none'})"
    )


def unpin(host, name):
    """
    Let pillar have its word on an app again.

    Returns whether it was pinned.
    """
    with wsgi_lock.locked(name, "wsgi.unpin", patience=0):
        wsgi_generation.recover(host, name)
        pinned = "pinned" in wsgi_wanted.in_force(host, name)
        if pinned:
            wsgi_wanted.override(host, name, {})
        return pinned
