"""
Hypothesis strategies for pillar values: all that each rule of the schema accepts, with odd characters and up to its limits.

`APP`, `NGINX` and `STATUS_PAGE` have a strategy for each key; `edges()` and `processes()` draw whole apps.
"""

import string
import sys

import yaml
from container import ROOT
from hypothesis import strategies as st
from pillars import HELLO

sys.path.insert(0, str(ROOT / "_utils"))

from wsgi_formula.pillar import edge
from wsgi_formula.pillar.rules import DOMAIN_LENGTH, NGINX_WORD, TEXT_LENGTH
from wsgi_formula.pillar.schema import (
    APPLICATION,
    COMMAND_LENGTH,
    HOOKS,
    OPTION_LENGTH,
    RESERVED_PROGRAMS,
    VARIABLE_LENGTH,
)

SERVERS = yaml.safe_load((ROOT / "wsgi/servers.yaml").read_text())
# Characters with a meaning in some file that values are rendered into.
ODD = "\"'\\$%;#{}()[]<>|&*?!~`=,: @^é𝄞"
LINE = st.one_of(
    st.text(st.sampled_from(string.ascii_letters + ODD), min_size=1, max_size=30),
    st.text(min_size=1, max_size=20).filter(str.isprintable),
    st.sampled_from(
        (
            "%(here)s",
            "%n",
            "$(HOME)",
            "$HOME",
            "${HOME}",
            "$$",
            "%%",
            "@(/etc/passwd)",
            "; x",
            " # x",
            "x ",
            " x",
            "a\\",
        )
        + ("$(circus.env.HOME)", "((circus.x))", "[program:x]", "'", '"', "\\n", "<br>", "-x", "=", "*")
    ),
)


def full(text, length):
    """Repeat a text up to a length in bytes."""
    return (text * (length // len(text.encode()) + 1)).encode()[:length].decode(errors="ignore")


def up_to(strategy, length):
    """Return a strategy for the texts of another, some of them repeated up to the greatest length."""
    return st.one_of(strategy, strategy, strategy.map(lambda text: full(text, length)))


def words_of(alphabet, length):
    return up_to(st.text(alphabet, min_size=1, max_size=20), length)


MAYBE_FOLDER = st.sampled_from(["", "/"])


def path(alphabet, length, end=MAYBE_FOLDER):
    """Return a strategy for absolute paths whose parts have such characters."""
    part = st.text(alphabet, min_size=1, max_size=40).filter(lambda text: text not in (".", ".."))
    parts = st.lists(part, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))
    longest = part.map(lambda text: full(f"/{text}x", length - 2) + "x")
    return st.tuples(st.one_of(parts, longest).filter(lambda text: len(text.encode()) < length), end).map("".join)


def domain_of(length):
    """Return a host name of so many characters."""
    text = (("a" * 61 + ".") * 5)[: length - 1]
    return (text[:-1] + "a" if text.endswith(".") else text) + "z"


LABEL = st.text(string.ascii_letters + string.digits + "-", min_size=1, max_size=15).map(lambda text: f"a{text}0")
DOMAIN = st.one_of(
    st.lists(LABEL, min_size=1, max_size=3).map(".".join),
    st.integers(44, DOMAIN_LENGTH).map(domain_of),
    st.sampled_from([44, 45, 46, 47, 63, DOMAIN_LENGTH]).map(domain_of),
)
WILD = st.one_of(DOMAIN, DOMAIN.filter(lambda name: len(name) <= DOMAIN_LENGTH - 2).map("*.{}".format))
PLAIN = string.ascii_letters + string.digits + "_.~-"
URL_PATH = path(PLAIN + "+@", edge.PATH_LENGTH)
MOUNT = st.one_of(st.just("/"), path(PLAIN, edge.MOUNT_LENGTH, end=st.just("")))
FILE = path(PLAIN + "+@,=%é", 250, end=st.just(""))
FOLDER = st.one_of(FILE, FILE.map(lambda text: text[1:]))
PREFIX = path(PLAIN + "+@", edge.PREFIX_LENGTH)
SIZE = st.one_of(
    st.integers(0, edge.MOST_BYTES),
    st.sampled_from(["0", "1k", "10M", "8589934591g", "8796093022207m", "9007199254740991K", edge.MOST_BYTES]),
)
TIME = st.sampled_from(
    [1, 3153600000, "0", "10", "10s", "1h30m", "1y2M3w4d5h6m7s", "1y2M3w4d5h6m7", "100y", "52560000m"]
)
NETWORK = st.one_of(
    st.ip_addresses().map(str),
    st.tuples(st.ip_addresses(v=4), st.integers(0, 32)).map("{0[0]}/{0[1]}".format),
    st.tuples(st.ip_addresses(v=6), st.integers(0, 128)).map("{0[0]}/{0[1]}".format),
    st.sampled_from(["::ffff:192.0.2.1", "::ffff:192.0.2.0/120", "::1", "2001:DB8::/32"]),
)
NETWORKS = st.lists(NETWORK, min_size=1, max_size=5)
ZONE = st.text(string.ascii_lowercase + string.digits + "_-", max_size=31).map("z{}".format).map(lambda text: text[:32])
HEADER = words_of(string.ascii_letters + string.digits + "-", edge.HEADER_LENGTH)
NAMES = st.lists(HEADER, max_size=20)
HEADER_VALUE = up_to(LINE.map(lambda text: text.replace("$", "S")), NGINX_WORD).map(
    lambda text: text[: NGINX_WORD // 2] if set(text) & {'"', "\\"} else text
)
HASH = st.sampled_from(
    [
        "$6$saltsalt$hash",
        full("$2b$05$saltsaltsaltsaltsaltsOFUVpPSbLmbMm6NGyYQOot1ZXuJBZWo.", edge.HASH_LENGTH),
    ]
)
REALM = up_to(LINE, edge.PATH_LENGTH).map(lambda text: "".join("x" if each in '"\\$' else each for each in text))
BASIC_AUTH = {
    "realm": REALM,
    "users": st.dictionaries(words_of(string.ascii_letters + "@.$é", 255), HASH, min_size=1, max_size=3),
    "except": st.lists(URL_PATH, max_size=3),
}
LIMIT = {
    "path": URL_PATH,
    "rate": st.tuples(st.integers(1, 9999999), st.sampled_from("sm")).map("{0[0]}r/{0[1]}".format),
    "burst": st.integers(0, 1000000),
    "connections": st.integers(1, 65535),
}


def some(keys, needed=()):
    """Return a strategy for mappings of some of the keys, and all needed ones."""
    optional = {key: strategy for key, strategy in keys.items() if key not in needed}
    return st.fixed_dictionaries({key: keys[key] for key in needed}, optional=optional)


WORD = up_to(LINE, TEXT_LENGTH)
WORDS = st.one_of(
    st.lists(st.one_of(WORD, st.integers(-9, 9), st.floats(-9, 9)), min_size=1, max_size=5),
    LINE.map(lambda text: full(text, COMMAND_LENGTH - 2)).map(lambda text: [text]),
    st.sampled_from(["celery -A shop worker", "echo '100% \"it\"' \\; %n", "a 'b c' \"$HOME\" é ;x #y"]),
)
PROGRAM_NAME = ZONE.filter(lambda name: name not in RESERVED_PROGRAMS)
NUMBER = st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False))
SCALAR = st.one_of(up_to(LINE, OPTION_LENGTH), st.just(""), NUMBER, st.booleans())
OPTION = st.one_of(SCALAR, st.lists(SCALAR, max_size=4))
# Options of servers that accept any text.
OPTION_NAMES = {"uwsgi": ["logformat", "log-prefix"], "gunicorn": ["statsd_prefix", "access_log_format"]}
OPTIONS = {
    server: st.dictionaries(st.sampled_from(OPTION_NAMES.get(server, ["some-option", "other_option"])), OPTION)
    for server in SERVERS
}
VARIABLE = st.text(string.ascii_letters + "_", min_size=1, max_size=20).filter(lambda name: name != "OPTIND")
ANYTHING = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=50)
VALUE = st.one_of(
    ANYTHING,
    LINE,
    LINE.map(lambda text: full(text, VARIABLE_LENGTH - 25)),
    NUMBER,
    st.sampled_from(
        ["", "\n", "a\n\nb\n", "'", "\x81\x82", "\udbff\udfff".encode("utf-16", "surrogatepass").decode("utf-16")]
    ),
)
COMMANDS = st.lists(st.one_of(WORDS, st.fixed_dictionaries({"command": WORDS})), max_size=2)
HEALTH_PATH = words_of(string.ascii_letters + string.digits + string.punctuation, TEXT_LENGTH - 1).map("/{}".format)
PEM = st.just("-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n")
SALT_FOLDER = st.just("salt://wsgi/examples/hello")
WITH_DOMAIN = st.just("none")

TLS = {
    "certificate": st.sampled_from(["self_signed", "none"]),
    "key": st.just("/etc/ssl/private/shop.key"),
    "listen": st.integers(8443, 8500),
    "redirect": st.booleans(),
    "http2": st.just(True),
    "http3": st.just(False),
    "hsts": st.integers(0, 100 * 365 * 86400),
    "hsts_subdomains": st.booleans(),
    "hsts_preload": st.booleans(),
}
CACHE = {
    "valid": TIME,
    "size": SIZE,
    "paths": st.lists(URL_PATH, max_size=3),
    "stale": st.booleans(),
    "bypass_cookies": st.lists(words_of(PLAIN.replace("~", ""), 200), max_size=5),
}
ORIGIN = st.tuples(
    st.sampled_from(["http://", "https://", "https://*."]), DOMAIN, st.sampled_from(["", ":1", ":65535"])
)
CORS = {
    "origins": st.one_of(
        st.just(["*"]), st.lists(ORIGIN.map("".join).map(lambda text: text[:267]), min_size=1, max_size=3)
    ),
    "methods": st.lists(st.text(string.ascii_uppercase, min_size=1, max_size=20), max_size=20),
    "headers": NAMES,
    "expose": NAMES,
    "credentials": st.booleans(),
    "max_age": st.integers(0, 86400),
}
EDGE = {
    "domains": st.lists(WILD, min_size=1, max_size=4),
    "redirect_domains": st.lists(WILD, min_size=1, max_size=2),
    "listen": st.integers(1, 65535),
    "mount": MOUNT,
    "tls": some(TLS),
    "static": st.dictionaries(PREFIX, FOLDER, min_size=1, max_size=3),
    "internal": st.dictionaries(PREFIX, FOLDER, min_size=1, max_size=3),
    "error_pages": st.dictionaries(
        st.integers(400, 599).filter(lambda code: code != 499), FOLDER, min_size=1, max_size=9
    ),
    "client_max_body_size": SIZE,
    "buffering": st.booleans(),
    "request_buffering": st.booleans(),
    "allow": NETWORKS,
    "limits": st.dictionaries(ZONE, some(LIMIT, ["rate"]), min_size=1, max_size=3),
    "basic_auth": some(BASIC_AUTH, ["users"]),
    "cache": some(CACHE, ["valid"]),
    "compression": st.booleans(),
    "security_headers": st.booleans(),
    "response_headers": st.dictionaries(
        HEADER.filter(lambda name: name.lower() not in edge.OWN_HEADERS), HEADER_VALUE, min_size=1, max_size=4
    ),
    "cors": some(CORS, ["origins"]),
    "access_log": st.sampled_from(["json", "combined", "none"]),
    "metrics": st.booleans(),
    "nginx": st.fixed_dictionaries({}, optional={key: LINE.map("# {}".format) for key in edge.RAW}),
}
PROCESSES = {
    "workers": st.sampled_from([1, 2, 63, 64, 1024]),
    "threads": st.integers(1, 1024),
    "preload": st.booleans(),
    "request_timeout": st.integers(1, 86400),
    "graceful_timeout": st.integers(1, 86400),
    "max_requests": st.integers(0, 2**31 - 1),
    "memory_limit": st.integers(16, 2**20),
    "env": st.dictionaries(VARIABLE, VALUE, min_size=1, max_size=4),
    "health": some(
        {"path": HEALTH_PATH, "status": st.integers(100, 599), "deadline": st.integers(1, 3600), "host": DOMAIN}
    ),
    "hooks": st.fixed_dictionaries({}, optional=dict.fromkeys(HOOKS, COMMANDS)),
    "processes": st.dictionaries(
        PROGRAM_NAME,
        st.fixed_dictionaries({"command": WORDS}, optional={"count": st.integers(1, 2)}),
        min_size=1,
        max_size=2,
    ),
    "schedule": st.dictionaries(
        PROGRAM_NAME, st.fixed_dictionaries({"command": WORDS, "calendar": st.just("daily")}), min_size=1, max_size=2
    ),
    "server_options": st.fixed_dictionaries({}, optional=OPTIONS),
}
# Settings that are in no file of another program.
OTHER = {
    "state": st.just("present"),
    "server": st.sampled_from([*SERVERS]),
    "process_manager": st.sampled_from(["supervisor", "systemd", "circus"]),
    "install": st.just("environment"),
    "version": st.just("99.0"),
    "allow_vulnerable": st.booleans(),
    "application": st.from_regex(APPLICATION, fullmatch=True),
    "interface": st.just("wsgi"),
    "command": st.lists(LINE, max_size=3).map(lambda words: [*words, "{socket}"]),
    "source": SALT_FOLDER,
    "deploy_key": PEM,
    "known_hosts": st.just("example.com ssh-ed25519 AAAA"),
    "requirements": st.lists(WORD.filter(lambda text: not text.startswith("-")), max_size=3),
    "installer": st.sampled_from(["pip", "uv"]),
    "wheels": FILE,
    "index": st.one_of(
        st.just(False), HEALTH_PATH.map("https://example.com{}".format).map(lambda text: text[:TEXT_LENGTH])
    ),
    "extra_index": st.just(["https://example.com/"]),
    "python": st.sampled_from(["python3", "/usr/bin/python3.11", "pypy3"]),
    "user": st.text(string.ascii_lowercase + "_-", max_size=31).map("u{}".format),
    "env_files": st.lists(FILE, max_size=2),
    "rollback_on_failure": st.booleans(),
    "maintenance": some({"page": st.just("salt://x.html"), "retry_after": st.integers(1, 86400)}),
    "keep_releases": st.integers(1, 1000),
    "source_limits": some(
        {
            "size": st.from_regex(r"[1-9][0-9]{0,11}[kKmMgG]?", fullmatch=True) | st.integers(1, 10**12 - 1),
            "files": st.integers(1, 10_000_000),
            "depth": st.integers(1, 200),
        }
    ),
    "purge": st.booleans(),
}
APP = {**OTHER, **EDGE, **PROCESSES}
NGINX = {
    "manage": st.just(True),
    "client_max_body_size": SIZE,
    "default_site": st.booleans(),
    "tls_profile": st.sampled_from(["intermediate", "modern"]),
    "acme": st.just({"email": "ops@example.com"}),
    "trusted_proxies": NETWORKS.map(lambda networks: [network for network in networks if not network.endswith("/0")]),
    "proxy_protocol": st.just(False),
    "metrics": st.booleans(),
    **{key: LINE.map("# {}".format) for key in edge.RAW},
}
STATUS_PAGE = {
    "listen": st.integers(8600, 8700),
    "domain": DOMAIN,
    "basic_auth": some(BASIC_AUTH, ["users"]).map(
        lambda said: {key: value for key, value in said.items() if key != "except"}
    ),
}


def app(own=None):
    """Return the pillar of a minimal app, with other settings."""
    return {**HELLO, "user": "www-data", **(own or {})}


@st.composite
def edges(draw):
    """Draw apps with several edge settings that go together."""
    said = {**draw(some(EDGE)), "domains": draw(EDGE["domains"]), "workers": draw(PROCESSES["workers"])}
    if "redirect_domains" in said:
        taken = {name.lower() for name in said["domains"]}
        said["redirect_domains"] = [name for name in said["redirect_domains"] if name.lower() not in taken]
        said["domains"].insert(0, "first.test")
    if "cache" in said:
        said.pop("buffering", None)
    if said.get("cors", {}).get("origins") == ["*"]:
        said["cors"].pop("credentials", None)
    # A path is either.
    said["internal"] = {f"/internal{name}"[:150]: place for name, place in said.get("internal", {}).items()}
    said["response_headers"] = {
        name: value for name, value in said.get("response_headers", {}).items() if not name.lower().startswith("access")
    }
    return app(said)


@st.composite
def processes(draw):
    """Draw apps with several settings of their server, processes and schedule."""
    server = draw(st.sampled_from([*SERVERS]))
    row = SERVERS[server]
    said = draw(some(PROCESSES, ["env", "processes", "schedule"]))
    said["server_options"] = {server: draw(OPTIONS[server])} if server != "bjoern" else {}
    said["process_manager"] = draw(st.sampled_from([each for each in row["process_managers"] if each != "gaffer"]))
    said["schedule"] = {f"y{name[:31]}": each for name, each in said["schedule"].items()}
    neutral = ("workers", "threads", "preload", "request_timeout", "graceful_timeout", "max_requests", "memory_limit")
    honours = [
        name for name, word in row["honours"].items() if not isinstance(word, dict) or word.get(row["interfaces"][0])
    ]
    said = {key: value for key, value in said.items() if key not in neutral or key in honours}
    said["interface"] = row["interfaces"][0]
    if server == "command":
        said["command"] = draw(OTHER["command"])
    return app({**said, "server": server})
