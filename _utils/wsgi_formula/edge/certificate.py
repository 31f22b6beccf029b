"""Certificates: reading one, and making a self-signed one."""

from __future__ import annotations

import base64
import calendar
import re
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .. import files, step
from ..errors import WsgiError
from ..redact import tail

CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)

# Object identifiers of https://www.rfc-editor.org/rfc/rfc5280 in DER.
ALTERNATIVE_NAMES = bytes.fromhex("551d11")

AUTHORITY_ACCESS = bytes.fromhex("2b06010505070101")

OCSP = bytes.fromhex("2b06010505073001")

DAY = 86400  # seconds

SELF_SIGNED_DAYS = 397

TOOL_TIMEOUT = 300  # seconds


@dataclass(frozen=True)
class Certificate:
    """
    The content of a certificate.

    names : tuple of str
        Its host names.
    until : int
        The time when it expires, in seconds since 1970.
    ocsp : bool
        Whether it names an OCSP responder, which tells whether it was revoked.
    """

    names: tuple
    until: int
    ocsp: bool

    def missing(self, domains: Iterable[str]) -> list:
        """Return those of some host names that the certificate does not cover."""
        known = {name.lower() for name in self.names}
        wild = (domain.lower().partition(".")[2] for domain in domains)
        pairs = zip(domains, [f"*.{parent}" for parent in wild])
        return [domain for domain, parent in pairs if not known & {domain.lower(), parent}]

    def left(self) -> float:
        """Return the seconds until it expires."""
        return self.until - time.time()


def parse(text: str) -> Certificate:
    """Return the first certificate of a PEM text. Raises ValueError where there is none."""
    found = CERTIFICATE.search(text)
    if not found:
        raise ValueError("there is no certificate in it")
    try:
        signed = _inner(base64.b64decode(found[1]))[0][1]
        fields = [item for item in _inner(_inner(signed)[0][1]) if item[0] != 0xA0]  # not its version
        until = _inner(fields[3][1])[1]
        extensions: list = next((_inner(_inner(content)[0][1]) for tag, content in fields if tag == 0xA3), [])
        values = {}
        for _, extension in extensions:
            parts = _inner(extension)
            values[parts[0][1]] = parts[-1][1]
        names = _inner(_inner(values[ALTERNATIVE_NAMES])[0][1]) if ALTERNATIVE_NAMES in values else []
        access = _inner(_inner(values[AUTHORITY_ACCESS])[0][1]) if AUTHORITY_ACCESS in values else []
        return Certificate(
            tuple(name.decode("ascii") for tag, name in names if tag == 0x82),
            _time(*until),
            any(_inner(description)[0][1] == OCSP for _, description in access),
        )
    except (IndexError, ValueError) as error:
        raise ValueError("the certificate cannot be read") from error


def _inner(der):
    """Return the items of a DER sequence, a list of tags and contents."""
    items, at = [], 0
    while at < len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length & 0x80:
            digits = length & 0x7F
            length, at = int.from_bytes(der[at : at + digits], "big"), at + digits
        items.append((tag, der[at : at + length]))
        at += length
    return items


def _time(tag, text):
    form = "%y%m%d%H%M%SZ" if tag == 0x17 else "%Y%m%d%H%M%SZ"  # UTCTime, or GeneralizedTime
    return calendar.timegm(time.strptime(text.decode("ascii"), form))


def make_self_signed(names: list) -> tuple[str, str]:
    """Make a self-signed certificate for some host names; return its text and its key's."""
    with tempfile.TemporaryDirectory() as folder:  # only root may read it
        files.write(
            f"{folder}/request",
            "[req]\nprompt = no\ndistinguished_name = name\nx509_extensions = extensions\n"
            "[name]\nCN = self-signed\n"
            "[extensions]\nbasicConstraints = critical, CA:FALSE\nkeyUsage = critical, digitalSignature\n"
            f"extendedKeyUsage = serverAuth\nsubjectAltName = {', '.join(f'DNS:{name}' for name in names)}\n",
            0o600,
        )
        made = f"{folder}/certificate", f"{folder}/key"
        command = ["openssl", "req", "-x509", "-sha256", "-days", str(SELF_SIGNED_DAYS), "-config", f"{folder}/request"]
        command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        run_tool([*command, "-out", made[0], "-keyout", made[1]], "openssl made no certificate")
        return files.read(made[0]) or "", files.read(made[1]) or ""


def run_tool(command: list, failure: str, env: Mapping[str, str] | None = None) -> None:
    """
    Run openssl or certbot to its end.

    command : list of str
    failure : str
        The beginning of the ``WsgiError`` that is raised when the program fails, before the end of its output.
    env : dict
        Environment variables beside the usual ones.
    """
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**step.index_environment(), **(env or {})},
            timeout=TOOL_TIMEOUT,
            check=False,
        )
    except FileNotFoundError as error:
        raise WsgiError(f"{failure}: {command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise WsgiError(f"{failure}: {command[0]} took longer than {TOOL_TIMEOUT} s") from error
    if done.returncode:
        raise WsgiError(f"{failure}:\n{tail(done.stdout)}")
