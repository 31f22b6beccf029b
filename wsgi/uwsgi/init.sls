# uWSGI, the distribution's. Its Python plugin works with an environment of the same Python.
uwsgi-package:
  pkg.installed:
    - pkgs: {{ salt['wsgi.plan']().family.packages.uwsgi | json }}
