"""
The folders of the formula on the machine.
"""

# <app>/<generation>: configuration and environment
ETC = "/etc/wsgi"

# <app>/releases and <app>/environments
SRV = "/srv/wsgi"

# <app>/<generation>: sockets, where nginx finds them; <app>/<generation>.own: sockets, where the app makes them
RUN = "/run/wsgi"

# <app>/<generation>.log
LOG = "/var/log/wsgi"

# live/<app>: the link to the live generation's sockets; home/<app>: the app's home; and what else outlasts a reboot
LIB = "/var/lib/wsgi"

TMPFILES = "/etc/tmpfiles.d"

# The PATH of every program that the formula runs.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
