# The release of each app installs gunicorn into its virtual environment.
include:
  - wsgi.common
