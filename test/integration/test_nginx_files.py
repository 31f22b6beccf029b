"""nginx's files change in one step: a run that is killed at any moment leaves files that nginx starts with."""

import json

import pytest
from pillars import app

HASH = "$6$abcdefgh$sVSKMSvW0p9kDHc3t3FqpaipmPHFzvkT87jxw//WZnBxBYcI.pxt59cTUYHwgtdIFybYY/G9lKyIoMJQWdOOF1"
GOOD = {
    "hello": app("gunicorn", workers=1),
    "bravo": app("gunicorn", workers=1, domains=["bravo.test"], basic_auth={"users": {"ann": HASH}}),
}
ALPHA = {"alpha": app("gunicorn", workers=1, domains=["alpha.test"])}
BAD = {"alpha": {**ALPHA["alpha"], "nginx": {"server": "no_such_directive on;"}}}
# salt-call that is killed as soon as it runs `nginx -t`.
KILLED = """\
import os, subprocess, sys
sys.argv[0] = "salt-call"
run = subprocess.run
def killed(command, *arguments, **more):
    if "-t" in command and any(str(word).endswith("/nginx") for word in command):
        os.kill(os.getpid(), 9)
    return run(command, *arguments, **more)
subprocess.run = killed
from salt.scripts import salt_call
sys.exit(salt_call())
"""
# The layout of older versions: no trees, and shared directives in nginx's own folder.
OLD_LAYOUT = """\
set -e
cd /etc/nginx/wsgi
mv live/* .
mv wsgi.conf ../conf.d/wsgi.conf
rm -r live trees
find . ../conf.d -name '*.conf' -exec sed -i s,/etc/nginx/wsgi/live/,/etc/nginx/wsgi/,g {} +
nginx -t
"""


def statuses(machine, *hosts):
    found = []
    for host in hosts:
        try:
            found.append(machine.get("/", host=host).status)
        except ConnectionError:
            found.append(None)
    return found


def layout(machine):
    return machine.exec("ls /etc/nginx/wsgi; ls /etc/nginx/wsgi/trees | wc -l; ls /etc/nginx/conf.d").stdout.split()


def test_change_killed_at_any_file_operation_leaves_files_that_nginx_starts_with(machine):
    # The formula removes the distribution's site, which conflicts with the default site.
    machine.exec("rm /etc/nginx/sites-enabled/default")
    done = machine.exec("/opt/salt/bin/python /srv/formula/test/integration/killed_nginx_changes.py")
    report = json.loads(done.stdout)
    machine.exec("rm -rf /etc/nginx && mv /root/nginx /etc/nginx && rm -rf /etc/nginx/wsgi /etc/nginx/conf.d/wsgi.conf")
    assert {name: wrong for name, (_, wrong) in report.items()} == {name: {} for name in report}
    assert all(moments > 20 for moments, _ in report.values()), report


@pytest.fixture(scope="module")
def serving(machine):
    machine.pillar({"apps": GOOD})
    machine.apply()
    return machine


def test_run_killed_during_nginx_t_leaves_every_site_serving_after_a_reboot(serving):
    serving.put("/root/killed.py", KILLED)
    serving.pillar({"apps": {**GOOD, **BAD}})
    done = serving.exec("/opt/salt/bin/python /root/killed.py state.apply wsgi", check=False)
    assert done.rc == 137
    assert serving.exec("nginx -t", check=False).rc == 0
    serving.restart()
    serving.wait_until("[ $(curl -so /dev/null -w %{http_code} 127.0.0.1) = 200 ]")
    assert statuses(serving, None, "bravo.test") == [200, 401]
    run = serving.apply(ok=False)
    assert run.failed & {"hello-site", "bravo-site", "wsgi-nginx", "nginx-files"} == set()
    assert "wsgi:apps:alpha:nginx:server: nginx -t refuses it" in str(run)
    assert layout(serving) == ["live", "trees", "1", "wsgi.conf"]


def test_files_broken_by_hand_are_restored_before_nginx_starts(serving):
    serving.pillar({"apps": GOOD})
    serving.apply()
    serving.exec("printf 'rubbish \\377 {' >> /etc/nginx/wsgi/live/locations/bravo.conf")
    serving.exec("systemctl stop nginx; ! systemctl start nginx", check=False)
    run = serving.apply()
    assert "nginx-files" in run.changed
    assert statuses(serving, None, "bravo.test") == [200, 401]
    assert serving.apply().changed == set()


def test_missing_tree_is_restored(serving):
    serving.exec("systemctl stop nginx; rm -r /etc/nginx/wsgi/trees")
    serving.apply()
    assert statuses(serving, None, "bravo.test") == [200, 401]


def test_invalid_files_in_the_old_layout_are_replaced_and_other_sites_come_back(serving):
    """nginx is down with them, and pillar still has the directive that it refuses."""
    serving.pillar({"apps": {**GOOD, **ALPHA}})
    serving.apply()
    serving.exec(OLD_LAYOUT)
    serving.exec(
        "echo '# wsgi:apps:alpha:nginx:server\nno_such_directive on;' >> /etc/nginx/wsgi/sites/alpha.test_80.conf"
    )
    serving.exec("systemctl stop nginx; ! systemctl start nginx", check=False)
    assert statuses(serving, None) == [None]
    serving.pillar({"apps": {**GOOD, **BAD}})
    run = serving.apply(ok=False)
    assert run.failed == {"alpha-site"}
    assert statuses(serving, None, "bravo.test") == [200, 401]
    assert "Left out until nginx accepts them: alpha" in run.states["nginx-files"]["comment"]
    assert layout(serving) == ["live", "trees", "1", "wsgi.conf"]


def test_update_from_the_old_layout_loses_no_request(serving):
    serving.pillar({"apps": GOOD})
    serving.apply()
    serving.exec(OLD_LAYOUT)
    serving.exec("systemctl restart nginx")
    with serving.load(clients=4, pause=0.02) as load:
        run = serving.apply()
    assert load.report["lost"] == 0, load.report
    assert run.changed == {"nginx-files", "wsgi-nginx"}
    assert layout(serving) == ["live", "trees", "1", "wsgi.conf"]
    shown = serving.exec("stat -c '%a %U %G' /etc/nginx/wsgi/live/private/bravo.htpasswd").stdout
    assert shown.split() == ["640", "root", "www-data"]
    assert serving.apply().changed == set()


def test_dry_run_reports_the_same_changes_as_a_run_by_their_stable_paths(serving):
    other = {**GOOD, "hello": {**GOOD["hello"], "domains": ["hello.test"], "tls": "self_signed"}}
    serving.pillar({"apps": other})
    predicted, done = (run.states["hello-site"]["changes"] for run in (serving.apply(test=True), serving.apply()))
    assert predicted == done
    own = "/etc/nginx/wsgi/live"
    assert done[f"{own}/sites/hello.test_80.conf"] == {"diff": "New file"}
    assert done[f"{own}/sites/default_80.conf"] == {"removed": f"{own}/sites/default_80.conf"}
    assert done[f"{own}/private/hello.test_80.self-signed.crt"] == "made"
    assert "key" not in json.dumps(done).replace("ssl_certificate_key", "")


def test_next_run_undoes_what_a_killed_reload_left(serving):
    serving.exec("touch /run/wsgi/nginx.closing && rm /var/lib/wsgi/short")
    assert serving.apply().changed == set()
    serving.exec("test ! -e /run/wsgi/nginx.closing && test -e /var/lib/wsgi/short")


# The number of workers in the upstream


def upstream(machine):
    text = machine.exec("cat /etc/nginx/wsgi/live/apps/hello.conf").stdout
    return text.count("/http-")


def test_changing_workers_reloads_nginx_only_where_each_worker_has_a_socket(serving):
    serving.pillar({"apps": {"hello": app("gunicorn", workers=2)}})
    serving.apply()
    serving.pillar({"apps": {"hello": app("gunicorn", workers=1)}})
    assert serving.apply().changed == {"hello-live"}
    serving.pillar({"apps": {"hello": app("waitress", workers=3)}})
    assert {"hello-live", "hello-site", "wsgi-nginx"} <= serving.apply().changed
    assert upstream(serving) == 3


def test_rollback_to_another_number_of_workers_updates_the_upstream(serving):
    serving.pillar({"apps": {"hello": app("waitress", workers=1)}})
    serving.apply()
    assert upstream(serving) == 1
    serving.call("wsgi.rollback", "hello", "pin=True")
    assert upstream(serving) == 3
    assert serving.apply().changed == set()
