# Cheroot is installed into each app's own environment, by its release.
include:
  - wsgi.common
