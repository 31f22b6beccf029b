# nginx, which all apps share. The site of each app is a state of the app.
{%- set plan = salt['wsgi.plan']() %}
{%- set family = plan.family %}
{%- if plan.manages_nginx %}

nginx-package:
  pkg.installed:
    - pkgs: {{ family.packages.nginx | json }}

# The distribution's site would be a second default site.
{{ family.nginx.distribution_site }}:
  file.absent:
    - require:
      - pkg: nginx-package
{%- endif %}

# nginx has to start with its files, whatever a killed run or an editor has left.
nginx-files:
  wsgi.nginx_files: []
{%- if plan.manages_nginx %}

nginx-service:
  wsgi.service_running:
    - name: nginx
    - require:
      - pkg: nginx-package
{%- endif %}

/usr/local/lib/wsgi/maintenance.html:
  wsgi.file_installed:
    - source: salt://wsgi/nginx/maintenance.html
