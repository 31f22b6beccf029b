# The release of each app compiles mod_wsgi into its virtual environment. The package `apache2` is not needed, whose
# Apache would listen on port 80: mod_wsgi-express runs an Apache for each app.
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
