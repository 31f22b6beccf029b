# Takes away everything that the formula made. Packages stay: they may serve others.
{%- if '_ssh_version' in opts %}
include:
  - wsgi.salt_ssh
{%- else %}
{#- A fresh minion has no modules of ours yet. Salt would remember that wsgi.plan is missing if it were looked up now. #}
{%- if 'wsgi' not in salt['saltutil.list_extmods']().get('modules', []) %}
{%- do salt['saltutil.sync_all'](refresh=False, saltenv=saltenv) %}
{%- endif %}
{%- set plan = salt['wsgi.plan'](saltenv) %}

include:
  - wsgi.acme.absent
{%- if plan.metrics %}
  - wsgi.metrics.absent
{%- endif %}

{%- for name in salt['wsgi.present']() %}

{{ name }}-absent:
  wsgi.app_absent:
    - name: {{ name }}
    - purge: true
{%- endfor %}

wsgi-services:
  service.dead:
    - names: [wsgi-circus, wsgi-emperor, wsgi-gaffer]
    - enable: false

wsgi-files:
  file.absent:
    - names:
      - {{ plan.family.nginx.conf_dir }}/wsgi.conf
      - {{ salt['file.dirname'](plan.family.nginx.own_dir) }}
      - /etc/systemd/system/wsgi-circus.service
      - /etc/systemd/system/wsgi-emperor.service
      - /etc/systemd/system/wsgi-gaffer.service
      - /etc/logrotate.d/wsgi
      - /etc/wsgi
      - /run/wsgi
      - /srv/wsgi
      - /usr/local/lib/wsgi
      - /var/lib/wsgi
      - /var/log/wsgi
{%- endif %}
