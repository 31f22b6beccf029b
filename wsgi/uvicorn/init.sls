# The release of each app installs uvicorn into its virtual environment.
include:
  - wsgi.common
