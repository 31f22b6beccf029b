# The program comes from the app's requirements, or is on the machine already.
include:
  - wsgi.common
