"""
systemd.
"""

import os

from ... import files
from ...paths import RUN, TMPFILES
from .base import WITH_ENVIRONMENT, systemctl


class Systemd:
    """
    systemd itself, with two services for each unit: the program, and what writes its log.

    systemd would write to a log itself, but never open it anew when it was rotated.
    """

    SYSTEM = "/etc/systemd/system"
    templates = ("systemd/program.service.jinja", "systemd/log.service.jinja")

    def __init__(self, host):
        self.host = host

    @staticmethod
    def _services(unit):
        return f"wsgi-{unit}.service", f"wsgi-{unit}.log.service"

    @staticmethod
    def _link(unit):
        return f"{Systemd.SYSTEM}/multi-user.target.wants/wsgi-{unit}.service"

    @staticmethod
    def _pipe(unit):
        name, _, id = unit.partition(".")
        return f"{RUN}/{name}/{id}.log"

    @staticmethod
    def _tmpfiles(unit):
        return f"{TMPFILES}/wsgi-{unit}.log.conf"

    def files(self, program):
        """The two services, and what makes the pipe between them at boot, path to text."""
        generation, services, pipe = program.generation, self._services(program.unit), self._pipe(program.unit)
        units = {
            f"{self.SYSTEM}/{service}": self.host.render(
                template,
                program=program,
                command=self.line([*program.launch, WITH_ENVIRONMENT, generation.config_dir, *program.command]),
                pipe=pipe,
                log_service=services[1],
            )
            for service, template in zip(services, self.templates)
        }
        # In a folder of root's: systemd opens it as root.
        return {**units, self._tmpfiles(program.unit): f"p {pipe} 0600 {generation.uid} {generation.gid} -\n"}

    @staticmethod
    def line(command):
        """A command as a unit has it: it expands % and $."""
        for special in ("\\", '"'):
            command = [word.replace(special, f"\\{special}") for word in command]
        return " ".join(f'"{word}"' for word in command).replace("%", "%%").replace("$", "$$")

    def start(self, program):
        """Have systemd start the program's service, which wants that of its log; now, and at boot."""
        unit, generation = program.unit, program.generation
        service = self._services(unit)[0]
        files.remove(self._pipe(unit))
        os.mkfifo(self._pipe(unit), 0o600)
        os.chown(self._pipe(unit), generation.uid, generation.gid)
        files.replace_symlink(f"{self.SYSTEM}/{service}", self._link(unit))
        systemctl("daemon-reload")
        systemctl("start", "--no-block", service)

    def stop(self, unit, patience):
        """Stop a program and then its log, which waits for the last line; leave no trace of them."""
        files.remove(self._link(unit))
        systemctl("stop", *self._services(unit))
        units = [f"{self.SYSTEM}/{service}" for service in self._services(unit)]
        for path in (*units, self._tmpfiles(unit), self._pipe(unit)):
            files.remove(path)
        systemctl("daemon-reload")
        systemctl("reset-failed", *self._services(unit))

    def failed(self, unit):
        """Why a unit that was just started will not come up, or None."""
        shown = self._shown(unit)
        if shown.get("LoadState") != "loaded":
            return f"systemd says {shown.get('LoadState', 'nothing')}"
        if shown["SubState"] in ("auto-restart", "failed") or shown["NRestarts"] != "0":
            return f"systemd says {shown['Result']}, status {shown['ExecMainStatus']}"
        return None

    def pid(self, unit):
        """The PID of a program, or None."""
        return int(self._shown(unit).get("MainPID", 0)) or None

    @staticmethod
    def registered(unit):
        """Whether the unit comes back by itself after a reboot."""
        return os.path.islink(Systemd._link(unit))

    def _shown(self, unit):
        properties = "LoadState,SubState,Result,NRestarts,ExecMainStatus,MainPID"
        shown = systemctl("show", f"--property={properties}", self._services(unit)[0])
        return dict(line.split("=", 1) for line in shown.splitlines())
