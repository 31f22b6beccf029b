# uv, for apps that say installer: uv, and from then on for those that leave the choice.
include:
  - wsgi.common

uv-environment:
  wsgi.tool_installed:
    - name: /usr/local/lib/wsgi/uv
    - requirements: [uv==0.13.9]
    - require:
      - pkg: wsgi-python
