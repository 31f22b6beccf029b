# The distribution's supervisor. Programs are added to it and taken away one by one; it is
# never restarted.
supervisor-package:
  pkg.installed:
    - pkgs: {{ salt['wsgi.plan']().family.packages.supervisor | json }}

supervisor-service:
  wsgi.service_running:
    - name: supervisor
    - require:
      - pkg: supervisor-package
