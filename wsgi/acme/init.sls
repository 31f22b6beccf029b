# certbot, the ACME client. Its own timer renews the certificates that the state wsgi-certificates has obtained.
{%- set family = salt['wsgi.plan']().family %}
{%- set ca_bundle = salt['pillar.get']('wsgi:nginx:acme:ca_bundle') %}

acme-packages:
  pkg.installed:
    - pkgs: {{ family.packages.acme | json }}

# certbot runs this program after a renewal.
/usr/local/lib/wsgi/reload-nginx:
  wsgi.file_installed:
    - source: salt://_utils/wsgi_formula/edge/reload.py
    - mode: '0755'

/usr/local/lib/wsgi/reload-nginx.json:
  wsgi.file_installed:
    - source: salt://wsgi/acme/reload-nginx.json.jinja
    - context: {nginx: {{ family.nginx | json }}}

# certbot trusts an authority of your own by this bundle.
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
