"""
The desired state of an app: pillar's settings, or those of a deploy or a pin on this machine.
"""

from ..errors import WsgiError
from . import history
from .override import active_override
from .release import DesiredRelease, Release
from .secrets import environment_variables, resolve_sdb


def desired_settings(host, name):
    """
    An app's settings, those of its environment as pillar has them.

    host : Host
    name : str
        The app, one of ``host.settings.apps``.

    Returns a dict as ``Settings.apps`` holds it, with ``ref`` where it was deployed: the branch or tag
    that its source's commit was found by, or None. Raises ``WsgiError`` where
    it is pinned to what is gone.
    """
    app = host.settings.apps[name]
    override = active_override(host, name)
    if "pinned" in override:
        return restored_settings(host, name, override["pinned"])
    if not override:
        return app
    # The source of a deploy names a commit. Before there was `ref`, `rev` alone told what that was of.
    return {**app, "source": override["source"], "ref": override.get("ref", override["rev"])}


def desired_app(host, name):
    """
    An app's settings, with the values that ``sdb://…`` and ``env_files`` stand for; looked up once
    per run.

    Returns a dict as ``settings`` does. Raises ``WsgiError`` where a value can't be had.
    """
    if name not in host.wanted:
        found = desired_settings(host, name)
        if "pinned" not in active_override(host, name):
            found = {**found, "env": environment_variables(host, name, found)}
            key = f"wsgi:apps:{name}:deploy_key"
            found["deploy_key"] = resolve_sdb(host, key, found["deploy_key"])
        host.wanted[name] = found
    return host.wanted[name]


def desired_release(host, name):
    """
    The release that is wanted of an app: a ``DesiredRelease``, which can be built, unless it
    is pinned to one that is there.
    """
    override = active_override(host, name)
    if "pinned" in override:
        restored_settings(host, name, override["pinned"])
        return Release(name, history.kept_settings(name, override["pinned"])["release"])
    return DesiredRelease(host, name, desired_app(host, name))


def restored_settings(host, name, id):
    """
    An app's settings with those of a generation that was live before.

    id : str

    Raises ``WsgiError`` where these are not kept any more.
    """
    kept = history.kept_settings(name, id)
    if kept is None or not Release(name, kept["release"]).record:
        raise WsgiError(f"generation {id} of {name} is not there any more: `wsgi.unpin {name}`, or go to another one")
    return {**host.settings.apps[name], **kept["settings"]}
