# The packages and programs that every server and process manager needs.
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

{#- A module comes before those that import it: workers may start at any moment. #}
{%- for program in ['wsgi_process.py', 'wsgi_successor.py', 'wsgi_guard.py', 'append', 'launch', 'logged', 'spawn', 'with-environment'] %}

/usr/local/lib/wsgi/{{ program }}:
  wsgi.file_installed:
    - source: salt://wsgi/common/{{ program }}
    - mode: '0755'
{%- endfor %}
