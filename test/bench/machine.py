"""What the benchmarks share: their options, the machine they run on, and the line that says which it was."""

import argparse
import contextlib
import datetime
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import container
import harness


def arguments(text, runs):
    """A parser of what every benchmark takes; `text` is its docstring, `runs` how often it measures."""
    parser = argparse.ArgumentParser(description=text.split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=runs, help="of each kind; the median counts (default: %(default)s)")
    parser.add_argument("--platform", default="debian-12")
    parser.add_argument("--keep", action="store_true", help="leave the machine for a look")
    return parser


# A look at a file costs more on the layers of an image than on any machine's disk.
ON_DISK = ["/var/lib/wsgi", "/var/log"]


@contextlib.contextmanager
def booted(options):
    """A machine for as long as the `with` body runs."""
    container.ensure_docker()
    machine = harness.Machine.boot(options.platform, volumes=ON_DISK)
    try:
        yield machine
    finally:
        if options.keep:
            print(f"Left running: {machine.name}")
        else:
            machine.destroy()


def where(machine):
    """The machine and the versions, in one line."""
    cpu = machine.exec("sed -n 's/^model name.*: //p' /proc/cpuinfo | sort | uniq -c | sed 's/^ *//; s/ / × /'")
    versions = [machine.exec(command).stdout.strip() for command in ("salt-call --version", "python3 --version")]
    os_name = machine.exec(". /etc/os-release && echo $PRETTY_NAME").stdout.strip()
    kernel = f"Linux {platform.release()}"
    return ", ".join([f"{datetime.date.today()}", cpu.stdout.strip(), os_name, kernel, *versions])
