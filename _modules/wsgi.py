"""
What serves the apps of this machine, and how they fare.
"""

import contextlib
import os
import time

import salt.template
import salt.utils.yaml
from salt.exceptions import CommandExecutionError
from wsgi_formula import files, salt_run, served
from wsgi_formula.app.desired import desired_app, desired_release
from wsgi_formula.app.history import entries as history_entries
from wsgi_formula.app.history import kept_settings
from wsgi_formula.app.override import describe_override
from wsgi_formula.app.release import release_hazards
from wsgi_formula.changes import switch
from wsgi_formula.changes.deploy import deploy_app, end_pin, roll_back
from wsgi_formula.edge import status_page
from wsgi_formula.edge.acme import RELOAD
from wsgi_formula.edge.maintenance import is_in_maintenance, marker_path, set_maintenance
from wsgi_formula.edge.site_files import SiteFiles
from wsgi_formula.edge.status import known_names, made_of, status_for_page, status_of_apps
from wsgi_formula.edge.status_page import PAGE
from wsgi_formula.errors import Problem
from wsgi_formula.host import Host
from wsgi_formula.lock import app_lock
from wsgi_formula.paths import LIB, LOG, SRV
from wsgi_formula.pillar import schema
from wsgi_formula.pillar.edge import METRICS_PORT, METRICS_SOCKET, STATUS_PAGE
from wsgi_formula.pillar.schema import APP
from wsgi_formula.pillar.source import parse_source
from wsgi_formula.redact import without_credentials
from wsgi_formula.run.generation import desired_id, live_generation
from wsgi_formula.run.programs import log_of, managers_of

UNRENDERED = "The pillar does not render"
METRICS_UNIT = "/etc/systemd/system/wsgi-metrics.socket"

served.note_loaded("_modules/wsgi.py", __file__)


def plan(saltenv=None):
    """
    What ``wsgi/init.sls`` needs to know: which apps there are, and which sls they need.

    saltenv : str
        The environment that the formula is served from.

    Returns a dict: ``host_wide`` (bool: nothing may be touched; where nothing can be known, not much else),
    ``apps`` (a list of dicts with ``name``, ``process_manager`` and ``tools``; those with domains first, so that a
    default site is given up before it is taken; a tool is what a release is built with), ``absent`` (names to
    whether to purge), ``sls`` (the names of the sls that the host and the apps need), ``acme`` (the sls
    that brings the client of a certificate authority, or takes away what was for it, or None),
    ``manages_nginx`` (bool: nginx itself is the formula's), ``family`` (what
    ``wsgi/os_family/<family>.yaml`` says), ``metrics`` (the same of the host's metrics), ``metrics_port``,
    ``metrics_socket``, and ``status_page`` (whether there is to be one, or was). Raises
    CommandExecutionError where the modules that run are not the formula's any more.

    CLI Example:

    .. code-block:: bash

        salt-call wsgi.plan
    """
    if not salt_run.in_state_run():
        return _plan(saltenv)
    # Each sls asks.
    if "wsgi.plan" not in __context__:
        __context__["wsgi.plan"] = _plan(saltenv)
    return __context__["wsgi.plan"]


def included(names, renderers, rendered_sls):
    """
    What Salt's ``include`` would come to, without the two requests to the master that it makes for each sls.

    names : list of str
        Names of the formula's own sls.
    renderers, rendered_sls
        What Salt gives to a template under these names: its renderers, and the set of the sls that are rendered.

    Returns a dict of IDs to states, for the sls of the same run.

    .. code-block:: jinja

        {%- for id, state in salt['wsgi.included'](['wsgi.nginx'], renderers, rendered_sls).items() %}
        {{ id | json }}: {{ state | json }}
        {%- endfor %}
    """
    return _included(_host(), names, "wsgi", renderers, rendered_sls)


def present():
    """
    Every app that left a trace on this machine, whatever pillar says.

    Returns a sorted list of names.

    CLI Example:

    .. code-block:: bash

        salt-call wsgi.present
    """
    traces = {*Host.known_apps()}
    for folder in (SRV, LOG, f"{LIB}/home"):
        traces.update(files.list_dir(folder))
    return sorted(traces)


def settings(app=None, saltenv=None):
    """
    The merged, validated settings as YAML, with no secret: the values of ``env``, keys, and
    credentials in URLs are left out.

    app : str
        One app; all of them and nginx's when not given.
    saltenv : str
        The environment that the formula is served from; that of the last state run when not given.

    Returns a str. Raises CommandExecutionError for an app that pillar does not name.

    CLI Example:

    .. code-block:: bash

        salt-call wsgi.settings hello
    """
    found = _host(saltenv).settings
    apps = {name: schema.shown(each, APP) for name, each in found.apps.items()}
    if app is None:
        page = schema.shown(found.status_page or {}, STATUS_PAGE)
        shown = {"apps": apps, "nginx": found.nginx, **({"status_page": page} if page else {})}
    else:
        shown = apps[_named(app, apps)]
    return without_credentials(salt.utils.yaml.safe_dump(shown, default_flow_style=False))


def validate(saltenv=None):
    """
    Check the pillar below ``wsgi``, and whether the master serves the formula's files as they are; touch nothing.

    saltenv : str
        The environment that the formula is served from; that of the last state run when not given.

    Returns True, or a list of all problems, then of what is allowed and likely to break an app,
    marked as a warning; with ``salt-call --retcode-passthrough`` the exit code tells of problems.

    CLI Example:

    .. code-block:: bash

        salt-call wsgi.validate
    """
    host = _host(saltenv, partial=True)
    errors = host.pillar.get("_errors")
    if errors:
        __context__["retcode"] = 1
        return [f"{UNRENDERED}: {error}" for error in errors]
    problems = [*host.settings.problems, *host.served.differing()]
    if problems:
        __context__["retcode"] = 1
    return [*problems, *(f"warning: {sentence}" for sentence in release_hazards(host))] or True


def status(app=None, patience=None, processes=True, saltenv=None):
    """
    What runs, and how it fares.

    app : str
        One app; all that are in pillar or on this machine when not given.
    patience : float
        Seconds that all health checks may take together; each app's ``request_timeout`` when not given.
    processes : bool
        Whether to ask the process managers, too; what they know is left out otherwise.
    saltenv : str
        The environment that the formula is served from; that of the last state run when not given.

    Returns a dict of apps to dicts: ``server``, ``version``, ``process_manager``, ``generation``,
    ``release``, ``source`` and ``revision`` it was made from, ``override`` (what a deploy or a pin says
    instead of pillar), ``domains``, ``listen``, ``mount``, ``tls`` (the port of TLS, or None), ``workers``,
    ``health`` (``ok``, ``status`` and ``latency_ms``, of one request to the live socket), ``pids``,
    ``memory_mib`` (PSS of all processes), ``uptime_s`` (of the master) and ``since`` (when it went live,
    local time). Where there are any, ``processes`` (names to PIDs, None for one that is down) and
    ``schedule`` (names to ``calendar``, ``next``, ``last`` and ``result``, which is systemd's word for it);
    and ``maintenance: True`` while it is in maintenance. An app that has no live generation has only
    ``live: False``.

    CLI Example:

    .. code-block:: bash

        salt-call wsgi.status
    """
    host = _host(saltenv, partial=True)
    names = known_names(host)
    return status_of_apps(host, names if app is None else [_named(app, names)], patience, processes)


def restart(app, saltenv=None):
    """
    Put a new generation of the same settings in the place of the live one, losing no request.

    app : str
    saltenv : str
        The environment that the formula is served from; that of the last state run when not given.

    Returns the id of the new generation. Raises CommandExecutionError when it would not
    serve, and the one before serves on; or when pillar asks for something else by now.

    CLI Example:

    .. code-block:: bash

        salt-call wsgi.restart hello
    """
    host = _host(saltenv)
    with _told(host):
        _asked(host, app)
        with app_lock(app, "wsgi.restart", patience=0):
            current = switch.recover(host, app)
            wanted, release = desired_app(host, app), desired_release(host, app)
            id = desired_id(host, wanted, release)
            if current is None or current.hash != id:
                raise Problem(f"pillar asks for another generation of {app} than is live: state.apply wsgi")
            return _done(switch.change(host, app, wanted, release, id))["generation"]


def deploy(app, rev=None, source=None, wait=0, saltenv=None):
    """
    Build and switch one app, and nothing else, losing no request.

    app : str
    rev : str
        A branch, tag or commit of its repository, or a version of its package, instead of
        pillar's; until pillar's ``source`` changes, which then has the last word.
    source : str
        Another source altogether, as pillar would have it. Without either, pillar's own.
    wait : int
        Seconds to wait for another run that is changing the app.
    saltenv : str
        The environment that the formula is served from; that of the last state run when not given.

    Returns a dict: ``generation``, ``release``, ``source``, ``revision``, what its own commands
    ``printed``, and ``note``, what that means for the next highstate. Raises
    CommandExecutionError when it would not serve, and what was live serves on.

    CLI Example:

    .. code-block:: bash

        salt '*' wsgi.deploy shop rev=v1.5
    """
    host = _host(saltenv)
    with _told(host):
        return _done(deploy_app(host, _asked(host, app), rev, source, wait), host)


def rollback(app, to=None, pin=False, saltenv=None):
    """
    Go back to what was live before, settings and all, losing no request.

    app : str
    to : str
        A generation or a release that ``wsgi.history`` names; the one before when not given.
    pin : bool
        Whether to stay there, whatever pillar says, until ``wsgi.unpin``.
    saltenv : str
        The environment that the formula is served from; that of the last state run when not given.

    Returns a dict as ``deploy`` does. Raises CommandExecutionError when it would not serve, and
    what was live serves on.

    CLI Example:

    .. code-block:: bash

        salt-call wsgi.rollback shop pin=True
    """
    host = _host(saltenv)
    if isinstance(to, int):  # Salt reads an id that has no letter in it as a number.
        to = str(to).zfill(10)
    with _told(host):
        found = _done(roll_back(host, _asked(host, app), to, pin), host)
    if not pin:
        found["note"] = (
            "The next highstate goes forward again, to what pillar says: change pillar, or roll back with pin=True."
        )
    return found


def unpin(app, saltenv=None):
    """
    Let pillar have its word on an app again, with the next run.

    app : str
    saltenv : str
        The environment that the formula is served from; that of the last state run when not given.

    Returns a sentence.

    CLI Example:

    .. code-block:: bash

        salt-call wsgi.unpin shop
    """
    host = _host(saltenv)
    with _told(host):
        if end_pin(host, _asked(host, app)):
            return f"{app} is not pinned any more; the next highstate brings it to what pillar says."
        return f"{app} was not pinned."


def history(app, limit=20, saltenv=None):
    """
    What went live when, from what, by which run, and what failed and why.

    app : str
    limit : int
        How many entries, the newest first.
    saltenv : str
        The environment that the formula is served from; that of the last state run when not given.

    Returns a list of dicts: ``at`` (local time), ``event`` (``live``, ``rollback`` or
    ``failed``), ``generation``, ``release``, ``source``, ``revision``, ``server``, ``by`` (the
    ``function``, ``jid`` and ``user`` of the run), ``error``, how many ``times`` it failed so, and
    whether there is a ``way_back`` to it.

    CLI Example:

    .. code-block:: bash

        salt-call wsgi.history shop
    """
    _named(app, {*_host(saltenv, partial=True).settings.apps, *present()})
    entries = [
        {
            **{fact: value for fact, value in entry.items() if fact != "change"},
            "at": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry["at"])),
            "way_back": bool(entry.get("generation") and kept_settings(app, entry["generation"])),
        }
        for entry in history_entries(app)
    ]
    return entries[::-1][: int(limit)]


def maintenance(app, state=None, saltenv=None):
    """
    Have nginx answer an app's requests with 503 and a page, or tell whether it does.

    app : str
    state : str or bool
        ``on`` or ``off``; nothing is changed when not given.
    saltenv : str
        The environment that the formula is served from; that of the last state run when not given.

    It holds until it is switched off: over highstates, changes of the app and reboots. Requests in
    flight are finished. Page and ``Retry-After`` are what pillar says below ``maintenance``.

    Returns a str. Raises CommandExecutionError for anything else, and for an app that is not live.

    CLI Example:

    .. code-block:: bash

        salt-call wsgi.maintenance hello on
    """
    host = _host(saltenv)
    _named(app, known_names(host))
    if live_generation(host, app) is None:
        raise CommandExecutionError(f"{app} is not live: it gets no requests that maintenance could answer")
    if state is not None:
        # Salt reads on and off of a command line as booleans.
        wanted = {"on": True, "true": True, "off": False, "false": False}.get(str(state).lower())
        if wanted is None:
            raise CommandExecutionError(f"{state!r} is not a state of maintenance (on, off)")
        if wanted and marker_path(app) not in (files.read(SiteFiles(host).app(app).locations) or ""):
            raise CommandExecutionError(f"the site of {app} is not in place: state.apply wsgi")
        set_maintenance(app, wanted)
        _tell(host)
    if is_in_maintenance(app):
        return f"{app} is in maintenance: nginx answers 503 until `wsgi.maintenance {app} off`."
    return f"{app} is not in maintenance."


def logs(app, lines=50, process=None, saltenv=None):
    """
    The last lines of an app's log: what its live server and it itself wrote.

    app : str
    lines : int
        How many.
    process : str
        A name of ``processes`` or ``schedule``, for what that wrote.
    saltenv : str
        The environment that the formula is served from; that of the last state run when not given.

    Returns a str, in which the values of the app's ``env`` are left out.

    CLI Example:

    .. code-block:: bash

        salt-call wsgi.logs hello lines=100
        salt-call wsgi.logs hello process=worker
    """
    host = _host(saltenv, partial=True)
    current = live_generation(host, _named(app, known_names(host)))
    if current is None:
        raise CommandExecutionError(f"{app} is not live; older logs lie in {LOG}/{app}")
    if process is None:
        return current.log_tail(lines)
    names = [name for kind in ("processes", "schedule") for name in current.record["settings"].get(kind, {})]
    if process not in names:
        raise CommandExecutionError(f"{process!r} is not a process of {app} ({', '.join(names) or 'there is none'})")
    return current.log_tail(lines, log_of(current, process))


def _plan(saltenv):
    try:
        host = _host(saltenv)
        _check_modules(host)
        settings = host.settings
    except Problem:
        # The state wsgi-pillar says why. Salt would log it with a traceback if an sls raised it.
        return {"host_wide": True, "metrics": None, "status_page": False}
    apps = sorted(settings.apps, key=lambda name: (not settings.apps[name]["domains"], name))
    gone = set(host.known_apps()) - set(settings.apps) - settings.broken - set(settings.absent)
    servers = sorted({app["server"] for app in settings.apps.values()})
    managers = sorted({name for app in settings.apps.values() for name in managers_of(app)})
    tools = sorted({tool for app in settings.apps.values() for tool in _tools(app)})
    # A certificate of an app that has a problem is still to be renewed.
    acme = _sls(
        "acme",
        any(site.tls and site.tls["certificate"] == "acme" for site in settings.sites.values()),
        os.path.exists(RELOAD) and not settings.broken,
    )
    metrics = _sls("metrics", settings.nginx["metrics"], os.path.exists(METRICS_UNIT))
    return {
        "host_wide": settings.host_wide,
        "apps": [
            {
                "name": name,
                "process_manager": settings.apps[name]["process_manager"],
                "tools": sorted(_tools(settings.apps[name])),
            }
            for name in apps
        ],
        "absent": {
            **{name: settings.defaults["purge"] for name in sorted(gone)},
            **{name: app["purge"] for name, app in settings.absent.items()},
        },
        "sls": [f"wsgi.{name}" for name in ("common", "nginx", acme, *servers, *managers, *tools, metrics) if name],
        "acme": acme,
        "manages_nginx": settings.nginx["manage"],
        "family": host.family,
        "metrics": metrics,
        "metrics_port": METRICS_PORT,
        "metrics_socket": METRICS_SOCKET,
        "status_page": bool(settings.status_page) or os.path.exists(PAGE),
    }


def _sls(name, wanted, there):
    """The sls that brings something, or takes away what there is of it, or None."""
    return name if wanted else f"{name}.absent" if there else None


def _tools(app):
    """Which sls an app's release needs besides Python: of what fetches and installs it."""
    git = parse_source(app["source"]).kind == "git"
    return {tool for tool, needed in (("git", git), ("uv", app["installer"] == "uv")) if needed}


def _check_modules(host):
    """Refuse to go on with modules of ours that are not as the formula has them: state.apply alone does not sync them."""
    unsynced, unloaded = host.served.stale
    if unsynced:
        where = "" if host.saltenv == "base" else f" saltenv={host.saltenv}"
        raise CommandExecutionError(
            f"The minion's copy of {', '.join(unsynced)} is not the formula's any more: run saltutil.sync_all{where}, "
            "then this again (state.highstate does both)"
        )
    if unloaded:
        raise CommandExecutionError(
            f"This minion has synced {', '.join(unloaded)}, and still runs what it had loaded before: restart "
            "salt-minion, then run this again"
        )


def _included(host, names, by, renderers, rendered_sls):
    found = {}
    options = [__opts__[option] for option in ("renderer", "renderer_blacklist", "renderer_whitelist")]
    for name in names:
        if f"{host.saltenv}:{name}" in rendered_sls:
            continue
        rendered_sls.add(f"{host.saltenv}:{name}")
        path = f"salt://{name.replace('.', '/')}"
        file = host.served.file(f"{path}/init.sls") or host.served.file(f"{path}.sls")
        states = salt.template.compile_template(
            file, renderers, *options, saltenv=host.saltenv, sls=name, rendered_sls=rendered_sls
        )
        states = {**_included(host, states.pop("include", []), name, renderers, rendered_sls), **states}
        # As Salt marks them, so that `require: [sls: …]` finds them.
        for state in states.values():
            state.setdefault("__sls__", name)
            state.setdefault("__sls_included_from__", []).append(by)
        if not found.keys().isdisjoint(states):
            raise CommandExecutionError(f"{name} has an ID that another sls has, too: {found.keys() & states.keys()}")
        found.update(states)
    return found


@contextlib.contextmanager
def _told(host):
    """What goes wrong, as Salt's command line has it."""
    try:
        yield
    except OSError as error:
        raise CommandExecutionError(str(error)) from error
    finally:
        _tell(host)


def _tell(host):
    """Write the status page anew, where there is one; what was done does not depend on that."""
    if host.settings.status_page:
        with contextlib.suppress(Problem, OSError):
            status_page.write(host, status_page.facts(host, status_for_page(host)))


def _done(done, host=None):
    """What a change came to; raises ``Problem`` where something failed when it was too late to leave all as it was."""
    found = {"generation": done.generation.id, "release": done.generation.release}
    found.update(made_of(done.generation))
    if done.printed:
        found["printed"] = done.printed
    note = host and describe_override(host, done.generation.name)
    if note:
        found["note"] = note
    if done.failures:
        raise Problem("\n".join([f"Generation {done.generation.id} is live, but:", *done.failures]))
    return found


def _asked(host, app):
    """An app's name, if pillar has it without a problem."""
    _check_modules(host)
    found = [problem for problem in host.settings.problems if problem.startswith(f"wsgi:apps:{app}:")]
    if app in host.settings.broken and found:
        raise CommandExecutionError("\n".join(found))
    return _named(app, host.settings.apps)


def _named(app, names):
    if app not in names:
        raise CommandExecutionError(f"{app!r} is not an app here ({', '.join(sorted(names)) or 'there is none'})")
    return app


def _host(saltenv=None, partial=False):
    """
    Return the host of the state run that asks; else one of this call's own, with the pillar as it is now.

    saltenv : str
        The environment that the formula is served from, where the caller says it.
    partial : bool
        Whether a pillar is good enough of which something does not render.
    """
    salt_run.check_transport(__opts__)
    if salt_run.in_state_run():
        saltenv = saltenv or salt_run.saltenv_of(__opts__.get("saltenv"))
        return Host.of_run(__context__, __salt__, __pillar__, __grains__, __opts__, saltenv)
    pillar, saltenv = salt_run.compile_pillar(__opts__, __grains__, __pillar__, saltenv)
    errors = pillar.get("_errors")
    if errors and not partial:
        raise CommandExecutionError("\n".join([f"{UNRENDERED}, and nothing was touched:", *errors]))
    return Host.of_call(__salt__, pillar, __grains__, __opts__, saltenv)
