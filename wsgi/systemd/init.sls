# systemd runs already. Each generation has units of its own.
include:
  - wsgi.common

# Services that start at boot are linked here; a system may not have the folder yet.
systemd-wants:
  file.directory:
    - names:
      - /etc/systemd/system/multi-user.target.wants
      - /etc/systemd/system/timers.target.wants
    - mode: '0755'
