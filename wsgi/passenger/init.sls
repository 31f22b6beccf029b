# Passenger, the distribution's: the core alone, which needs no module of nginx.
{%- set family = salt['wsgi.plan']().family %}
include:
  - wsgi.common

passenger-package:
  pkg.installed:
    - pkgs: {{ family.packages.passenger | json }}
