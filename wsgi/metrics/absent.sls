# Nobody asks for metrics any more. The package stays: it may serve others.
metrics-services:
  service.dead:
    - names: [wsgi-metrics.socket, wsgi-metrics.service, prometheus-nginx-exporter]
    - enable: false
    # After the servers that tell it something.
    - order: last

metrics-files:
  file.absent:
    - names:
      - /etc/systemd/system/prometheus-nginx-exporter.service.d/wsgi.conf
      - /etc/systemd/system/wsgi-metrics.service
      - /etc/systemd/system/wsgi-metrics.socket
      - /usr/local/lib/wsgi/metrics
    - require:
      - service: metrics-services
    - order: last
