# mod_wsgi is compiled into each app's own environment, by its release. Without the package
# `apache2`, which would have Apache listen on port 80: express runs one for each app.
{%- set family = salt['wsgi.plan']().family %}
include:
  - wsgi.common

mod_wsgi-packages:
  pkg.installed:
    - pkgs: {{ family.packages.mod_wsgi | json }}

/usr/local/lib/wsgi/bridge:
  wsgi.file_installed:
    - source: salt://wsgi/mod_wsgi/bridge
    - mode: '0755'
