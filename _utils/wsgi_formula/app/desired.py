"""
The desired settings and the desired release of an app: pillar's, or those of a deploy or a pin on this machine.
"""

from __future__ import annotations

from typing import Any

from ..errors import WsgiError
from ..host import Host
from ..pillar.app import App
from . import history
from .override import active_override
from .release import DesiredRelease, Release
from .secrets import environment_variables, resolve_sdb


class DesiredApps:
    """The apps of one run, by their names: the override and the settings that it comes to. See ``Host.shared``."""

    def __init__(self, host: Host) -> None:
        self.by_name: dict[str, tuple[dict, App]] = {}


def desired_settings(host: Host, name: str) -> App:
    """
    Return the desired settings of an app, with ``sdb://…`` and ``env_files`` as pillar has them.

    host : Host
    name : str
        The app, one of ``host.settings.apps``.

    For a deployed app the mapping also has ``ref``: the branch or tag that the
    source's commit was found by, or None. Raises ``WsgiError`` where the app is pinned to a generation that is gone.
    """
    app = host.settings.apps[name]
    override = active_override(host, name)
    if "pinned" in override:
        return restored_settings(host, name, override["pinned"])
    if not override:
        return app
    # The source of a deploy names a commit. Records of older versions have no `ref`, and its value as `rev`.
    return app.replace(source=override["source"], ref=override.get("ref", override["rev"]))


def desired_app(host: Host, name: str) -> App:
    """
    Return the desired settings of an app, with the values of ``sdb://…`` and ``env_files``; they are read once per run.

    The arguments are those of ``desired_settings``. Raises ``WsgiError`` where a value is not
    available.
    """
    desired, override = host.once(DesiredApps).by_name, active_override(host, name)
    if name not in desired or desired[name][0] != override:
        app = desired_settings(host, name)
        if "pinned" not in override:
            env = environment_variables(host, name, app)
            deploy_key = resolve_sdb(host, f"wsgi:apps:{name}:deploy_key", app["deploy_key"])
            app = app.replace(env=env, deploy_key=deploy_key)
        desired[name] = override, app
    return desired[name][1]


def desired_release(host: Host, name: str) -> Release:
    """
    Return the desired release of an app.

    It is a ``DesiredRelease``, which can be built, unless the app is pinned: then it is the ``Release`` of the pinned
    generation. Raises ``WsgiError`` where that is gone, or where the settings are not available.
    """
    override = active_override(host, name)
    if "pinned" in override:
        return restorable_release(name, override["pinned"])
    return DesiredRelease(host, name, desired_app(host, name))


def restored_settings(host: Host, name: str, id: str) -> App:
    """
    Return an app's settings with those of a generation that was live before.

    id : str
        The generation.

    Raises ``WsgiError`` where these are not kept any more.
    """
    return host.settings.apps[name].replace(**_restorable(name, id)["settings"])


def restorable_release(name: str, id: str) -> Release:
    """Return the release of a generation that was live before; raise ``WsgiError`` where it is not kept any more."""
    return Release(name, _restorable(name, id)["release"])


def _restorable(name: str, id: str) -> dict[str, Any]:
    kept = history.kept_settings(name, id)
    if kept is None or not Release(name, kept["release"]).record:
        raise WsgiError(
            f"generation {id} of {name} does not exist any more: run `wsgi.unpin {name}`, or roll back to another one"
        )
    return kept
