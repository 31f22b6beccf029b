# systemd runs already. Each generation has units of its own, which come and go with it.
include:
  - wsgi.common
