"""Access logs and metrics in nginx's files."""

from pillars import HELLO


def problems(load, apps=None, **top):
    return load({**top, "apps": {name: {**HELLO, **own} for name, own in (apps or {}).items()}}).messages


# Access logs


def test_requests_of_an_app_are_logged_as_json_with_its_name(make_nginx_files):
    files = make_nginx_files({"shop": {}})
    assert "access_log /var/log/nginx/wsgi-shop.access.log wsgi_json_shop;" in files["locations/shop.conf"]
    assert '"app":"shop"' in files["apps/shop.conf"]
    assert "access_log /var/log/nginx/wsgi-shop.access.log wsgi_json;" in files["sites/default_80.conf"]
    assert '"app":""' in files["wsgi.conf"]


def test_access_log_can_be_combined_or_none(make_nginx_files):
    files = make_nginx_files({"one": {"access_log": "combined"}, "two": {"access_log": "none", "listen": 81}})
    assert "access_log /var/log/nginx/wsgi-one.access.log combined;" in files["locations/one.conf"]
    assert "access_log off;" in files["locations/two.conf"]
    assert "log_format" not in files["apps/one.conf"] + files["apps/two.conf"]


def test_app_without_an_access_log_is_counted(make_nginx_files):
    """`access_log off` would disable both."""
    location = make_nginx_files({"shop": {"access_log": "none", "metrics": True}})["locations/shop.conf"]
    assert "access_log off" not in location
    assert "access_log syslog:server=127.0.0.1:8078" in location
    assert "access_log /" not in location


# Metrics


def test_requests_are_not_counted_without_metrics(make_nginx_files):
    files = make_nginx_files({"shop": {}})
    assert "8078" not in "".join(files.values())


def test_metrics_of_an_app_enable_the_endpoint(make_nginx_files, load):
    assert "listen 127.0.0.1:8078;" in make_nginx_files({"shop": {"metrics": True}})["wsgi.conf"]
    assert load({"apps": {"shop": {**HELLO, "metrics": True}}}).nginx["metrics"] is True


def test_metrics_of_the_host_do_not_count_requests_of_apps(make_nginx_files):
    files = make_nginx_files({"shop": {}}, nginx={"metrics": True})
    assert "stub_status;" in files["wsgi.conf"]
    assert "8078" not in files["locations/shop.conf"]


def test_app_with_a_problem_keeps_the_endpoint(load):
    settings = load({"apps": {"shop": {**HELLO, "metrics": True, "workers": -1}}})
    assert settings.broken == {"shop"}
    assert settings.nginx["metrics"] is True


def test_port_of_the_endpoint_is_refused_for_apps(load):
    found = problems(load, {"shop": {"listen": 8078, "metrics": True}})
    assert found == ["wsgi:apps:shop:listen: port 8078 is used by the metrics (wsgi:nginx:metrics)"]
    assert problems(load, {"shop": {"listen": 8078}}) == []
