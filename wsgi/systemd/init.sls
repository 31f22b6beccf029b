# systemd runs already. Each generation has units of its own, which come and go with it.
include:
  - wsgi.common

# What starts at boot is linked here; a system may have none yet.
systemd-wants:
  file.directory:
    - names:
      - /etc/systemd/system/multi-user.target.wants
      - /etc/systemd/system/timers.target.wants
    - mode: '0755'
