# Metrics for Prometheus: nginx's from the distribution's exporter, those of the apps from a program of the formula.
{%- set plan = salt['wsgi.plan']() %}
{%- set context = {'port': plan.metrics_port, 'socket': plan.metrics_socket, 'user': plan.family.nginx.user} %}

# Before the package, which starts the exporter.
/etc/systemd/system/prometheus-nginx-exporter.service.d/wsgi.conf:
  wsgi.file_installed:
    - source: salt://wsgi/metrics/nginx-exporter.conf.jinja
    - context: {{ context | json }}

nginx-exporter-package:
  pkg.installed:
    - pkgs: {{ plan.family.packages.nginx_exporter | json }}
    - require:
      - wsgi: /etc/systemd/system/prometheus-nginx-exporter.service.d/wsgi.conf

nginx-exporter-service:
  wsgi.service_running:
    - name: prometheus-nginx-exporter
    # The exporter ends if nginx does not answer.
    - order: last
    - require:
      - pkg: nginx-exporter-package
      - wsgi: wsgi-nginx

/usr/local/lib/wsgi/metrics:
  wsgi.file_installed:
    - source: salt://wsgi/metrics/metrics
    - mode: '0755'
{%- for unit in ['wsgi-metrics.socket', 'wsgi-metrics.service'] %}

/etc/systemd/system/{{ unit }}:
  wsgi.file_installed:
    - source: salt://wsgi/metrics/{{ unit }}.jinja
    - context: {{ context | json }}
{%- endfor %}

# systemd starts the program at the first datagram or request.
metrics-socket:
  wsgi.service_running:
    - name: wsgi-metrics.socket
    - socket: {{ plan.metrics_socket }}
    - require:
      - wsgi: /usr/local/lib/wsgi/metrics
      - wsgi: /etc/systemd/system/wsgi-metrics.socket
      - wsgi: /etc/systemd/system/wsgi-metrics.service

metrics-restarted:
  cmd.run:
    - name: systemctl daemon-reload && systemctl try-restart wsgi-metrics.service
    - require:
      - wsgi: metrics-socket
    - onchanges:
      - wsgi: /usr/local/lib/wsgi/metrics
      - wsgi: /etc/systemd/system/wsgi-metrics.service
