"""
What is wanted of an app: what pillar says, unless a deploy or a pin on this machine says
otherwise, until pillar does.
"""

import json
import re
import shlex
import time

import wsgi_history
import wsgi_host
import wsgi_pillar
import wsgi_release
import wsgi_schema
import wsgi_schema_edge
from wsgi_host import ETC, Problem


def settings(host, name):
    """
    An app's settings, those of its environment as pillar has them.

    host : wsgi_host.Host
    name : str
        The app, one of ``host.settings.apps``.

    Returns a dict as ``wsgi_settings.Settings.apps`` holds it, with ``ref`` where it was deployed: the branch or tag
    that its source's commit was found by, or None. Raises ``wsgi_host.Problem`` where
    it is pinned to what is gone.
    """
    app = host.settings.apps[name]
    override = in_force(host, name)
    if "pinned" in override:
        return restored(host, name, override["pinned"])
    if not override:
        return app
    # The source of a deploy names a commit. Before there was `ref`, `rev` alone told what that was of.
    return {**app, "source": override["source"], "ref": override.get("ref", override["rev"])}


def app(host, name):
    """
    An app's settings, with the values that ``sdb://…`` and ``env_files`` stand for; looked up once
    per run.

    Returns a dict as ``settings`` does. Raises ``wsgi_host.Problem`` where a value can't be had.
    """
    if name not in host.wanted:
        found = settings(host, name)
        if "pinned" not in in_force(host, name):
            found = {**found, "env": _variables(host, name, found)}
            key = f"wsgi:apps:{name}:deploy_key"
            found["deploy_key"] = looked_up(host, key, found["deploy_key"])
        host.wanted[name] = found
    return host.wanted[name]


def release(host, name):
    """
    The release that is wanted of an app: a ``wsgi_release.Wanted``, which can be built, unless it
    is pinned to one that is there.
    """
    override = in_force(host, name)
    if "pinned" in override:
        restored(host, name, override["pinned"])
        return wsgi_release.Release(name, wsgi_history.kept(name, override["pinned"])["release"])
    return wsgi_release.Wanted(host, name, app(host, name))


def restored(host, name, id):
    """
    An app's settings with those of a generation that was live before.

    id : str

    Raises ``wsgi_host.Problem`` where these are not kept any more.
    """
    kept = wsgi_history.kept(name, id)
    if kept is None or not wsgi_release.Release(name, kept["release"]).record:
        raise Problem(f"generation {id} of {name} is not there any more: `wsgi.unpin {name}`, or go to another one")
    return {**host.settings.apps[name], **kept["settings"]}


def htpasswd(host, key, users):
    """
    What nginx's ``auth_basic_user_file`` is to hold.

    key : str
        The pillar key of the users.
    users : dict
        Their names to hashes, or to where Salt's sdb has these.

    Returns the text. Raises ``wsgi_host.Problem`` where sdb has something else than a hash.
    """
    found = {user: looked_up(host, f"{key}:{user}", said) for user, said in users.items()}
    for user, value in found.items():
        if not wsgi_schema_edge.HASH.fullmatch(str(value)):
            raise Problem(
                f"{key}:{user}: {users[user]} holds something else than a hash that `openssl passwd -6` printed"
            )
    return "".join(f"{user}:{value}\n" for user, value in found.items())


def in_force(host, name):
    """
    What this machine says of an app instead of pillar; an empty dict where it says nothing.

    Returns ``pinned`` (a generation's id), or of a deploy ``source``, ``rev``, ``ref`` and ``pillar`` (a hash
    of what pillar said then; it ends as soon as pillar says something else); ``at`` and ``by``.
    """
    if name not in host.overrides:
        host.overrides[name] = host.overrides_read[name] = _on_disk(name)
    override = host.overrides[name]
    if "source" in override and override["pillar"] != _said(host, name):
        return {}
    return override


def sentence(host, name):
    """What is said instead of pillar, for an administrator; "" where it is nothing."""
    override = in_force(host, name)
    if "pinned" in override:
        return f"It is pinned to generation {override['pinned']} since {override['at']}; `wsgi.unpin {name}` ends that."
    if override:
        what = override["rev"] or wsgi_schema.without_credentials(override["source"])
        return f"{what} was deployed at {override['at']} instead of pillar's source, until that changes."
    return ""


def deployed(host, name, source, rev=None):
    """What a deploy says, for ``override``."""
    return {"source": source, "rev": rev, "pillar": _said(host, name)}


def override(host, name, what, write=True):
    """
    Say something of an app instead of pillar, or with an empty dict nothing any more.

    what : dict
        As ``in_force`` returns it; ``at`` and ``by`` are added.
    write : bool
        Whether for longer than this run.
    """
    what = dated(host, what)
    host.wanted.pop(name, None)
    host.overrides[name] = what
    if write:
        host.overrides_read[name] = what
        put(name, what)


def dated(host, what):
    """Add to what is said instead of pillar ``at`` and ``by``, unless that is nothing."""
    return what and {"at": time.strftime("%Y-%m-%d %H:%M:%S"), "by": wsgi_history.by(host), **what}


def put(name, what):
    """Write down what is said instead of pillar, as ``dated`` returns it."""
    if what:
        wsgi_host.write(_path(name), json.dumps(what) + "\n", 0o600)
    else:
        wsgi_host.remove(_path(name))


def read_again(host, name):
    """Have the run ask the disk again what is wanted of an app."""
    for known in (host.wanted, host.overrides, host.overrides_read):
        known.pop(name, None)


def is_damaged(name):
    """Whether what was said of an app instead of pillar could not be read."""
    return _path(name) in wsgi_host.damaged


def set_aside(name):
    """Take what could not be read out of the way."""
    wsgi_host.set_aside(_path(name))


def check_unchanged(host, name):
    """Raise ``Problem`` where another run deployed, pinned or unpinned an app since this one began."""
    if name in host.overrides and _on_disk(name) != host.overrides_read[name]:
        raise Problem(f"another run changed what is wanted of {name} meanwhile; apply again")


def _path(name):
    return f"{ETC}/{name}/override.json"


def _on_disk(name):
    """What is said of an app instead of pillar: by the change that brought what is live, though it was killed."""
    lost = "what was deployed or pinned there is not any more, and pillar alone says what is wanted"
    brought = wsgi_history.going_live(name)
    if "override" in brought:
        return brought["override"]
    found = wsgi_host.read_json(_path(name), {"at": str}, lost) or {}
    if found and "pinned" not in found and not {"source", "rev", "pillar"} <= {*found}:
        wsgi_host.note_damage(_path(name), "it names no source", lost)
        return {}
    return found


def _said(host, name):
    return wsgi_host.digest(host.settings.apps[name]["source"])


def _variables(host, name, app):
    """The values of an app's environment: of its files, in their order, then of pillar."""
    key = f"wsgi:apps:{name}"
    values = {}
    for path in app["env_files"]:
        values.update(_file_variables(f"{key}:env_files", path))
    values.update(app["env"])
    found = {variable: looked_up(host, f"{key}:env:{variable}", value) for variable, value in values.items()}
    for variable, value in found.items():
        flaw = wsgi_schema.find_variable_flaw(variable, str(value))
        if flaw:
            raise Problem(f"{key}:env:{variable}: {flaw}")
    return found


def _file_variables(key, path):
    """What a file of NAME=value lines says; a problem tells the line's number, and nothing of it."""
    text = wsgi_host.read(path)
    if text is None:
        raise Problem(f"{key}: {path!r} is not there")
    values = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, equals, value = re.sub(r"^export\s+", "", line).partition("=")
        if not equals or not wsgi_schema.ENV_NAME.fullmatch(name):
            raise Problem(f"{key}: line {number} of {path!r} is not NAME=value")
        if value[:1] in ("'", '"'):
            try:
                words = shlex.split(value, comments=True)
            except ValueError:
                words = []
            if len(words) != 1:
                raise Problem(f"{key}: line {number} of {path!r}: its quotes don't match")
            value = words[0]
        flaw = wsgi_schema.find_variable_flaw(name, value)
        if flaw:
            raise Problem(f"{key}: line {number} of {path!r} {flaw}")
        values[name] = value
    return values


def looked_up(host, key, value):
    """A value of a pillar key, or what stands under it in Salt's sdb; raises ``Problem`` where that can't be had."""
    if not isinstance(value, str) or not value.startswith("sdb://"):
        return value
    try:
        found = wsgi_pillar.plain(host.salt["sdb.get"](value, strict=True))
    except Exception as error:  # whatever the driver of that database raises
        raise Problem(f"{key}: {value} can't be had: {error}") from error
    if type(found) not in (str, int, float):
        raise Problem(f"{key}: {value} is not there")
    return found
