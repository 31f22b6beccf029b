# What makes self-signed certificates.
tls-packages:
  pkg.installed:
    - pkgs: {{ salt['wsgi.plan']().family.packages.tls | json }}
