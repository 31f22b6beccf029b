# The client of a certificate authority. Its own timer renews what `wsgi-certificates` has got.
{%- set family = salt['wsgi.plan']().family %}
{%- set ca_bundle = salt['pillar.get']('wsgi:nginx:acme:ca_bundle') %}

acme-packages:
  pkg.installed:
    - pkgs: {{ family.packages.acme | json }}

/usr/local/lib/wsgi/reload-nginx:
  wsgi.file_installed:
    - source: salt://wsgi/acme/reload-nginx
    - context: {nginx: {{ family.nginx | json }}}
    - mode: '0755'

/usr/local/lib/wsgi/wsgi_reload.py:
  wsgi.file_installed:
    - source: salt://_utils/wsgi_formula/edge/reload.py

# Whom the client believes, where the authority is one of your own.
/etc/systemd/system/certbot.service.d/wsgi.conf:
{%- if ca_bundle %}
  file.managed:
    - contents: |
        [Service]
        Environment=REQUESTS_CA_BUNDLE={{ ca_bundle }}
    - makedirs: true
    - mode: '0644'
{%- else %}
  file.absent: []
{%- endif %}

acme-units:
  module.run:
    - service.systemctl_reload: []
    - onchanges:
      - file: /etc/systemd/system/certbot.service.d/wsgi.conf

acme-timer:
  wsgi.service_running:
    - name: certbot.timer
    - require:
      - pkg: acme-packages
