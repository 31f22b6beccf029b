# The release of each app compiles bjoern into its virtual environment.
include:
  - wsgi.common

bjoern-build:
  pkg.installed:
    - pkgs: {{ salt['wsgi.plan']().family.packages.bjoern | json }}
