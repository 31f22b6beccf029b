# Serves every app of wsgi:apps, each under the server that pillar names, behind one nginx.
{%- if '_ssh_version' in opts %}
include:
  - wsgi.salt_ssh
{%- else %}
{#- Up here, since Salt quotes the lines around the call of wsgi.plan with its errors. #}
{%- set not_loaded = "The minion's copy of the formula's modules cannot be loaded, and the minion's log says why: run "
    "saltutil.sync_all, then repeat this. For 20 seconds after an update the master may list its files as before, "
    "unless you run salt-run fileserver.clear_file_list_cache" %}
{#- A fresh minion has no modules of ours yet. Salt would remember that wsgi.plan is missing if it were looked up now. #}
{%- if 'wsgi' not in salt['saltutil.list_extmods']().get('modules', []) %}
{%- if 'modules.wsgi' not in salt['saltutil.sync_all'](refresh=False, saltenv=saltenv).modules %}
{%- do salt['test.raise_exception']('salt.exceptions.CommandExecutionError', "salt://_modules/wsgi.py is not served: "
    "the formula's checkout has to be a file root of its own, in file_roots or gitfs_remotes") %}
{%- endif %}
{%- endif %}
{%- if salt['wsgi.plan'] is not defined %}
{%- do salt['test.raise_exception']('salt.exceptions.CommandExecutionError', not_loaded) %}
{%- endif %}
{%- set plan = salt['wsgi.plan'](saltenv) %}

wsgi-pillar:
  wsgi.pillar_valid:
    - order: first

{%- if not plan.host_wide %}

{#- What `include` would do with two requests to the master for each. #}
{%- for id, state in salt['wsgi.included'](plan.sls, renderers, rendered_sls).items() %}
{{ id | json }}: {{ state | json }}
{%- endfor %}

{%- for name, purge in plan.absent.items() %}

{{ name }}-absent:
  wsgi.app_absent:
    - name: {{ name }}
    - purge: {{ purge }}
{%- endfor %}

{%- for app in plan.apps %}

{{ app.name }}-release:
  wsgi.release_built:
    - name: {{ app.name }}
    - require:
      - pkg: wsgi-python
{%- for tool in app.tools %}
      - sls: wsgi.{{ tool }}
{%- endfor %}

{{ app.name }}-live:
  wsgi.generation_live:
    - name: {{ app.name }}
    - require:
      - wsgi: {{ app.name }}-release
      - sls: wsgi.{{ app.process_manager }}

{{ app.name }}-site:
  wsgi.site_present:
    - name: {{ app.name }}
    - require:
      - wsgi: {{ app.name }}-live
{%- endfor %}

wsgi-nginx:
  wsgi.nginx_reloaded: []
{%- if plan.acme == 'acme' %}

wsgi-certificates:
  wsgi.certificates_present:
    - require:
      - wsgi: wsgi-nginx
{%- endif %}
{%- endif %}
{%- if plan.status_page %}

# The page is written last, so that it also lists the states that failed.
wsgi-status-page:
  wsgi.status_page_written:
    - order: last
{%- endif %}
{%- endif %}
