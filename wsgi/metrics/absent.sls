# Removes the metrics. The package stays: it may have other users.
metrics-services:
  service.dead:
    - names: [wsgi-metrics.socket, wsgi-metrics.service, prometheus-nginx-exporter]
    - enable: false
    # Only after the servers that send it datagrams.
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
