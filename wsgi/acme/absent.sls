# No site asks an authority any more. The client stays, with its timer: it may serve others.
acme-files:
  file.absent:
    - names:
      - /etc/systemd/system/certbot.service.d/wsgi.conf
      - /usr/local/lib/wsgi/reload-nginx
      - /usr/local/lib/wsgi/wsgi_reload.py
    # After the sites, whose certificates name it.
    - order: last

acme-units:
  module.run:
    - service.systemctl_reload: []
    - onchanges:
      - file: acme-files
    - order: last
