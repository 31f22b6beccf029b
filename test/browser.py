#!/usr/bin/env python3
"""Opens a page in a headless Chromium, and prints the values of JavaScript expressions on it as JSON.

    browser.py --width 390 --height 844 --dark --screenshot page.png http://127.0.0.1/ '{"title": "document.title"}'

`console` is added to them: the errors of the browser. Standard library only; it speaks the DevTools protocol,
https://chromedevtools.github.io/devtools-protocol, over two pipes.
"""

import argparse
import base64
import itertools
import json
import os
import signal
import subprocess
import sys

CHROMIUM = [
    "chromium",
    "--headless",
    "--no-sandbox",  # root in a container can have none
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
    "about:blank",
]


class Browser:
    """One tab."""

    def __init__(self):
        read, commands = os.pipe()
        answers, write = os.pipe()

        # Chromium expects them as 3 and 4.
        shell = ["sh", "-c", f'exec "$@" 3<&{read} 4>&{write}', "sh", *CHROMIUM]
        self.process = subprocess.Popen(shell, stderr=subprocess.DEVNULL, pass_fds=(read, write))
        os.close(read)
        os.close(write)
        self.commands, self.answers = os.fdopen(commands, "wb"), os.fdopen(answers, "rb")
        self.ids, self.session, self.events, self.rest = itertools.count(1), None, [], b""
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]

    def call(self, method, **params):
        """Call a method of the protocol, and return its result."""
        message = {"id": next(self.ids), "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.commands.write(json.dumps(message).encode() + b"\0")
        self.commands.flush()
        while True:
            found = self._message()
            if found.get("id") == message["id"]:
                if "error" in found:
                    sys.exit(f"{method}: {found['error']}")
                return found["result"]
            self.events.append(found)

    def wait(self, event):
        while not any(each.get("method") == event for each in self.events):
            self.events.append(self._message())

    def _message(self):
        while b"\0" not in self.rest:
            received = os.read(self.answers.fileno(), 2**20)
            if not received:
                sys.exit("chromium has ended")
            self.rest += received
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("expressions", type=json.loads)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--screenshot", help="where to put one of the whole page")
    options = parser.parse_args()
    signal.alarm(60)  # seconds; it ends this program
    browser = Browser()
    for domain in ("Page", "Log", "Runtime"):
        browser.call(f"{domain}.enable")
    narrow = options.width < 600
    browser.call(
        "Emulation.setDeviceMetricsOverride",
        width=options.width,
        height=options.height,
        deviceScaleFactor=2 if narrow else 1,
        mobile=narrow,
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if options.dark else "light"}
    browser.call("Emulation.setEmulatedMedia", features=[scheme])
    browser.call("Page.navigate", url=options.url)
    browser.wait("Page.loadEventFired")
    found = {}
    for name, expression in options.expressions.items():
        result = browser.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in result:
            sys.exit(f"{name}: {result['exceptionDetails']}")
        found[name] = result["result"].get("value")
    if options.screenshot:
        shot = browser.call("Page.captureScreenshot", captureBeyondViewport=True)
        with open(options.screenshot, "wb") as file:
            file.write(base64.b64decode(shot["data"]))
    entries = [each["params"]["entry"]["text"] for each in browser.events if each.get("method") == "Log.entryAdded"]
    print(json.dumps({**found, "console": entries}))
    browser.process.terminate()
    browser.process.wait()


if __name__ == "__main__":
    main()
