# The shared proxy. The apps' sites come with the apps.
{%- set plan = salt['wsgi.plan']() %}
{%- set family = plan.family %}
{%- if plan.manages_nginx %}

nginx-package:
  pkg.installed:
    - pkgs: {{ family.packages.nginx | json }}

# It would be a second default site.
{{ family.nginx.distribution_site }}:
  file.absent:
    - require:
      - pkg: nginx-package
{%- endif %}

# A killed run, or another hand, may have left files that nginx does not start with.
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
