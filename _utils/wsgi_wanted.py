"""
What is wanted of an app: what pillar says, unless a deploy or a rollback on this machine says
otherwise for a while.
"""

import wsgi_release


def app(host, name):
    """
    An app's settings, with the values of its environment, looked up once per run.

    host : wsgi_host.Host
    name : str
        The app, one of ``host.settings.apps``.

    Returns a dict as ``wsgi_settings.Settings.apps`` holds it. Raises ``wsgi_host.Problem`` where
    a value can't be had.
    """
    return host.settings.apps[name]


def release(host, name):
    """
    The release that is wanted of an app.

    Returns a ``wsgi_release.Release``; a ``wsgi_release.Wanted``, which can be built, where it is
    not pinned.
    """
    return wsgi_release.Wanted(host, name, app(host, name))
