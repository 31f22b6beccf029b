# The release of each app installs hypercorn into its virtual environment.
include:
  - wsgi.common
