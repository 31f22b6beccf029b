# The distribution's supervisor. Programs are added and removed one by one; supervisord is never restarted.
supervisor-package:
  pkg.installed:
    - pkgs: {{ salt['wsgi.plan']().family.packages.supervisor | json }}

supervisor-service:
  wsgi.service_running:
    - name: supervisor
    - require:
      - pkg: supervisor-package
