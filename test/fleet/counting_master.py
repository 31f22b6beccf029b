"""salt-master that logs each request: a JSON line of command, minion and path in /var/log/salt/requests."""

import json
import os

import salt.master
import salt.scripts

handle = salt.master.MWorker._handle_payload


def handle_and_count(worker, payload):
    load = payload.get("load") or {}
    # `_auth` requests are answered before this is called, with the payload only for information.
    request = {
        "command": payload.get("cmd") or load.get("cmd"),
        "minion": payload.get("id") or load.get("id"),
        "path": load.get("path"),
    }
    # Several processes of the master write here; lines as short as these are appended whole.
    with open("/var/log/salt/requests", "ab", buffering=0) as file:
        file.write(json.dumps(request).encode() + b"\n")
    return handle(worker, payload)


if __name__ == "__main__":
    os.makedirs("/var/log/salt", exist_ok=True)
    salt.master.MWorker._handle_payload = handle_and_count
    salt.scripts.salt_master()
