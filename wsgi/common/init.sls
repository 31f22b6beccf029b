# What every server and process manager stands on.
{%- set family = salt['wsgi.plan']().family %}

wsgi-python:
  pkg.installed:
    - pkgs: {{ family.packages.python | json }}

wsgi-logrotate:
  pkg.installed:
    - pkgs: {{ family.packages.logrotate | json }}

/etc/logrotate.d/wsgi:
  wsgi.file_installed:
    - source: salt://wsgi/common/logrotate.conf

{#- What others import comes first: workers may start at any moment. #}
{%- for program in ['wsgi_process.py', 'wsgi_successor.py', 'wsgi_guard.py', 'append', 'launch', 'logged', 'spawn', 'with-environment'] %}

/usr/local/lib/wsgi/{{ program }}:
  wsgi.file_installed:
    - source: salt://wsgi/common/{{ program }}
    - mode: '0755'
{%- endfor %}
