"""
The apps of this machine: what runs, how it fares, and how one app is deployed, rolled back or restarted.
"""

import contextlib
import time

import salt.template
import salt.utils.yaml
from salt.exceptions import CommandExecutionError

try:
    import wsgi_formula  # noqa: F401 - only to give the reason where it is missing
except ImportError as error:
    raise ImportError(
        "wsgi does not run through salt-ssh: install salt-minion on the machine and accept its key, or run salt-call "
        "--local there. On a minion, saltutil.sync_all brings the package wsgi_formula"
    ) from error

from wsgi_formula import files, salt_run, served
from wsgi_formula.app.desired import desired_app, desired_release
from wsgi_formula.app.history import entries as history_entries
from wsgi_formula.app.history import kept_settings
from wsgi_formula.app.override import describe_override
from wsgi_formula.app.release import release_hazards
from wsgi_formula.changes.deploy import deploy_app, end_pin, roll_back
from wsgi_formula.changes.plan import plan_of
from wsgi_formula.changes.recovery import recover
from wsgi_formula.changes.switch import Switch
from wsgi_formula.edge import status_page
from wsgi_formula.edge.maintenance import is_in_maintenance, marker_path, set_maintenance
from wsgi_formula.edge.site_files import SiteFiles
from wsgi_formula.edge.status import known_names, made_of, status_for_page, status_of_apps
from wsgi_formula.errors import WsgiError
from wsgi_formula.host import Host
from wsgi_formula.lock import app_lock
from wsgi_formula.paths import LIB, LOG, SRV
from wsgi_formula.pillar import schema
from wsgi_formula.pillar.edge import STATUS_PAGE
from wsgi_formula.pillar.schema import APP
from wsgi_formula.redact import without_credentials
from wsgi_formula.run.generation import live_generation
from wsgi_formula.run.prepare import adopt, desired_id

UNRENDERED = "The pillar does not render"

served.note_loaded("_modules/wsgi.py", __file__)


def plan(saltenv=None):
    """
    Return what ``wsgi/init.sls`` needs: the apps, and the sls that they need.

    saltenv : str
        The environment that the formula is served from.

    Returns a dict. Its keys are

    - ``host_wide``: bool, whether a problem concerns the whole host, so that nothing may be changed. Where pillar or
      the formula's files cannot be read, the other keys but ``metrics`` and ``status_page`` are missing.
    - ``apps``: a list of dicts with ``name``, ``process_manager`` and ``tools``, the programs that build the release.
      Apps with domains come first, so that a default site is free before another app takes it.
    - ``absent``: a dict of the names of apps to remove to whether to purge them.
    - ``sls``: the names of the sls that the host and the apps need.
    - ``acme``: ``acme``, or ``acme.absent`` where its client was installed and no site needs it any more, or None.
    - ``manages_nginx``: bool, whether the formula installs nginx.
    - ``family``: the contents of ``wsgi/os_family/<family>.yaml``.
    - ``metrics``: ``metrics``, ``metrics.absent`` or None; ``metrics_port`` and ``metrics_socket``.
    - ``status_page``: bool, whether there is a status page to write or to remove.

    Raises CommandExecutionError where the modules that run are not those of the formula that is served.

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
    Return what Salt's ``include`` would return, without its two requests to the master for each sls.

    names : list of str
        Names of the formula's own sls.
    renderers, rendered_sls
        Salt's variables of these names in an sls: its renderers, and the set of the sls that are rendered already.

    Returns a dict of IDs to states.

    .. code-block:: jinja

        {%- for id, state in salt['wsgi.included'](['wsgi.nginx'], renderers, rendered_sls).items() %}
        {{ id | json }}: {{ state | json }}
        {%- endfor %}
    """
    return _included(_host(), names, "wsgi", renderers, rendered_sls)


def present():
    """
    Return every app that has files on this machine, whether pillar names it or not.

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
    Return the merged, validated settings as YAML, without secrets: the values of ``env``, keys, and credentials in
    URLs are left out.

    app : str
        One app. Without it, the settings of all apps and of nginx are returned.
    saltenv : str
        The environment that the formula is served from; by default that of the last state run.

    Returns a str. Raises CommandExecutionError for an app that pillar does not name.

    CLI Example:

    .. code-block:: bash

        salt-call wsgi.settings hello
    """
    found = _host(saltenv).settings
    apps = {name: schema.hide_secrets(each, APP) for name, each in found.apps.items()}
    if app is None:
        page = schema.hide_secrets(found.status_page or {}, STATUS_PAGE)
        shown = {"apps": apps, "nginx": found.nginx, **({"status_page": page} if page else {})}
    else:
        shown = apps[_known_app(app, apps)]
    return without_credentials(salt.utils.yaml.safe_dump(shown, default_flow_style=False))


def validate(saltenv=None):
    """
    Check the pillar below ``wsgi``, and that the master serves the formula's files unchanged. Nothing is changed.

    saltenv : str
        The environment that the formula is served from; by default that of the last state run.

    Returns True, or a list of all problems and then of warnings about settings that are likely to break an app. With
    ``salt-call --retcode-passthrough`` the exit code is 1 where there is a problem.

    CLI Example:

    .. code-block:: bash

        salt-call wsgi.validate
    """
    host = _host(saltenv, partial=True)
    errors = host.pillar.get("_errors")
    if errors:
        __context__["retcode"] = 1
        return [f"{UNRENDERED}: {error}" for error in errors]
    problems = [*host.settings.messages, *host.served.differing()]
    if problems:
        __context__["retcode"] = 1
    return [*problems, *(f"warning: {sentence}" for sentence in release_hazards(host))] or True


def status(app=None, patience=None, processes=True, saltenv=None):
    """
    Return what runs of each app, and whether it is healthy.

    app : str
        One app; by default all that are in pillar or on this machine.
    patience : float
        Seconds that all health checks may take together; by default each app's ``request_timeout``.
    processes : bool
        Whether to ask the process managers. Without them, PIDs, memory and the programs beside the server are left out.
    saltenv : str
        The environment that the formula is served from; by default that of the last state run.

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
    return status_of_apps(host, names if app is None else [_known_app(app, names)], patience, processes)


def restart(app, saltenv=None):
    """
    Replace the live generation by a new one with the same settings, without losing a request.

    app : str
    saltenv : str
        The environment that the formula is served from; by default that of the last state run.

    Returns the id of the new generation. Raises CommandExecutionError where it is not healthy, and the old one still
    serves; or where pillar has changed since the live one was made.

    CLI Example:

    .. code-block:: bash

        salt-call wsgi.restart hello
    """
    host = _host(saltenv)
    with _salt_errors(host):
        _valid_app(host, app)
        with app_lock(app, "wsgi.restart", patience=0):
            current = recover(host, app)
            wanted, release = desired_app(host, app), desired_release(host, app)
            id = desired_id(host, wanted, release)
            if current:
                adopt(current, id, wanted, release)
            if current is None or current.desired_id != id:
                raise WsgiError(f"pillar has changed since the live generation of {app} was made: run state.apply wsgi")
            return _changed(Switch(host, app, wanted, release, id).run())["generation"]


def deploy(app, rev=None, source=None, wait=0, saltenv=None):
    """
    Build and switch one app, and nothing else, without losing a request.

    app : str
    rev : str
        A branch, tag or commit of its repository, or a version of its package, that replaces the one in pillar until
        pillar's ``source`` changes.
    source : str
        Another source, written as in pillar. Without ``rev`` and ``source``, pillar's own is deployed.
    wait : int
        Seconds to wait for another run that is changing the app.
    saltenv : str
        The environment that the formula is served from; by default that of the last state run.

    Returns a dict: ``generation``, ``release``, ``source``, ``revision``, ``printed`` (the output of the app's
    commands), and ``note``, what that means for the next highstate. Raises CommandExecutionError where the new
    generation is not healthy, and the old one still serves.

    CLI Example:

    .. code-block:: bash

        salt '*' wsgi.deploy shop rev=v1.5
    """
    host = _host(saltenv)
    with _salt_errors(host):
        return _changed(deploy_app(host, _valid_app(host, app), rev, source, wait), host)


def rollback(app, to=None, pin=False, saltenv=None):
    """
    Go back to a generation that was live before, with its settings, without losing a request.

    app : str
    to : str
        A generation or a release that ``wsgi.history`` names; by default the one before the live one.
    pin : bool
        Whether the app stays there until ``wsgi.unpin``, even when pillar changes.
    saltenv : str
        The environment that the formula is served from; by default that of the last state run.

    Returns a dict as ``deploy`` does. Raises CommandExecutionError where the generation is not healthy, and the live
    one still serves.

    CLI Example:

    .. code-block:: bash

        salt-call wsgi.rollback shop pin=True
    """
    host = _host(saltenv)
    if isinstance(to, int):  # Salt reads an id without a letter as a number.
        to = str(to).zfill(10)
    with _salt_errors(host):
        found = _changed(roll_back(host, _valid_app(host, app), to, pin), host)
    if not pin:
        found["note"] = (
            "The next highstate goes forward again to what pillar asks for: change pillar, or roll back with pin=True."
        )
    return found


def unpin(app, saltenv=None):
    """
    End a pin: the next run brings the app to what pillar asks for.

    app : str
    saltenv : str
        The environment that the formula is served from; by default that of the last state run.

    Returns a sentence.

    CLI Example:

    .. code-block:: bash

        salt-call wsgi.unpin shop
    """
    host = _host(saltenv)
    with _salt_errors(host):
        if end_pin(host, _valid_app(host, app)):
            return f"{app} is not pinned any more; the next highstate brings it to what pillar asks for."
        return f"{app} was not pinned."


def history(app, limit=20, saltenv=None):
    """
    Return the changes of an app: which generation went live when, from which source, by which run, and what failed.

    app : str
    limit : int
        The number of entries, the newest first.
    saltenv : str
        The environment that the formula is served from; by default that of the last state run.

    Returns a list of dicts: ``at`` (local time), ``event`` (``live``, ``rollback`` or
    ``failed``), ``generation``, ``release``, ``source``, ``revision``, ``server``, ``by`` (the
    ``function``, ``jid`` and ``user`` of the run), ``error``, the number of ``times`` that it failed so, and
    whether ``wsgi.rollback`` can go back to it, as ``can_roll_back``.

    CLI Example:

    .. code-block:: bash

        salt-call wsgi.history shop
    """
    _known_app(app, {*_host(saltenv, partial=True).settings.apps, *present()})
    entries = [
        {
            **{fact: value for fact, value in entry.items() if fact != "change"},
            "at": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry["at"])),
            "can_roll_back": bool(entry.get("generation") and kept_settings(app, entry["generation"])),
        }
        for entry in history_entries(app)
    ]
    return entries[::-1][: int(limit)]


def maintenance(app, state=None, saltenv=None):
    """
    Put an app into maintenance, in which nginx answers its requests with 503 and a page; or tell whether it is in it.

    app : str
    state : str or bool
        ``on`` or ``off``. Without it, nothing is changed.
    saltenv : str
        The environment that the formula is served from; by default that of the last state run.

    Maintenance lasts until it is switched off: through highstates, changes of the app and reboots. Requests that have
    begun are finished. Pillar's ``maintenance`` sets the page and ``Retry-After``.

    Returns a str. Raises CommandExecutionError for anything else, and for an app that is not live.

    CLI Example:

    .. code-block:: bash

        salt-call wsgi.maintenance hello on
    """
    host = _host(saltenv)
    _known_app(app, known_names(host))
    if live_generation(host, app) is None:
        raise CommandExecutionError(f"{app} is not live, so that it cannot be put into maintenance")
    if state is not None:
        # Salt reads `on` and `off` of a command line as booleans.
        wanted = {"on": True, "true": True, "off": False, "false": False}.get(str(state).lower())
        if wanted is None:
            raise CommandExecutionError(f"{state!r} is not a state of maintenance; it must be on or off")
        if wanted and marker_path(app) not in (files.read(SiteFiles(host).app(app).locations) or ""):
            raise CommandExecutionError(f"nginx has no site of {app} yet: run state.apply wsgi")
        set_maintenance(app, wanted)
        _update_status_page(host)
    if is_in_maintenance(app):
        return f"{app} is in maintenance: nginx answers 503 until `wsgi.maintenance {app} off`."
    return f"{app} is not in maintenance."


def logs(app, lines=50, process=None, saltenv=None):
    """
    Return the last lines of an app's log: what its live server and the app itself have written.

    app : str
    lines : int
        The number of lines.
    process : str
        A name of ``processes`` or ``schedule``, for the log of that program.
    saltenv : str
        The environment that the formula is served from; by default that of the last state run.

    Returns a str, in which the values of the app's ``env`` are replaced by ``***``.

    CLI Example:

    .. code-block:: bash

        salt-call wsgi.logs hello lines=100
        salt-call wsgi.logs hello process=worker
    """
    host = _host(saltenv, partial=True)
    current = live_generation(host, _known_app(app, known_names(host)))
    if current is None:
        raise CommandExecutionError(f"{app} is not live; older logs are in {LOG}/{app}")
    if process is None:
        return current.log_tail(lines)
    names = [name for kind in ("processes", "schedule") for name in current.record["settings"].get(kind, {})]
    if process not in names:
        raise CommandExecutionError(f"{process!r} is not a process of {app} ({', '.join(names) or 'it has none'})")
    return current.log_tail(lines, current.log_of(process))


def _plan(saltenv):
    try:
        host = _host(saltenv)
        _check_modules(host)
        return plan_of(host)
    except WsgiError:
        # The state wsgi-pillar gives the reason. Salt would log it with a traceback if an sls raised it.
        return {"host_wide": True, "metrics": None, "status_page": False}


def _check_modules(host):
    """Raise where the modules that run are not those of the formula that is served: state.apply alone does not sync them."""
    unsynced, unloaded = host.served.stale
    if unsynced:
        where = "" if host.saltenv == "base" else f" saltenv={host.saltenv}"
        raise CommandExecutionError(
            f"The minion's copy of {', '.join(unsynced)} is outdated: run saltutil.sync_all{where}, "
            "then repeat this (state.highstate does both)"
        )
    if unloaded:
        raise CommandExecutionError(
            f"This minion has synced {', '.join(unloaded)}, but still runs the modules that it had loaded before: restart "
            "salt-minion, then repeat this"
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
def _salt_errors(host):
    """Raise what goes wrong as the error that Salt's command line shows without a traceback; update the status page."""
    try:
        yield
    except OSError as error:
        raise CommandExecutionError(str(error)) from error
    finally:
        _update_status_page(host)


def _update_status_page(host):
    """Update the status page, where there is one. A failure of that does not fail what was done."""
    if host.settings.status_page:
        with contextlib.suppress(WsgiError, OSError):
            status_page.write(host, status_page.facts(host, status_for_page(host)))


def _changed(outcome, host=None):
    """Return the outcome of a change. Raises ``WsgiError`` where something failed after the new generation was live."""
    found = {"generation": outcome.generation.id, "release": outcome.generation.release}
    found.update(made_of(outcome.generation))
    if outcome.printed:
        found["printed"] = outcome.printed
    note = host and describe_override(host, outcome.generation.name)
    if note:
        found["note"] = note
    if outcome.failures:
        raise WsgiError("\n".join([f"Generation {outcome.generation.id} is live, but:", *outcome.failures]))
    return found


def _valid_app(host, app):
    """Return an app's name, where pillar has it and it has no problem."""
    _check_modules(host)
    found = [str(problem) for problem in host.settings.problems if problem.app == app]
    if app in host.settings.broken and found:
        raise CommandExecutionError("\n".join(found))
    return _known_app(app, host.settings.apps)


def _known_app(app, names):
    if app not in names:
        raise CommandExecutionError(
            f"{app!r} is not an app of this machine ({', '.join(sorted(names)) or 'it has none'})"
        )
    return app


def _host(saltenv=None, partial=False):
    """
    Return the host of the state run that asks; else one of this call's own, with the pillar as it is now.

    saltenv : str
        The environment that the formula is served from, where the caller says it.
    partial : bool
        Whether a pillar is good enough of which something does not render.
    """
    if salt_run.in_state_run():
        saltenv = saltenv or salt_run.saltenv_of(__opts__.get("saltenv"))
        return Host.of_run(__context__, __salt__, __pillar__, __grains__, __opts__, saltenv)
    pillar, saltenv = salt_run.compile_pillar(__opts__, __grains__, __pillar__, saltenv)
    errors = pillar.get("_errors")
    if errors and not partial:
        raise CommandExecutionError("\n".join([f"{UNRENDERED}, and nothing was changed:", *errors]))
    return Host.of_call(__salt__, pillar, __grains__, __opts__, saltenv)
