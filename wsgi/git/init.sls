# git, with ssh, to fetch code from repositories.
git-packages:
  pkg.installed:
    - pkgs: {{ salt['wsgi.plan']().family.packages.git | json }}
