# circus, in a virtual environment of its own. Watchers are added and removed one by one; circus is never restarted.
include:
  - wsgi.common

circus-environment:
  wsgi.tool_installed:
    - name: /usr/local/lib/wsgi/circus
    - requirements: [circus==0.19.0, psutil==7.1.0, pyzmq==27.1.0, tornado==6.5.10]
    - require:
      - pkg: wsgi-python

/etc/wsgi/circus.ini:
  wsgi.file_installed:
    - source: salt://wsgi/circus/circus.ini

/etc/wsgi/circus:
  file.directory:
    - makedirs: true
    - mode: '0755'

# A change of the unit or of circus.ini takes effect when the administrator restarts circus: that
# restarts every app that it holds.
/etc/systemd/system/wsgi-circus.service:
  wsgi.file_installed:
    - source: salt://wsgi/circus/wsgi-circus.service

circus-service:
  wsgi.service_running:
    - name: wsgi-circus
    - require:
      - wsgi: circus-environment
      - wsgi: /usr/local/lib/wsgi/append
      - wsgi: /usr/local/lib/wsgi/launch
      - wsgi: /usr/local/lib/wsgi/logged
      - wsgi: /etc/wsgi/circus.ini
      - file: /etc/wsgi/circus
      - wsgi: /etc/systemd/system/wsgi-circus.service
