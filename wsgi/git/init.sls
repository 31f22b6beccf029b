# What fetches code from repositories, with the ssh that it may need for that.
git-packages:
  pkg.installed:
    - pkgs: {{ salt['wsgi.plan']().family.packages.git | json }}
