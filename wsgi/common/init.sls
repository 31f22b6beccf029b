# What every server and process manager stands on.
{%- set family = salt['wsgi.plan']().family %}

wsgi-python:
  pkg.installed:
    - pkgs: {{ family.packages.python | json }}

wsgi-logrotate:
  pkg.installed:
    - pkgs: {{ family.packages.logrotate | json }}

/etc/logrotate.d/wsgi:
  file.managed:
    - source: salt://wsgi/common/logrotate.conf
    - mode: '0644'

/usr/local/lib/wsgi/with-environment:
  file.managed:
    - source: salt://wsgi/common/with-environment
    - makedirs: true
    - mode: '0755'
