"""The options, the machine and the line about the machine that all benchmarks share."""

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
    """Return a parser with the options of every benchmark; `text` is its docstring, `runs` the default of --runs."""
    parser = argparse.ArgumentParser(description=text.split("\n\n")[0])
    parser.add_argument(
        "--runs", type=int, default=runs, help="runs per kind; the median counts (default: %(default)s)"
    )
    parser.add_argument("--platform", default="debian-12")
    parser.add_argument("--keep", action="store_true", help="keep the machine")
    return parser


# stat() costs more on the layers of an image than on any machine's disk.
ON_DISK = ["/var/lib/wsgi", "/var/log"]


@contextlib.contextmanager
def booted(options):
    """Boot a machine for the body of a `with` statement."""
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
    """Return a line about the machine and the versions."""
    cpu = machine.exec("sed -n 's/^model name.*: //p' /proc/cpuinfo | sort | uniq -c | sed 's/^ *//; s/ / × /'")
    versions = [machine.exec(command).stdout.strip() for command in ("salt-call --version", "python3 --version")]
    os_name = machine.exec(". /etc/os-release && echo $PRETTY_NAME").stdout.strip()
    kernel = f"Linux {platform.release()}"
    return ", ".join([f"{datetime.date.today()}", cpu.stdout.strip(), os_name, kernel, *versions])
