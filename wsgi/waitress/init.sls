# The release of each app installs waitress into its virtual environment.
include:
  - wsgi.common
