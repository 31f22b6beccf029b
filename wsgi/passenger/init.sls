# The distribution's Passenger: only its core, which needs no module of nginx.
{%- set family = salt['wsgi.plan']().family %}
include:
  - wsgi.common

passenger-package:
  pkg.installed:
    - pkgs: {{ family.packages.passenger | json }}
