# No site has an ACME certificate any more. certbot and its timer stay, because others may use them.
acme-files:
  file.absent:
    - names:
      - /etc/systemd/system/certbot.service.d/wsgi.conf
      - /usr/local/lib/wsgi/reload-nginx
      - /usr/local/lib/wsgi/reload-nginx.json
    # After the sites: the renewal settings of their certificates name the program.
    - order: last

acme-units:
  module.run:
    - service.systemctl_reload: []
    - onchanges:
      - file: acme-files
    - order: last
