"""
Where things lie on the machine.
"""

ETC = "/etc/wsgi"  # <app>/<generation>: configuration and environment

SRV = "/srv/wsgi"  # <app>/releases, <app>/environments

RUN = "/run/wsgi"  # <app>/<generation>: sockets, as nginx finds them; <app>/<generation>.own: the app's

LOG = "/var/log/wsgi"  # <app>/<generation>.log

LIB = "/var/lib/wsgi"  # live/<app>: the link to the live generation's sockets; home/<app>

TMPFILES = "/etc/tmpfiles.d"

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
