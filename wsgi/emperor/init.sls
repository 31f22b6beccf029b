# An emperor of our own: the distribution's runs as www-data, and can't give each app its user.
include:
  - wsgi.common
  - wsgi.uwsgi

/usr/local/lib/wsgi/vassal:
  file.managed:
    - source: salt://wsgi/emperor/vassal
    - makedirs: true
    - mode: '0755'

/etc/wsgi/emperor.ini:
  file.managed:
    - source: salt://wsgi/emperor/emperor.ini
    - makedirs: true
    - mode: '0644'

# A change of the unit or of emperor.ini takes effect when the administrator restarts it: that
# restarts every app that it holds.
/etc/systemd/system/wsgi-emperor.service:
  file.managed:
    - source: salt://wsgi/emperor/wsgi-emperor.service
    - mode: '0644'

emperor-service:
  wsgi.daemon:
    - name: wsgi-emperor
    - require:
      - pkg: uwsgi-package
      - file: /usr/local/lib/wsgi/launch
      - file: /usr/local/lib/wsgi/vassal
      - file: /etc/wsgi/emperor.ini
      - file: /etc/systemd/system/wsgi-emperor.service
