"""
The formula's own code, in layers: a module imports from its own layer and from those before it in this list.

- the ground: ``errors``, ``paths``, ``files``, ``process``, ``redact``, ``step``, ``lock``, ``diff``, ``untrusted``
- ``pillar``: what pillar asks for, merged and validated; pure functions
- ``host``, ``served``, ``salt_run``: the machine, as one Salt run sees it
- ``build``: sources, environments and what else makes a release
- ``app``: releases, history, overrides and secrets of an app
- ``run``: generations, their programs and the process managers
- ``edge``: nginx, certificates, static files, maintenance and status
- ``changes``: the switch, and what else changes an app

``docs/architecture.md`` has the map with more words. This module imports nothing: Salt's loader imports it, too.
"""
