"""A Debian machine in a container: systemd as PID 1, masterless Salt, this checkout as its formula.

Standard library and the `docker` command only, since ./highstate runs on a machine that has nothing else.
"""

import json
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# The one place that says how systemd is made to run in a container, kitchen.yml apart.
SYSTEMD = [
    # systemd mounts (SYS_ADMIN), which Docker's seccomp and AppArmor profiles forbid on their own;
    # start-stop-daemon reads /proc/PID/exe of other users' processes (SYS_PTRACE).
    "--cap-add=SYS_ADMIN",
    "--cap-add=SYS_PTRACE",
    "--security-opt=seccomp=unconfined",
    "--security-opt=apparmor=unconfined",
    "--tmpfs=/run",
    "--tmpfs=/run/lock",
    # The same for cgroup v1 and v2: systemd needs its own cgroup writable, under the path that
    # /proc/1/cgroup tells; v2's default, a private namespace mounted read-only, gives it neither.
    "--cgroupns=host",
    "--volume=/sys/fs/cgroup:/sys/fs/cgroup:rw",
    # One cache of wheels for all containers; pip replaces its entries atomically.
    "--volume=wsgi-formula-pip:/var/cache/pip",
]


class CommandFailed(AssertionError):
    """A command ended with another code than 0; the text holds the command and what it said."""


def docker(*args, check=True, stdin=None):
    """Runs `docker ARGS` with the text `stdin` as its input; CommandFailed when it fails and `check` is set."""
    done = subprocess.run(["docker", *args], check=False, input=stdin, capture_output=True, text=True)
    if check and done.returncode:
        raise CommandFailed(f"docker {' '.join(args)}: code {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def build_image(platform):
    """The name of the platform's image, made first where it is missing or out of date."""
    built = subprocess.run([ROOT / "test/image", platform], check=False, stdout=subprocess.PIPE, text=True)
    if built.returncode:
        raise CommandFailed(f"test/image {platform} failed; see above")
    return built.stdout.strip()


class Container:
    """A running container, addressed by its name or id."""

    def __init__(self, name):
        self.name = name

    @classmethod
    def start(cls, image, *options, file_roots=()):
        """Boots `image` with further `docker run` options and configures Salt in it.

        `file_roots` are folders inside the container that Salt serves besides the formula.
        """
        run = docker("run", "--detach", *SYSTEMD, f"--volume={ROOT}:/srv/formula:ro", *options, image)
        container = cls(run.stdout.strip()[:12])
        container.wait()
        container.configure_salt(file_roots)
        return container

    def wait(self, seconds=60):
        """Waits until systemd has booted: before that it still empties /tmp and starts services."""
        deadline = time.monotonic() + seconds
        while True:
            state = docker("exec", self.name, "systemctl", "is-system-running", check=False)
            if state.stdout.strip() in ("running", "degraded"):
                return
            if time.monotonic() > deadline:
                logs = docker("logs", "--tail=20", self.name, check=False)
                raise CommandFailed(
                    f"{self.name}: systemd is not up after {seconds} s: "
                    f"{(state.stdout or state.stderr).strip()}\n{logs.stdout}{logs.stderr}"
                )
            time.sleep(0.1)

    def configure_salt(self, file_roots=()):
        """Makes `salt-call state.highstate` apply the formula, with /srv/pillar/wsgi.sls as its pillar."""
        roots = ["/srv/salt-top", "/srv/formula", *file_roots]
        minion = {
            "file_client": "local",
            "file_roots": {"base": roots},
            "pillar_roots": {"base": ["/srv/pillar"]},
        }
        top = json.dumps({"base": {"*": ["wsgi"]}})  # JSON is YAML
        self.put("/etc/salt/minion", json.dumps(minion, indent=2))
        self.put("/srv/salt-top/top.sls", top)
        self.put("/srv/pillar/top.sls", top)

    def put(self, path, text, mode=0o644):
        """Writes a file as root; its text never stands on a command line."""
        docker("exec", "-i", self.name, "install", "-D", "-m", f"{mode:o}", "/dev/stdin", path, stdin=text)

    def put_pillar(self, text):
        """Sets the pillar of the next run; readable by root only, for it may hold secrets."""
        self.put("/srv/pillar/wsgi.sls", text, 0o600)

    def remove(self):
        docker("rm", "--force", "--volumes", self.name)
