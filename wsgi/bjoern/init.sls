# bjoern is compiled into each app's own environment, by its release.
include:
  - wsgi.common

bjoern-build:
  pkg.installed:
    - pkgs: {{ salt['wsgi.plan']().family.packages.bjoern | json }}
