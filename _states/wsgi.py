"""
An app in a few states, each a whole idea: its release, its live generation, its site.

They take nothing but the app's name; what it should be like they know from pillar, below
``wsgi:apps``, so that no secret passes through a state's arguments. ``wsgi/init.sls`` writes
them down in their order.
"""

import contextlib
import glob
import os
import pwd
import subprocess

from wsgi_formula import diff, files, salt_run, served, step
from wsgi_formula.app import history
from wsgi_formula.app.desired import desired_app, desired_release
from wsgi_formula.app.history import HISTORY
from wsgi_formula.app.override import describe_override
from wsgi_formula.app.release import Release, release_hazards
from wsgi_formula.build import ownership
from wsgi_formula.build.tool import Tool
from wsgi_formula.build.users import builder_home, find_user, make_user, remember_user, user_facts
from wsgi_formula.changes import removal, switch
from wsgi_formula.changes.switch import Change
from wsgi_formula.edge import acme, maintenance, static, status_page, tls
from wsgi_formula.edge.nginx import Nginx
from wsgi_formula.edge.status import status_for_page
from wsgi_formula.edge.status_page import FOLDER
from wsgi_formula.errors import Problem
from wsgi_formula.host import Host
from wsgi_formula.lock import app_lock
from wsgi_formula.paths import ETC, LIB, LOG, SRV
from wsgi_formula.run.generation import desired_id, generation_ids, live_generation, replacement_reason, settings_record
from wsgi_formula.run.programs import check_programs

# systemd keeps such a link for each service that runs: unit_export_invocation_id in its src/core/unit.c.
INVOCATION = "/run/systemd/units/invocation:{}"
# And such ones for what starts at boot.
WANTED = "/etc/systemd/system/*.wants/{}"
READABLE = {"user": "root", "group": "root", "makedirs": True, "dir_mode": "0755"}

served.note_loaded("_states/wsgi.py", __file__)


def pillar_valid(name):
    """
    All of the pillar's problems at once.

    name : str
        Nothing but the state's name.

    Fails when there is one. What it is about is left as it is; all other apps converge.

    .. code-block:: yaml

        wsgi-pillar:
          wsgi.pillar_valid:
            - order: first
    """
    try:
        host = _host()
        _ = host.served.stale  # raises where the master serves other modules than the formula has
        settings = host.settings
        warnings = release_hazards(host)
    except Problem as error:
        return _failure(name, "Nothing was touched", error)
    if not (__opts__["test"] or settings.host_wide):
        with contextlib.suppress(OSError):  # what needs the disk fails for itself
            salt_run.remember(__opts__, host.saltenv)
    if not settings.problems:
        return _warned(_result(name, True, "The pillar below wsgi is valid."), warnings)
    left = "Nothing was touched"
    if not settings.host_wide:
        left = f"Left as they are: {', '.join(sorted(settings.broken)) or 'no app'}"
    return _warned(_result(name, False, "\n".join([*settings.problems, f"{left}."])), warnings)


def release_built(name):
    """
    An app's user, its code and its environment are there.

    name : str
        The app.

    .. code-block:: yaml

        hello-release:
          wsgi.release_built:
            - name: hello
    """
    host = _host()
    try:
        switch.recover(host, name)
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
            return _result(name, True, _and(f"Release {wanted.id} of {name} is there.", describe_override(host, name)))
        if __opts__["test"]:
            return _result(name, None, f"Release {wanted.id} of {name} would be built.", changes)
        with app_lock(name, "a build"):
            user = _prepare_user(host, name, app)
            printed = wanted.build(user.pw_gid)
        if printed:
            changes["hooks"] = printed
    except (Problem, OSError) as error:
        if not __opts__["test"]:
            with contextlib.suppress(OSError):
                history.add(host, name, "failed", error=error)
        return _failure(name, f"{name}'s release was not built", error)
    return _result(name, True, f"Release {wanted.id} of {name} was built.", changes)


def generation_live(name):
    """
    The generation that an app's settings ask for receives its traffic, and no other runs.

    name : str
        The app. Its release must be there.

    A change starts the new generation beside the old one, waits for its health check, moves
    the traffic, and retires the old one when its last request is answered. If that fails the
    old one serves on, and the comment says why.

    .. code-block:: yaml

        hello-live:
          wsgi.generation_live:
            - name: hello
            - require:
              - wsgi: hello-release
    """
    try:
        host = _host()
        current = switch.recover(host, name)
        app = desired_app(host, name)
        release = desired_release(host, name)
        id = desired_id(host, app, release)
        reason = replacement_reason(host, current, id)
        if reason:
            return _replaced(host, name, app, release, current, id, reason)
        left = generation_ids(host, name, keep=current)
        pending = current.record.get("pending_hooks")
        if not left and not pending:
            return _result(
                name, True, _and(f"Generation {current.id} of {name} is live.", describe_override(host, name))
            )
        return _finished(host, name, app, current, left, pending)
    except (Problem, OSError) as error:
        return _failure(name, _still_serving(name), error)


def _replaced(host, name, app, release, current, id, reason):
    changes = _difference(current, id, app, release)
    if __opts__["test"]:
        check_programs(name, app)
        return _result(name, None, f"Generation {id} of {name} would go live: {reason}.", changes)
    done = switch.change(host, name, app, release, id)
    changes["generation"]["new"] = done.generation.id
    return _outcome(name, f"Generation {done.generation.id} of {name} is live: {reason}.", changes, done)


def _finished(host, name, app, current, left, pending):
    """What a change that was broken off, or whose last commands failed, has left to do."""
    changes = {**({"retired": left} if left else {}), **({"pending_hooks": pending} if pending else {})}
    if __opts__["test"]:
        return _result(name, None, "What the last change left would be finished.", changes)
    done = Change(current)
    with app_lock(name, "a change"):
        switch.finish_retiring(host, name, app, done)
        if pending:
            switch.finish(host, name, app, done)
    return _outcome(name, f"What the last change of {name} left is finished.", changes, done)


def _outcome(name, comment, changes, done):
    if done.printed:
        changes["hooks"] = done.printed
    return _result(name, not done.failures, "\n".join([comment, *done.failures]), changes)


def site_present(name):
    """
    nginx's site of an app is written, and sound; so is its own page for maintenance, and what nginx
    itself serves of its live release.

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
        # Before a run, what it will make is not there yet.
        if not __opts__["test"]:
            warnings += static.warnings(host, name, host.settings.apps[name])
        return _warned(result, warnings)
    except (Problem, OSError) as error:
        return _failure(name, f"The site of {name} was left as it was", error)


def _site(host, name, unserved):
    """Write the site of an app, after the files that nginx is to serve for it; return the changes of the site."""
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
    """Return the paths that nginx is to serve of an app, and that are not prepared for it yet."""
    app = host.settings.apps[name]
    found = [f"{LIB}/home/{name}"] if static.home_differs(host, name, app) else []
    live = static.release_paths(app) and live_generation(host, name)
    return found + (static.outdated(name, app, Release(name, live.release)) if live else [])


def nginx_files(name):
    """
    nginx's files of ours are such that nginx can start with them, whatever a killed run or another hand left.

    name : str
        Nothing but the state's name.

    .. code-block:: yaml

        nginx-files:
          wsgi.nginx_files: []
    """
    try:
        host = _host()
        if __opts__["test"]:
            return _result(name, True, "A dry run does not test nginx's files.")
        changes, sentence = host.once(Nginx).mend()
    except (Problem, OSError) as error:
        return _failure(name, "nginx does not accept its files", error)
    return _result(name, True, sentence or "nginx accepts its files.", changes)


def nginx_reloaded(name):
    """
    nginx runs with the sites as they are. Comes last, so that it is reloaded once at most.

    name : str
        Nothing but the state's name.

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
                return _result(name, True, "nginx serves the sites as they are.")
            return _result(name, None, "nginx would be reloaded.", changes)
        if not nginx.refresh():
            return _result(name, True, "nginx serves the sites as they are.")
        configuration = "".join(nginx.installed_files.values())
        for app in host.settings.apps:
            static.forget(app, configuration)
    except (Problem, OSError) as error:
        return _failure(name, "nginx keeps serving the sites that it has", error)
    return _result(name, True, "nginx was reloaded.", changes)


def certificates_present(name):
    """
    Sites that have a certificate authority's certificate have one that is for their hosts. Comes after
    nginx serves them, since the authority asks them; until then they have a self-signed one.

    name : str
        Nothing but the state's name.

    Fails for those that get none, with the client's own words; they serve on with what they have.

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
                failures.append(f"nginx does not serve {site.id} yet, so the authority cannot verify its hosts.")
                del changes[site.id]
                continue
            try:
                acme.obtain(host, site)
            except (Problem, OSError) as error:
                failures.append(str(error))
                del changes[site.id]
        nginx.apply(*(name for site in sites if site.id in changes for name in site.apps))
    except (Problem, OSError) as error:
        return _failure(name, "nginx keeps serving the certificates that it has", error)
    return _result(
        name, not failures, "\n".join([f"New certificates: {', '.join(changes) or 'none'}.", *failures]), changes
    )


def status_page_written(name):
    """
    The page that tells of the apps is there, if pillar asks for it.

    name : str
        Nothing but the state's name.

    It is written anew by each run, however the other states went, and is mentioned as a change where
    it tells more than another time and another health.

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
    except (Problem, OSError) as error:
        return _failure(name, "The status page was left as it was", error)
    return _result(name, True, "The status page was written.", changes)


def _this_run():
    """What of the formula's failed until now, ids and comments; and whether a dry run has found something to change."""
    states = [state for state in __running__.values() if str(state.get("__sls__")).partition(".")[0] == "wsgi"]
    failures = [
        (state["__id__"], state["comment"])
        for state in states
        # The pillar's problems are told by themselves; what was not tried has failed elsewhere.
        if state["result"] is False and state.get("__state_ran__", True) and state["__id__"] != "wsgi-pillar"
    ]
    return failures, any(state["result"] is None for state in states)


def service_running(name, socket=None):
    """
    A service of the machine runs, and starts at boot. The usual case costs one look, and no process.

    name : str
        The service, or another unit of systemd's by its whole name.
    socket : str
        The path of the unix socket that such a unit listens on.

    What differs is handed to ``service.running``.

    .. code-block:: yaml

        nginx-service:
          wsgi.service_running:
            - name: nginx
    """
    unit = name if "." in name else f"{name}.service"
    runs = socket in _host().listening if socket else os.path.lexists(INVOCATION.format(unit))
    if runs and glob.glob(WANTED.format(unit)):
        return _result(name, True, f"The service {name} runs, and starts at boot.")
    with contextlib.suppress(FileNotFoundError):
        shown = subprocess.run(
            ["systemctl", "show", "--property=ActiveState,UnitFileState", name],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=False,
        )
        if set(shown.stdout.split()) == {"ActiveState=active", "UnitFileState=enabled"}:
            return _result(name, True, f"The service {name} runs, and starts at boot.")
    return __states__["service.running"](name, enable=True)


def file_installed(name, source, mode="0644", context=None):
    """
    A file of the formula's own is in place; root's, as are the folders that it needs. The usual case costs one look,
    and no request to the master.

    name, source : str
        Its path, and what it is served as.
    mode : str
        Its permission bits.
    context : dict
        What it knows as a template, if it is one.

    What differs is handed to ``file.managed``.

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
    except (Problem, OSError) as error:
        return _failure(name, "The file was left as it was", error)
    return __states__["file.managed"](name, contents=text, mode=mode, **READABLE)


def tool_installed(name, requirements, python="/usr/bin/python3"):
    """
    A program of the formula's own is installed from PyPI, in a virtual environment of its own.

    name : str
        The environment's folder; root's, as is all that is in it.
    requirements : list of str
        What pip installs, each with its version and with all that it needs itself.
    python : str
        The interpreter's path; one of version 2 needs the program ``virtualenv``.

    What is there already is added to, never emptied: it may be running.

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
            return _result(name, True, f"{requirements[0]} is there.")
        if __opts__["test"]:
            return _result(name, None, f"{requirements[0]} would be installed.", changes)
        tool.build()
    except (Problem, OSError) as error:
        return _failure(name, f"{requirements[0]} was not installed", error)
    return _result(name, True, f"{requirements[0]} was installed.", changes)


def app_absent(name, purge=False):
    """
    An app is gone from this machine: its site, processes, configuration and user.

    name : str
        The app.
    purge : bool
        Whether its code, its logs and its home folder go too. Otherwise they stay, for root
        alone to read.

    .. code-block:: yaml

        hello-absent:
          wsgi.app_absent:
            - name: hello
            - purge: true
    """
    try:
        host = _host()
        nginx = host.once(Nginx)
        about = user_facts(name)
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
            return _result(name, True, f"{name} is not here.")
        changes = {"removed": found}
        users = [user for user in about.get("made", []) if find_user(user)]
        accounts = [account for account in map(find_user, {about.get("user"), *users}) if account]
        if users:
            changes["users"] = {"old": users, "new": []}
        if __opts__["test"]:
            return _result(name, None, f"{name} would be taken away.", changes)
        removal.remove_app(host, name)
        for user in users:
            _leave_user(host, name, user)
        for path in found:
            files.remove(path)
        # The ids of a user that is gone are given to the next one.
        former = {account.pw_uid for account in accounts}
        for path in filter(os.path.isdir, kept):
            # Into what was root's, nobody else could put a file of root's.
            was = os.lstat(path).st_uid
            files.ensure_dir(path, 0o700)
            ownership.give_tree(path, 0, 0, {*former, was})
    except (Problem, OSError) as error:
        return _failure(name, f"{name} is not wholly gone", error)
    return _result(name, True, f"{name} was taken away.", changes)


def _host():
    saltenv = __env__ if "wsgi.host" in __context__ else salt_run.saltenv_of(__env__)
    return Host.of_run(__context__, __salt__, __pillar__, __grains__, __opts__, saltenv)


def _result(name, result, comment, changes=None):
    found = {"name": name, "result": result, "changes": changes or {}, "comment": comment}
    return _warned(found, files.take_damage_reports())


def _warned(result, warnings):
    """A state's result with more warnings; Salt prints a heading where there is an empty list of them."""
    return {**result, "warnings": [*result.get("warnings", []), *warnings]} if warnings else result


def _and(*sentences):
    return " ".join(filter(None, sentences))


def _failure(name, what, error):
    return _result(name, False, f"{what}: {error}")


def _page(path, source):
    """What ``file.managed`` makes of a file that everybody may read; without a source it goes."""
    if source is None:
        return __states__["file.absent"](path)
    written = __states__["file.managed"](path, source=source, mode="0644", **READABLE)
    if "diff" in written["changes"]:
        written["changes"]["diff"] = diff.first_lines(path, written["changes"]["diff"])
    return written


def _still_serving(name):
    current = live_generation(_host(), name)
    if current is None:
        return f"{name} did not go live, and nothing of it runs"
    return f"{name} did not change; generation {current.id} under {current.server} serves on"


def _difference(current, id, app, release):
    """What a change changes, with no value of the environment."""
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


def _prepare_user(host, name, app):
    """The app's user, with a home that it may write to; remembers whether it was made here."""
    home = f"{LIB}/home/{name}"
    made = user_facts(name).get("made", [])
    user = find_user(app["user"])
    if user is None:
        made = [*made, app["user"]]
        user = make_user(host, app["user"], home)
    for path in (ETC, f"{ETC}/{name}", LIB, f"{LIB}/home"):
        files.ensure_dir(path, 0o755)
    remember_user(name, {"user": app["user"], "made": made})
    former = os.lstat(home).st_uid if os.path.lexists(home) else user.pw_uid
    if former != user.pw_uid:
        # Processes of the former user may still run.
        ownership.give_tree(home, user.pw_uid, user.pw_gid, {former})
    static.prepare_home(host, name, app, user)
    return user


def _leave_user(host, name, user):
    """Delete a user that was made for an app, or leave it to another app that has it too."""
    for other in host.known_apps():
        about = user_facts(other)
        if other != name and about.get("user") == user:
            remember_user(other, {**about, "made": [*about["made"], user]})
            return
    step.kill_user_processes(find_user(user))
    if not __salt__["user.delete"](user):
        raise Problem(f"the user {user} could not be deleted; does it have other processes?")


# The names that the states had before version 1.0, for sls of other hands; they go with version 2.0.
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
    # The module may hold something else under the old name itself.
    globals()[f"{_old}_"] = _new
    __func_alias__[f"{_old}_"] = _old
