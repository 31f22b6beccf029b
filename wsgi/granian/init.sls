# The release of each app installs granian into its virtual environment.
include:
  - wsgi.common
