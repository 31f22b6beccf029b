# gaffer, in a virtual environment of its own, with the Python 2.7 that it needs, which Debian 11 is the last to have.
# Jobs are added and removed one by one; gaffer is never restarted.
include:
  - wsgi.common

gaffer-package:
  pkg.installed:
    - pkgs: {{ salt['wsgi.plan']().family.packages.gaffer | json }}

gaffer-environment:
  wsgi.tool_installed:
    - name: /usr/local/lib/wsgi/gaffer
    - python: /usr/bin/python2.7
    - requirements:
      - gaffer==0.5.2
      - colorama==0.4.6
      - psutil==0.7.1
      - pyuv==0.10.13
      - setproctitle==1.1.10
      - six==1.17.0
      - tornado==2.4.1
    - require:
      - pkg: gaffer-package

/usr/local/lib/wsgi/gaffer/gafferd:
  wsgi.file_installed:
    - source: salt://wsgi/gaffer/gafferd
    - mode: '0755'
    - require:
      - wsgi: gaffer-environment

/etc/wsgi/gaffer/gafferd.ini:
  wsgi.file_installed:
    - source: salt://wsgi/gaffer/gafferd.ini

/etc/wsgi/gaffer/jobs:
  file.directory:
    - makedirs: true
    - mode: '0755'

# A change of the unit or of gafferd.ini takes effect when the administrator restarts gaffer: that
# restarts every app that it holds.
/etc/systemd/system/wsgi-gaffer.service:
  wsgi.file_installed:
    - source: salt://wsgi/gaffer/wsgi-gaffer.service

gaffer-service:
  wsgi.service_running:
    - name: wsgi-gaffer
    - require:
      - wsgi: /usr/local/lib/wsgi/append
      - wsgi: /usr/local/lib/wsgi/launch
      - wsgi: /usr/local/lib/wsgi/logged
      - wsgi: /usr/local/lib/wsgi/gaffer/gafferd
      - wsgi: /etc/wsgi/gaffer/gafferd.ini
      - file: /etc/wsgi/gaffer/jobs
      - wsgi: /etc/systemd/system/wsgi-gaffer.service
