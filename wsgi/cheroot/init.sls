# The release of each app installs cheroot into its virtual environment.
include:
  - wsgi.common
