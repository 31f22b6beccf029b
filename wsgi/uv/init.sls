# uv, for apps with installer: uv; from then on also for apps that leave installer out.
include:
  - wsgi.common

uv-environment:
  wsgi.tool_installed:
    - name: /usr/local/lib/wsgi/uv
    - requirements: [uv==0.13.9]
    - require:
      - pkg: wsgi-python
