# The shared proxy. The apps' sites come with the apps.
{%- set family = salt['wsgi.plan']().family %}

nginx-package:
  pkg.installed:
    - pkgs: {{ family.packages.nginx | json }}

# It would be a second default site.
{{ family.nginx.distribution_site }}:
  file.absent:
    - require:
      - pkg: nginx-package

/usr/local/lib/wsgi/maintenance.html:
  file.managed:
    - source: salt://wsgi/nginx/maintenance.html
    - makedirs: true
    - mode: '0644'

nginx-service:
  wsgi.daemon:
    - name: nginx
    - require:
      - pkg: nginx-package
