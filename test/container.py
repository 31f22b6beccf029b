"""A Debian machine in a container: systemd as PID 1, masterless Salt, this checkout as its formula.

Standard library and the `docker` command only, since ./highstate runs on a machine that has nothing else.
harness.Machine is the same with Docker's SDK.
"""

import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# The options with which systemd runs in a container; kitchen.yml has them too.
SYSTEMD = {
    # systemd mounts (SYS_ADMIN), which Docker's seccomp and AppArmor profiles forbid on their own;
    # start-stop-daemon reads /proc/PID/exe of other users' processes (SYS_PTRACE).
    "cap_add": ["SYS_ADMIN", "SYS_PTRACE"],
    "security_opt": ["seccomp=unconfined", "apparmor=unconfined"],
    "tmpfs": ["/run", "/run/lock"],
    # The same for cgroup v1 and v2: systemd needs its own cgroup writable, under the path that
    # /proc/1/cgroup tells; v2's default, a private namespace mounted read-only, gives it neither.
    "cgroupns": ["host"],
    "volume": ["/sys/fs/cgroup:/sys/fs/cgroup:rw"],
}


class CommandFailed(AssertionError):
    """A command ended with another code than 0; the text has the command and its output."""


def docker(*args, check=True, stdin=None):
    """Run `docker ARGS` with the text `stdin` as its input; CommandFailed when it fails and `check` is set."""
    done = subprocess.run(["docker", *args], check=False, input=stdin, capture_output=True, text=True)
    if check and done.returncode:
        raise CommandFailed(f"docker {' '.join(args)}: code {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def apt_install(*packages):
    """Install Debian packages on this computer, and print their names."""
    if os.geteuid() or not shutil.which("apt-get"):
        raise CommandFailed(f"{' '.join(packages)} must be installed first; root on Debian gets it installed from here")
    print("Installing on this machine:", *packages, flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", *packages]):
        if subprocess.run(["apt-get", "--quiet=2", *command], check=False, env=environment).returncode:
            raise CommandFailed(f"apt-get {' '.join(command)} failed; see above")


def ensure_docker(seconds=30):
    """Ensure that a Docker daemon answers; install or start it if this user may."""
    if shutil.which("docker") and not docker("version", check=False).returncode:
        return
    if not shutil.which("dockerd"):  # the client alone may be there
        apt_install("docker.io")
    if os.geteuid():
        raise CommandFailed(docker("version", check=False).stderr.strip())
    print("Starting the Docker daemon", flush=True)
    if Path("/run/systemd/system").is_dir():
        subprocess.run(["systemctl", "start", "docker"], check=False)
    else:
        with open("/var/log/dockerd.log", "a") as log:
            subprocess.Popen(["dockerd"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + seconds
    while docker("version", check=False).returncode:
        if time.monotonic() > deadline:
            raise CommandFailed(f"the Docker daemon doesn't answer after {seconds} s; its log should say why")
        time.sleep(0.2)


def build_image(platform):
    """Return the name of the platform's image, after building it if it is missing or out of date."""
    built = subprocess.run([ROOT / "test/image", platform], check=False, stdout=subprocess.PIPE, text=True)
    if built.returncode:
        raise CommandFailed(f"test/image {platform} failed; see above")
    return built.stdout.strip()


def salt_files(etc, srv, file_roots):
    """Return the files, path to text, with which `salt-call --config-dir=ETC state.highstate` applies the formula without
    a master and with the pillar SRV/pillar/wsgi.sls. `file_roots` are the folders that Salt serves."""
    minion = {
        "file_client": "local",
        "file_roots": {"base": [f"{srv}/salt-top", *file_roots]},
        "pillar_roots": {"base": [f"{srv}/pillar"]},
        "log_fmt_console": "%(levelname)s %(message)s",
    }
    top = json.dumps({"base": {"*": ["wsgi"]}})  # JSON is YAML
    return {f"{etc}/minion": json.dumps(minion, indent=2), f"{srv}/salt-top/top.sls": top, f"{srv}/pillar/top.sls": top}


@dataclass
class Result:
    """The exit code and the output of a command."""

    rc: int
    stdout: str
    stderr: str


class Container:
    """A running container, addressed by its name or id."""

    def __init__(self, name):
        self.name = name

    @classmethod
    def start(cls, image, *options, file_roots=()):
        """Boot `image` with further `docker run` options, and configure Salt in it.

        `file_roots` are folders inside the container that Salt serves besides the formula.
        """
        systemd = [f"--{name.replace('_', '-')}={value}" for name, values in SYSTEMD.items() for value in values]
        run = docker("run", "--detach", *systemd, f"--volume={ROOT}:/srv/formula:ro", *options, image)
        container = cls(run.stdout.strip()[:12])
        container.set_up(file_roots)
        return container

    def set_up(self, file_roots=()):
        """Wait for the end of the boot, and write Salt's configuration; see `start`."""
        self.wait()
        for path, text in salt_files("/etc/salt", "/srv", ["/srv/formula", *file_roots]).items():
            self.put(path, text)

    def wait(self, seconds=60):
        """Wait until systemd has booted: before that it still empties /tmp and starts services."""
        deadline = time.monotonic() + seconds
        while True:
            state = self.exec(["systemctl", "is-system-running"], check=False)
            if state.stdout.strip() in ("running", "degraded"):
                return
            if time.monotonic() > deadline:
                raise CommandFailed(
                    f"{self.name}: systemd is not up after {seconds} s: "
                    f"{(state.stdout or state.stderr).strip()}\n{self.logs()}"
                )
            time.sleep(0.1)

    def put(self, path, text, mode=0o644):
        """Write a file as root; its text is on no command line."""
        self.exec(["install", "-D", "-m", f"{mode:o}", "/dev/stdin", path], stdin=text)

    def exec(self, command, check=True, stdin=None):
        """Run a command as root: a list, or a string for the shell. `check=False` allows any exit code."""
        done = docker("exec", *["-i"] * (stdin is not None), self.name, *words(command), check=check, stdin=stdin)
        return Result(done.returncode, done.stdout, done.stderr)

    def logs(self):
        """Return the last lines that PID 1 has written."""
        logs = docker("logs", "--tail=20", self.name, check=False)
        return logs.stdout + logs.stderr

    def remove(self):
        docker("rm", "--force", "--volumes", self.name)


def words(command):
    """Return the argument list of a command: a list, or a string for the shell."""
    return ["sh", "-c", command] if isinstance(command, str) else [str(word) for word in command]
