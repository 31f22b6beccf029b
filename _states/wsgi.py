"""
The states of an app: its release is built, its generation is live, its site is present; and those of the host.

The states of an app take its name alone, and read all else from pillar below ``wsgi:apps``, so that no secret passes
through a state's arguments. ``wsgi/init.sls`` puts them in their order.
"""

import contextlib
import glob
import os
import pwd
import subprocess

from wsgi_formula import diff, files, salt_run, served
from wsgi_formula.app import history
from wsgi_formula.app.desired import desired_app, desired_release
from wsgi_formula.app.history import HISTORY
from wsgi_formula.app.override import describe_override
from wsgi_formula.app.release import Release, release_hazards
from wsgi_formula.build import ownership
from wsgi_formula.build.tool import Tool
from wsgi_formula.build.users import builder_home, find_user, user_facts
from wsgi_formula.changes.account import delete_user, prepare_user
from wsgi_formula.changes.recovery import recover
from wsgi_formula.changes.retirement import remove_app
from wsgi_formula.changes.switch import Switch, finish
from wsgi_formula.edge import acme, maintenance, static, status_page, tls
from wsgi_formula.edge.nginx import Nginx
from wsgi_formula.edge.status import status_for_page
from wsgi_formula.edge.status_page import FOLDER
from wsgi_formula.errors import WsgiError
from wsgi_formula.host import Host
from wsgi_formula.lock import app_lock
from wsgi_formula.paths import ETC, LIB, LOG, SRV
from wsgi_formula.run.generation import generation_ids, live_generation
from wsgi_formula.run.jobs import check_schedule
from wsgi_formula.run.prepare import adopt, desired_id, replacement_reason
from wsgi_formula.run.record import settings_record

# systemd keeps this link for each service that runs: unit_export_invocation_id in its src/core/unit.c.
INVOCATION = "/run/systemd/units/invocation:{}"
# And this link for each unit that starts at boot.
ENABLED = "/etc/systemd/system/*.wants/{}"
READABLE = {"user": "root", "group": "root", "makedirs": True, "dir_mode": "0755"}

served.note_loaded("_states/wsgi.py", __file__)


def pillar_valid(name):
    """
    The pillar below ``wsgi`` has no problem.

    name : str
        The state's name, which means nothing else.

    Fails with all problems at once. Apps with a problem are not changed; all other apps converge.

    .. code-block:: yaml

        wsgi-pillar:
          wsgi.pillar_valid:
            - order: first
    """
    try:
        host = _host()
        _ = host.served.stale  # raises where the master serves other modules than the formula's
        settings = host.settings
        warnings = release_hazards(host)
    except WsgiError as error:
        return _failure(name, "Nothing was changed", error)
    if not (__opts__["test"] or settings.host_wide):
        with contextlib.suppress(OSError):  # where the disk is full, the states that need it fail
            salt_run.remember(__opts__, host.saltenv)
    if not settings.problems:
        return _warned(_result(name, True, "The pillar below wsgi is valid."), warnings)
    left = "Nothing was changed"
    if not settings.host_wide:
        left = f"Not changed: {', '.join(sorted(settings.broken)) or 'no app'}"
    return _warned(_result(name, False, "\n".join([*settings.messages, f"{left}."])), warnings)


def release_built(name):
    """
    An app's user exists, and its release is built: its code and its environment.

    name : str
        The app.

    .. code-block:: yaml

        hello-release:
          wsgi.release_built:
            - name: hello
    """
    host = _host()
    try:
        recover(host, name)
        app = desired_app(host, name)
        wanted = desired_release(host, name)
        changes = {}
        user = find_user(app["user"])
        if user is None:
            changes["user"] = {"old": None, "new": app["user"]}
        if user is None or not wanted.built(user.pw_gid):
            before = live_generation(host, name)
            changes["release"] = {"old": before and before.release, "new": wanted.id}
        if not changes:
            if wanted.is_damaged and not __opts__["test"]:
                with app_lock(name, "a build"):
                    wanted.mend(user.pw_gid)
            return _result(
                name,
                True,
                _sentences(f"Release {wanted.id} of {name} is already built.", describe_override(host, name)),
            )
        if __opts__["test"]:
            return _result(name, None, f"Release {wanted.id} of {name} would be built.", changes)
        with app_lock(name, "a build"):
            user = prepare_user(host, name, app)
            printed = wanted.build(user.pw_gid)
        if printed:
            changes["hooks"] = printed
    except (WsgiError, OSError) as error:
        if not __opts__["test"]:
            with contextlib.suppress(OSError):
                history.add(host, name, "failed", error=error)
        return _failure(name, f"The release of {name} was not built", error)
    return _result(name, True, f"Release {wanted.id} of {name} was built.", changes)


def generation_live(name):
    """
    The generation that an app's settings ask for receives its traffic, and no other generation runs.

    name : str
        The app. Its release must be built.

    A change starts the new generation beside the old one, waits for its health check, moves the traffic, and retires
    the old one when its last request is answered: ``changes.switch.Switch``. Where that fails, the old generation still
    serves, and the comment tells why.

    .. code-block:: yaml

        hello-live:
          wsgi.generation_live:
            - name: hello
            - require:
              - wsgi: hello-release
    """
    try:
        host = _host()
        current = recover(host, name)
        app = desired_app(host, name)
        release = desired_release(host, name)
        id = desired_id(host, app, release)
        if current:
            adopt(current, id, app, release)
        reason = replacement_reason(current, id)
        if reason:
            return _replaced(host, name, app, release, current, id, reason)
        left = generation_ids(name, keep=current)
        pending = current.record.get("pending_hooks")
        if not left and not pending:
            return _result(
                name, True, _sentences(f"Generation {current.id} of {name} is live.", describe_override(host, name))
            )
        return _finished(host, name, app, current, left, pending)
    except (WsgiError, OSError) as error:
        return _failure(name, _still_serving(name), error)


def _replaced(host, name, app, release, current, id, reason):
    """Replace the live generation by the desired one."""
    changes = _difference(current, id, app, release)
    if __opts__["test"]:
        check_schedule(name, app)
        return _result(name, None, f"Generation {id} of {name} would go live: {reason}.", changes)
    outcome = Switch(host, name, app, release, id).run()
    changes["generation"]["new"] = outcome.generation.id
    return _changed(name, f"Generation {outcome.generation.id} of {name} is live: {reason}.", changes, outcome)


def _finished(host, name, app, current, left, pending):
    """Finish what the last change has left: it was killed, or its after_live commands failed."""
    changes = {**({"retired": left} if left else {}), **({"pending_hooks": pending} if pending else {})}
    if __opts__["test"]:
        return _result(name, None, f"The interrupted change of {name} would be finished.", changes)
    outcome = finish(host, name, app, current)
    return _changed(name, f"The interrupted change of {name} was finished.", changes, outcome)


def _changed(name, comment, changes, outcome):
    if outcome.printed:
        changes["hooks"] = outcome.printed
    return _result(name, not outcome.failures, "\n".join([comment, *outcome.failures]), changes)


def site_present(name):
    """
    nginx's files of an app are written, and nginx accepts them; so are the app's maintenance page, and the static files
    that nginx serves of the live release.

    name : str
        The app.

    .. code-block:: yaml

        hello-site:
          wsgi.site_present:
            - name: hello
            - require:
              - wsgi: hello-live
    """
    try:
        host = _host()
        nginx = host.once(Nginx)
        page = maintenance.page_changes(host, name)
        warnings = tls.check(host, nginx.files.site_of(name))
        served = _unserved(host, name)
        if __opts__["test"]:
            changes = nginx.predicted(name)
        else:
            changes = _site(host, name, served)
        result = _result(
            name, True, f"The site of {name} is in place.", {**({"served": served} if served else {}), **changes}
        )
        if result["changes"] and __opts__["test"]:
            result.update(result=None, comment=f"The site of {name} would be written.")
        for path, source in page.items():
            written = _page(path, source)
            result["changes"][path] = written["changes"]
            result["comment"] = f"The site of {name}: {written['comment']}."
            if written["result"] is not True:
                result["result"] = written["result"]
        # In a dry run, files that the run would make do not exist yet.
        if not __opts__["test"]:
            warnings += static.warnings(host, name, host.settings.apps[name])
        return _warned(result, warnings)
    except (WsgiError, OSError) as error:
        return _failure(name, f"The site of {name} was not changed", error)


def _site(host, name, unserved):
    """Prepare the files that nginx serves of an app, then write its site. Return what of the site changed."""
    nginx = host.once(Nginx)
    if unserved:
        nginx.check(name)
        app = host.settings.apps[name]
        if static.home_differs(host, name, app):
            static.prepare_home(host, name, app, pwd.getpwnam(app["user"]))
        live = static.release_paths(app) and live_generation(host, name)
        if live:
            with app_lock(name, "a change"):
                static.publish(host, name, app, Release(name, live.release))
    return nginx.write(name) if nginx.differs(name) else {}


def _unserved(host, name):
    """Return the paths that nginx is to serve of an app and that are not prepared yet."""
    app = host.settings.apps[name]
    found = [f"{LIB}/home/{name}"] if static.home_differs(host, name, app) else []
    live = static.release_paths(app) and live_generation(host, name)
    return found + (static.outdated(name, app, Release(name, live.release)) if live else [])


def nginx_files(name):
    """
    nginx can start with the formula's files: what a killed run or another program left of them is repaired.

    name : str
        The state's name, which means nothing else.

    .. code-block:: yaml

        nginx-files:
          wsgi.nginx_files: []
    """
    try:
        host = _host()
        if __opts__["test"]:
            return _result(name, True, "A dry run does not test nginx's files.")
        changes, sentence = host.once(Nginx).mend()
    except (WsgiError, OSError) as error:
        return _failure(name, "nginx does not accept its files", error)
    return _result(name, True, sentence or "nginx's files need no repair.", changes)


def nginx_reloaded(name):
    """
    nginx serves the sites as they are written. This state comes after all sites, which are loaded by one reload.

    name : str
        The state's name, which means nothing else.

    .. code-block:: yaml

        wsgi-nginx:
          wsgi.nginx_reloaded: []
    """
    changes = {"nginx": "reloaded"}
    try:
        host = _host()
        nginx = host.once(Nginx)
        if __opts__["test"]:
            if not nginx.needed_changes(*host.settings.apps) and nginx.is_loaded():
                return _result(name, True, "nginx already serves the current sites.")
            return _result(name, None, "nginx would be reloaded.", changes)
        if not nginx.refresh():
            return _result(name, True, "nginx already serves the current sites.")
        configuration = "".join(nginx.installed_files.values())
        for app in host.settings.apps:
            static.forget(app, configuration)
    except (WsgiError, OSError) as error:
        return _failure(name, "nginx was not reloaded and still serves the sites that it has loaded", error)
    return _result(name, True, "nginx was reloaded.", changes)


def certificates_present(name):
    """
    Sites with ``tls: acme`` have a certificate for their hosts. This state comes after nginx serves the sites, since the
    certificate authority validates them by HTTP; until then they have a self-signed certificate.

    name : str
        The state's name, which means nothing else.

    Fails with the client's output for sites that get none; they keep the certificate that they have.

    .. code-block:: yaml

        wsgi-certificates:
          wsgi.certificates_present:
            - require:
              - wsgi: wsgi-nginx
    """
    try:
        host = _host()
        sites = acme.sites_to_obtain(host)
        changes = {site.id: "certificate" for site in sites}
        if not sites:
            return _result(name, True, "Every site has its certificate.")
        if __opts__["test"]:
            return _result(name, None, f"A certificate would be requested for: {', '.join(changes)}.", changes)
        nginx, failures = host.once(Nginx), []
        for site in sites:
            if nginx.files.site(site.id) not in nginx.installed_files:
                failures.append(
                    f"{site.id}: nginx does not serve this site yet, so that the certificate authority cannot validate it."
                )
                del changes[site.id]
                continue
            try:
                acme.obtain(host, site)
            except (WsgiError, OSError) as error:
                failures.append(str(error))
                del changes[site.id]
        nginx.apply(*(name for site in sites if site.id in changes for name in site.apps))
    except (WsgiError, OSError) as error:
        return _failure(name, "No certificate was changed", error)
    return _result(
        name, not failures, "\n".join([f"New certificates: {', '.join(changes) or 'none'}.", *failures]), changes
    )


def status_page_written(name):
    """
    The status page of the apps is written, or removed where pillar has none.

    name : str
        The state's name, which means nothing else.

    Each run writes it, whether other states failed or not. It counts as a change where more than the time and the health
    of apps differs.

    .. code-block:: yaml

        wsgi-status-page:
          wsgi.status_page_written:
            - order: last
    """
    try:
        host = _host()
        if host.settings.status_page is None:
            return __states__["file.absent"](FOLDER)
        failures, upcoming = _this_run()
        facts = status_page.facts(host, status_for_page(host), failures)
        before, after = status_page.written(), status_page.content(facts)
        changes = {"page": {"old": before, "new": after}} if before != after or upcoming else {}
        if __opts__["test"]:
            return _result(name, None if changes else True, "The status page would be written.", changes)
        status_page.write(host, facts)
    except (WsgiError, OSError) as error:
        return _failure(name, "The status page was not written", error)
    return _result(name, True, "The status page was written.", changes)


def _this_run():
    """Return which of the formula's states have failed, as IDs and comments, and whether a dry run predicts a change."""
    states = [state for state in __running__.values() if str(state.get("__sls__")).partition(".")[0] == "wsgi"]
    failures = [
        (state["__id__"], state["comment"])
        for state in states
        # The page lists the pillar's problems itself; a state that did not run has failed elsewhere.
        if state["result"] is False and state.get("__state_ran__", True) and state["__id__"] != "wsgi-pillar"
    ]
    return failures, any(state["result"] is None for state in states)


def service_running(name, socket=None):
    """
    A service runs and starts at boot. Where two links of systemd show that, no process is started.

    name : str
        The service, or the whole name of another systemd unit.
    socket : str
        The path of the unix socket that a socket unit listens on.

    Otherwise ``service.running`` is called.

    .. code-block:: yaml

        nginx-service:
          wsgi.service_running:
            - name: nginx
    """
    unit = name if "." in name else f"{name}.service"
    runs = socket in _host().listening if socket else os.path.lexists(INVOCATION.format(unit))
    if runs and glob.glob(ENABLED.format(unit)):
        return _result(name, True, f"The service {name} runs and starts at boot.")
    with contextlib.suppress(FileNotFoundError):
        shown = subprocess.run(
            ["systemctl", "show", "--property=ActiveState,UnitFileState", name],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=False,
        )
        if set(shown.stdout.split()) == {"ActiveState=active", "UnitFileState=enabled"}:
            return _result(name, True, f"The service {name} runs and starts at boot.")
    return __states__["service.running"](name, enable=True)


def file_installed(name, source, mode="0644", context=None):
    """
    A file of the formula is installed; root owns it and the folders above it that are made. Where it is already there,
    that costs one read, and no request to the master.

    name, source : str
        Its path on the machine, and its URL.
    mode : str
        Its permission bits.
    context : dict
        The variables of the template, where the file is one.

    Otherwise ``file.managed`` is called.

    .. code-block:: yaml

        /usr/local/lib/wsgi/launch:
          wsgi.file_installed:
            - source: salt://wsgi/common/launch
            - mode: '0755'
    """
    try:
        host = _host()
        text = host.text(source) if context is None else host.render(source[len("salt://wsgi/") :], **context)
        if files.has_content(name, text, int(mode, 8)):
            return _result(name, True, f"{name} is in place.")
    except (WsgiError, OSError) as error:
        return _failure(name, "The file was not changed", error)
    return __states__["file.managed"](name, contents=text, mode=mode, **READABLE)


def tool_installed(name, requirements, python="/usr/bin/python3"):
    """
    A program that the formula needs is installed from PyPI, in a virtual environment of its own.

    name : str
        The environment's folder, which root owns with all that is in it.
    requirements : list of str
        The packages that pip installs, with all their dependencies, each with its version.
    python : str
        The interpreter's path; Python 2 needs the program ``virtualenv``.

    pip installs into the environment that is there: its program may be running.

    .. code-block:: yaml

        circus-environment:
          wsgi.tool_installed:
            - name: /usr/local/lib/wsgi/circus
            - requirements: [circus==0.19.0]
    """
    changes = {"installed": requirements}
    try:
        tool = Tool(name, requirements, python)
        if tool.built():
            return _result(name, True, f"{requirements[0]} is already installed.")
        if __opts__["test"]:
            return _result(name, None, f"{requirements[0]} would be installed.", changes)
        tool.build()
    except (WsgiError, OSError) as error:
        return _failure(name, f"{requirements[0]} was not installed", error)
    return _result(name, True, f"{requirements[0]} was installed.", changes)


def app_absent(name, purge=False):
    """
    An app is removed from this machine: its site, processes, configuration and user.

    name : str
        The app.
    purge : bool
        Whether its code, logs and home folder are removed, too. Otherwise they stay, and root alone can read them.

    .. code-block:: yaml

        hello-absent:
          wsgi.app_absent:
            - name: hello
            - purge: true
    """
    try:
        host = _host()
        nginx, facts = host.once(Nginx), user_facts(name)
        kept = [f"{SRV}/{name}", f"{LOG}/{name}", f"{LIB}/home/{name}"]
        gone = [
            f"{ETC}/{name}",
            f"{LIB}/live/{name}",
            f"{LIB}/live/{name}.new",
            f"{HISTORY}/{name}",
            maintenance.marker_path(name),
            maintenance.page_path(name),
            *maintenance.fast_paths(name).values(),
            *nginx.files.app(name),
            static.root(name),
            *nginx.files.cache_dirs(name).values(),
            builder_home(name),
        ]
        logs = nginx.logs(name)
        found = [path for path in gone + (kept + logs) * purge if os.path.lexists(path)]
        if not found:
            return _result(name, True, f"{name} is already absent.")
        changes = {"removed": found}
        users = [user for user in facts.get("made", []) if find_user(user)]
        accounts = [account for account in map(find_user, {facts.get("user"), *users}) if account]
        if users:
            changes["users"] = {"old": users, "new": []}
        if __opts__["test"]:
            return _result(name, None, f"{name} would be removed.", changes)
        remove_app(host, name)
        for user in users:
            delete_user(host, name, user)
        # The next run knows the app by this folder, so that it finishes a removal that was killed.
        known_by = f"{ETC}/{name}"
        for path in found:
            if path != known_by:
                files.remove(path)
        # A later user may get this UID, and would then own these files.
        former = {account.pw_uid for account in accounts}
        for path in filter(os.path.isdir, kept):
            was = os.lstat(path).st_uid
            files.ensure_dir(path, 0o700)
            ownership.give_tree(path, 0, 0, {*former, was})
        files.remove(known_by)
    except (WsgiError, OSError) as error:
        return _failure(name, f"{name} was not removed completely", error)
    return _result(name, True, f"{name} was removed.", changes)


def _host():
    saltenv = __env__ if "wsgi.host" in __context__ else salt_run.saltenv_of(__env__)
    return Host.of_run(__context__, __salt__, __pillar__, __grains__, __opts__, saltenv)


def _result(name, result, comment, changes=None):
    found = {"name": name, "result": result, "changes": changes or {}, "comment": comment}
    return _warned(found, files.take_damage_reports())


def _warned(result, warnings):
    """Add warnings to a state's result. Salt prints a heading for an empty list of them, so that there must be none."""
    return {**result, "warnings": [*result.get("warnings", []), *warnings]} if warnings else result


def _sentences(*sentences):
    return " ".join(filter(None, sentences))


def _failure(name, what, error):
    return _result(name, False, f"{what}: {error}")


def _page(path, source):
    """Install a file that everybody may read with ``file.managed``; without a source, remove it."""
    if source is None:
        return __states__["file.absent"](path)
    written = __states__["file.managed"](path, source=source, mode="0644", **READABLE)
    if "diff" in written["changes"]:
        written["changes"]["diff"] = diff.first_lines(path, written["changes"]["diff"])
    return written


def _still_serving(name):
    current = live_generation(_host(), name)
    if current is None:
        return f"{name} did not go live, and no generation of it runs"
    return f"{name} was not changed; generation {current.id} under {current.server} still serves it"


def _difference(current, id, app, release):
    """Return the differences between the live generation and the desired one, without values of the environment."""
    changes = {"generation": {"old": current and current.id, "new": id}}
    old = current and Release(current.name, current.release).record.get("revision")
    new = release.record.get("revision") or {}
    if old != new and (old or new):
        changes["revision"] = {"old": old, "new": new}
    if current and "damaged" in current.record:
        return changes
    if current is None:
        changes["server"] = {"old": None, "new": app["server"]}
        return changes
    old = {**current.record["settings"], "env": current.record["env"]}
    new = settings_record(app)
    for setting, value in old.items():
        if value != new[setting] and setting != "env":
            changes[setting] = {"old": value, "new": new[setting]}
    names = {**old["env"], **new["env"]}
    changed = sorted(name for name in names if old["env"].get(name) != new["env"].get(name))
    if changed:
        changes["env"] = f"changed: {', '.join(changed)}"
    return changes


# The names that the states had before version 1.0, for sls that use them; version 2.0 removes them.
__func_alias__ = {}
for _old, _new in {
    "absent": app_absent,
    "certificates": certificates_present,
    "daemon": service_running,
    "live": generation_live,
    "nginx": nginx_reloaded,
    "release": release_built,
    "site": site_present,
    "status_page": status_page_written,
    "tool": tool_installed,
}.items():
    # A module that is imported above may have the old name.
    globals()[f"{_old}_"] = _new
    __func_alias__[f"{_old}_"] = _old
