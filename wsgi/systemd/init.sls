# systemd runs already. Each generation has units of its own, which come and go with it.
include:
  - wsgi.common

/usr/local/lib/wsgi/append:
  file.managed:
    - source: salt://wsgi/common/append
    - makedirs: true
    - mode: '0755'
