# The formula's own emperor: the distribution's runs as www-data, and can't give each app its user.
include:
  - wsgi.common
  - wsgi.uwsgi

/usr/local/lib/wsgi/vassal:
  wsgi.file_installed:
    - source: salt://wsgi/emperor/vassal
    - mode: '0755'

/etc/wsgi/emperor.ini:
  wsgi.file_installed:
    - source: salt://wsgi/emperor/emperor.ini

# A change of the unit or of emperor.ini takes effect when the administrator restarts the emperor: that
# restarts every app that it holds.
/etc/systemd/system/wsgi-emperor.service:
  wsgi.file_installed:
    - source: salt://wsgi/emperor/wsgi-emperor.service

emperor-service:
  wsgi.service_running:
    - name: wsgi-emperor
    - require:
      - pkg: uwsgi-package
      - wsgi: /usr/local/lib/wsgi/launch
      - wsgi: /usr/local/lib/wsgi/vassal
      - wsgi: /etc/wsgi/emperor.ini
      - wsgi: /etc/systemd/system/wsgi-emperor.service
