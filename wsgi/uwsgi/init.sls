# The distribution's uWSGI. Its Python plugin works with a virtual environment of the same Python version.
uwsgi-package:
  pkg.installed:
    - pkgs: {{ salt['wsgi.plan']().family.packages.uwsgi | json }}
