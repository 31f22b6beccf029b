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

{#- What others import comes first: workers may start at any moment. #}
{%- for program in ['wsgi_process.py', 'wsgi_successor.py', 'wsgi_guard.py', 'append', 'launch', 'logged', 'spawn', 'with-environment'] %}

/usr/local/lib/wsgi/{{ program }}:
  file.managed:
    - source: salt://wsgi/common/{{ program }}
    - makedirs: true
    - mode: '0755'
{%- endfor %}
