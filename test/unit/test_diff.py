"""Diffs: a state reports the changed lines of a file, and the log has the whole diff."""

import logging

import pytest
import values
from wsgi_formula import diff
from wsgi_formula.diff import MOST_LINES
from wsgi_formula.edge.nginx import NOT_SHOWN, Nginx, report
from wsgi_formula.edge.site_files import text_of

SHOP = {"domains": ["shop.test"]}
BEFORE = """
# of shop
server {
    listen 80;
    location / {
        proxy_pass http://shop;
        proxy_read_timeout 35s;
    }
    location /b/ {
        proxy_pass http://shop;
        proxy_read_timeout 35s;
    }
}
"""


@pytest.mark.parametrize(
    ("after", "told"),
    [
        (BEFORE.replace("35s", "70s"), "-proxy_read_timeout 35s;\n+proxy_read_timeout 70s;\n"),
        (BEFORE.replace("80", "81").replace("of shop", "of cart"), "-listen 80;\n+listen 81;\n"),
        (BEFORE.replace("location / {", "location / {\n        proxy_buffering off;"), "+proxy_buffering off;\n"),
        (BEFORE.replace("of shop", "of cart"), "-# of shop\n+# of cart\n"),
        (BEFORE.replace("    listen 80;\n", "") + "listen 80;\n", "-listen 80;\n+listen 80;\n"),
        (BEFORE.replace("        proxy", "    proxy"), "-        proxy_pass http://shop;\n"),
    ],
    ids=["repeated", "commented", "added", "only a comment", "only moved", "only indented"],
)
def test_change_is_reported_by_its_lines_each_once(after, told):
    assert diff.brief("x.conf", BEFORE, after).startswith(told)


def test_long_change_is_reported_by_its_first_lines_and_the_number_of_others():
    def told(count):
        return diff.brief("x.conf", "", "".join(f"line {number}\n" for number in range(count))).splitlines()

    assert len(told(MOST_LINES)) == MOST_LINES
    assert told(MOST_LINES + 1)[-1] == f"+line {MOST_LINES}"
    assert len(told(500)) == MOST_LINES + 1
    assert told(500)[-1] == f"… {500 - MOST_LINES} more lines: see Salt's log at level debug"
    assert diff.first_lines("x.html", "a\n" * 500).splitlines()[-1] == told(500)[-1]


def test_whole_diff_is_logged_at_level_debug(caplog):
    with caplog.at_level(logging.DEBUG):
        diff.brief("x.conf", BEFORE, BEFORE.replace("35s", "70s"))
    assert caplog.text.count("+        proxy_read_timeout 70s;") == 2
    assert {record.levelname for record in caplog.records} == {"DEBUG"}


@pytest.fixture
def change(make_host, tmp_path):
    """change(own, before) returns the changes that the site's state reports between these settings of an app."""

    def shown(own, before):
        hosts = [make_host({"apps": {"shop": values.app({**SHOP, **said})}}) for said in (before, own)]
        for host in hosts:
            host.family["nginx"].update(conf_dir=str(tmp_path / "conf.d"), own_dir=str(tmp_path / "wsgi"))
        before, after = (host.once(Nginx) for host in hosts)
        before._installed = {}
        there = {path: text_of(content) for path, content in before.needed_changes("shop").items()}
        after._installed = {path: text for path, text in there.items() if text is not None}
        return report(after.installed_files, after.needed_changes("shop"))

    return shown


@pytest.mark.parametrize(
    ("own", "most", "line"),
    [
        ({"server": "gunicorn"}, 0, ""),
        ({"domains": ["shop.test", "www.shop.test"]}, 4, "+server_name shop.test www.shop.test;"),
        ({"static": {"/static/": "public"}}, 13, "+location ^~ /static/ {"),
        ({"request_timeout": 77}, 8, "+proxy_read_timeout 82s;"),
        ({"nginx": {"location": "proxy_set_header X-A b;"}}, 14, "+proxy_set_header X-A b;"),
        ({"cache": {"valid": "1m"}}, 26, "+proxy_cache_valid 200 301 302 1m;"),
    ],
    ids=lambda value: None if isinstance(value, int) else str(value)[:24],
)
def test_edited_word_is_reported_in_few_lines(change, own, most, line):
    told = [line for each in change(own, {}).values() for line in each["diff"].splitlines()]
    assert len(told) <= most
    assert line in [*told, ""]


def test_no_secret_is_reported_or_logged(change, caplog):
    with caplog.at_level(logging.DEBUG):
        users = {"ann": "$6$hunter2$hunter2"}
        told = change({"basic_auth": {"users": users}}, {"basic_auth": {"users": {**users, "bob": "$6$hunter2$b"}}})
        told.update(change({"basic_auth": {"users": users}}, {}))
    assert "hunter2" not in f"{told} {caplog.text}"
    assert {"diff": NOT_SHOWN} in told.values()
    assert "auth_basic" in caplog.text
