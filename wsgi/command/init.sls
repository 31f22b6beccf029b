# Whatever program the app's own requirements, or the machine, bring.
include:
  - wsgi.common
