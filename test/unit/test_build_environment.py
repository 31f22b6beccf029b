"""Environments: which changes of requirements and code change the id, and how pip and uv are configured."""

import importlib
import os

import pytest
from wsgi_formula.build import environment, installers
from wsgi_formula.build.environment import Environment, Recipe
from wsgi_formula.build.installers import Pip, Uv
from wsgi_formula.build.requirements import Requirements
from wsgi_formula.errors import WsgiError
from wsgi_formula.pillar.app import App
from wsgi_formula.redact import passwords_of
from wsgi_formula.untrusted import TEXT

APP = {"server": "gunicorn", "source": "salt://shop", "application": "shop:application"}
PROJECT = "[project]\nname = 'shop'\nversion = '1'\ndependencies = ['tiny<2', 'other']\n"


@pytest.fixture
def required(tmp_path):
    """required("requirements.txt", {"requirements.txt": …}) returns the Requirements of an app with these files."""

    def of(requirements, files=None, source="salt://shop", needed=()):
        for name, text in (files or {}).items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        app = App("shop", {"requirements": requirements, "source": source}, {})
        return Requirements(app, str(tmp_path), needed)

    return of


@pytest.fixture
def recipe(make_host, tmp_path):
    """recipe(installer="uv") returns the Recipe of an app with these settings."""

    def of(**settings):
        host = make_host({"apps": {"shop": {**APP, **settings}}})
        assert host.settings.messages == []
        return Recipe(host, host.settings.apps["shop"], str(tmp_path), [])

    return of


FILES = {
    "requirements.txt": "tiny<2\n-r more/base.txt\n--constraint=pins.txt\n",
    "more/base.txt": "other\n-r deeper.txt\n",
    "more/deeper.txt": "deep",
    "pins.txt": "tiny!=1.5",
    "shop.py": "",
}


@pytest.mark.parametrize(
    "changed",
    [
        {"shop.py": "changed"},
        {"requirements.txt": f"# what it needs\n\n{FILES['requirements.txt']}"},
        {"requirements.txt": FILES["requirements.txt"].replace("tiny<2", "tiny<2   # not yet")},
        {"more/base.txt": "other \\\n\n-r  deeper.txt"},
    ],
    ids=str,
)
def test_code_comments_and_blank_lines_do_not_change_the_id(required, changed):
    before = required("requirements.txt", FILES)
    assert required("requirements.txt", changed).identity == before.identity
    assert not before.local


@pytest.mark.parametrize(
    "changed",
    [{"requirements.txt": "tiny<3"}, {"more/base.txt": "others"}, {"more/deeper.txt": "deeper"}, {"pins.txt": "tiny"}],
    ids=str,
)
def test_every_included_file_changes_the_id(required, changed):
    before = required("requirements.txt", FILES).identity
    assert required("requirements.txt", changed).identity != before


def test_files_that_include_each_other_are_read_once(required):
    assert required("a.txt", {"a.txt": "-r x/../b.txt\ntiny", "b.txt": "-r x/../a.txt"}).identity == [
        "-r x/../b.txt",
        "-r x/../a.txt",
        "tiny",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "-f ..",
        "-f {out}",
        "-r ../secret",
        "-c {out}/secret",
        "{out}/secret",
        "../secret",
        "-r link/secret",
        "-c ./file",
        "-f link",
        "./link",
        "./file",
        "tiny @ file:file",
        "-r up/../secret",
    ],
)
def test_no_file_outside_of_the_code_is_read(required, tmp_path, line):
    """Root reads these files."""
    code = tmp_path / "code"
    code.mkdir()
    for name, target in (("link", tmp_path), ("file", "../secret"), ("up", ".")):
        (code / name).symlink_to(target)
    (code / "requirements.txt").write_text(line.format(out=tmp_path))

    def identity(secret):
        (tmp_path / "secret").write_text(secret)
        app = App("shop", {"requirements": "requirements.txt", "source": "salt://shop"}, {})
        return Requirements(app, str(code), []).identity

    assert identity("one") == identity("other")


@pytest.mark.parametrize("line", ["-r pipe", "-c pipe", "./pipe", "-f ."])
def test_named_pipe_in_the_code_blocks_nothing(required, tmp_path, line):
    os.mkfifo(tmp_path / "pipe")
    assert required("requirements.txt", {"requirements.txt": line}).identity


def test_link_within_the_code_is_followed(required, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/requirements.txt").symlink_to("../base.txt")
    assert required("sub/requirements.txt", {"base.txt": "tiny"}).identity[-1] == "tiny"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"#" * (TEXT + 1), "'requirements.txt' has more than 16 MiB"),
        (b"\xff", "'requirements.txt' is not UTF-8"),
    ],
    ids=["long", "not UTF-8"],
)
def test_unreadable_file_is_named(required, tmp_path, text, told):
    (tmp_path / "requirements.txt").write_bytes(text)
    with pytest.raises(WsgiError) as problem:
        required("requirements.txt")
    assert str(problem.value).startswith(f"wsgi:apps:shop:requirements: {told}")


def test_many_files_share_the_limit_of_one(required):
    line = "#" * (TEXT // 2) + "\n"
    files = {"requirements.txt": line + "-r a.txt", "a.txt": line + "-r b.txt", "b.txt": line}
    with pytest.raises(WsgiError, match="'a.txt' and the files that include it exceed 16 MiB"):
        required("requirements.txt", files)


def test_long_chain_of_files_is_refused(required):
    files = {f"{number}.txt": f"-r {number + 1}.txt" for number in range(2000)}
    with pytest.raises(WsgiError, match="'51.txt' is the last of 50 files, each of which includes the next"):
        required("0.txt", files)


def test_long_line_is_parsed_in_time(required):
    assert required("requirements.txt", {"requirements.txt": "a" * 2**20}).identity


def test_link_out_of_the_code_is_not_followed(required, tmp_path):
    (tmp_path / "requirements.txt").symlink_to("/etc/passwd")
    with pytest.raises(WsgiError, match="'requirements.txt' is not in salt://shop"):
        required("requirements.txt")


@pytest.mark.parametrize(
    "line",
    [
        ".",
        "./lib",
        ".[extra]",
        "-e .",
        "--editable=lib",
        "-elib",
        "shop @ file:./lib",
        "lib/sub ; python_version > '3'",
    ],
)
def test_all_code_counts_if_a_project_in_it_is_installed(required, line):
    files = {"requirements.txt": line, "lib/lib.py": "", "shop.py": ""}
    before = required("requirements.txt", files)
    assert before.local
    assert required("requirements.txt", {"shop.py": "changed"}).identity != before.identity


@pytest.mark.parametrize(
    "line", ["./x.whl", "wheels/x.whl", "x.whl", "-f wheels", "x @ file:wheels/x.whl", "wheels/x.whl[a]"]
)
def test_required_wheel_counts_and_the_code_beside_it_does_not(required, line):
    before = required(
        "requirements.txt", {"requirements.txt": line, "wheels/x.whl": "", "x.whl": "", "shop.py": ""}
    ).identity
    assert required("requirements.txt", {"shop.py": "changed"}).identity == before
    assert required("requirements.txt", {"wheels/x.whl": "changed", "x.whl": "changed"}).identity != before


@pytest.mark.parametrize(
    "line",
    [
        "tiny",
        "tiny[a,b]>=1",
        "tiny @ https://example.com/a/tiny.whl",
        "git+https://example.com/a/b.git@v1",
        "-e git+https://example.com/a/b.git#egg=b",
        "--extra-index-url https://example.com/simple",
        "--index-url file:///opt/simple",
        "--no-binary :all:",
        "-r https://example.com/base.txt",
    ],
)
def test_code_does_not_count_if_none_of_it_is_installed(required, line):
    before = required("requirements.txt", {"requirements.txt": line, "shop.py": ""}).identity
    assert required("requirements.txt", {"shop.py": "changed"}).identity == before


def test_only_the_dependencies_of_a_project_count(required):
    before = required("pyproject.toml", {"pyproject.toml": PROJECT})
    assert before.lines == ["tiny<2", "other"]
    # The same as a list: one environment for both.
    assert before.identity == required(["tiny<2", "other"]).identity
    assert required("pyproject.toml", {"pyproject.toml": PROJECT.replace("'1'", "'2'")}).identity == before.identity
    assert required("pyproject.toml", {"pyproject.toml": PROJECT.replace("other", "more")}).identity != before.identity


@pytest.mark.parametrize("known", [("tomllib",), ("pip._vendor.tomli",), ()])
def test_toml_is_parsed_by_the_library_of_the_python_of_salt(required, monkeypatch, known):
    class Toml:
        TOMLDecodeError = ValueError

        @staticmethod
        def loads(text):
            return {"project": {"name": "shop", "dependencies": ["tiny"]}}

    def import_module(name):
        if name in known:
            return Toml
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", import_module)
    if known:
        assert required("pyproject.toml", {"pyproject.toml": ""}).lines == ["tiny"]
    else:
        with pytest.raises(
            WsgiError, match=r"^wsgi:apps:shop:requirements: Salt's Python has no tomllib to read 'pyproject.toml'"
        ):
            required("pyproject.toml", {"pyproject.toml": ""})


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("pyproject.toml", "[project\n", "'pyproject.toml' is not TOML"),
        ("pyproject.toml", f"a = {'[' * 10_000}", "'pyproject.toml' is not TOML"),
        ("pyproject.toml", "project = 1\n", "has no [project]"),
        ("pyproject.toml", "[project]\nname = 'a'\ndependencies = 'tiny'\n", "not a list of strings of one line each"),
        ("pyproject.toml", "[project]\nname = 'a'\ndependencies = [1]\n", "not a list of strings of one line each"),
        ("pyproject.toml", "[tool.poetry]\n", "has no [project]"),
        (
            "pyproject.toml",
            "[project]\nname = 'a'\ndynamic = ['dependencies']\n",
            "['.'] installs the project with them",
        ),
        ("poetry.lock", "", "name the file that `poetry export --output requirements.txt` makes"),
        ("web/Pipfile.lock", "", "`pipenv requirements > requirements.txt`"),
        ("pdm.lock", "", "`pdm export --output requirements.txt`"),
    ],
)
def test_unknown_kind_of_requirements_file_is_refused_with_the_known_ones(required, file, text, said):
    with pytest.raises(WsgiError) as problem:
        required(file, {file: text})
    assert str(problem.value).startswith("wsgi:apps:shop:requirements: ")
    assert said in str(problem.value)


def test_missing_file_is_named_without_the_password_of_the_source(required):
    with pytest.raises(WsgiError, match=r"'r.txt' is not in git\+https://me:\*\*\*@example.com/shop@v1"):
        required("r.txt", source="git+https://me:hunter22@example.com/shop@v1")


@pytest.mark.parametrize(
    ("file", "lock", "local"),
    [
        ("uv.lock", '[[package]]\nsource = { virtual = "." }\n', False),
        ("uv.lock", '[[package]]\nsource = { editable = "." }\n', False),
        ("uv.lock", '[[package]]\nsource = { editable = "lib" }\n', True),
        ("pylock.toml", '[[packages]]\nname = "path"\n', False),
        ("pylock.web.toml", '[[packages]]\ndirectory = { path = "." }\n', True),
    ],
)
def test_lock_file_counts_and_so_does_code_that_it_installs(required, file, lock, local):
    before = required(file, {file: lock, "shop.py": ""})
    assert before.lock in ("uv.lock", "pylock.toml")
    assert before.local == local
    assert (required(file, {"shop.py": "changed"}).identity == before.identity) == (not local)
    assert required(file, {file: f"{lock}#"}).identity != before.identity


@pytest.mark.parametrize("form", ["requirements.txt", ["tiny"]], ids=str)
def test_requirements_of_the_source_are_installed_too(required, form):
    files = {"requirements.txt": "tiny"}
    found = required(form, files, needed=["shop==1.4"])
    assert "shop==1.4" in found.lines
    assert found.identity != required(form, files).identity


def test_new_credentials_do_not_change_the_id(recipe):
    before = recipe(
        index="https://me:old-token@example.com/simple", requirements=["a @ https://old-token@example.com/a.whl"]
    )
    after = recipe(
        index="https://me:new-token@example.com/simple", requirements=["a @ https://new-token@example.com/a.whl"]
    )
    assert before.environment.id == after.environment.id
    assert recipe(index="https://example.org/simple").environment.id != recipe().environment.id


def test_wheels_in_the_source_change_the_id(recipe, tmp_path):
    (tmp_path / "wheels").mkdir()
    before = recipe(wheels="wheels").environment.id
    (tmp_path / "wheels/x.whl").write_text("")
    assert recipe(wheels="wheels").environment.id != before


@pytest.mark.parametrize("target", ["/dev", "..", "file", None])
def test_wheels_key_that_is_not_a_folder_of_the_source_is_refused(recipe, tmp_path, target):
    (tmp_path / "file").touch()
    if target:
        (tmp_path / "wheels").symlink_to(target)
    with pytest.raises(
        WsgiError, match="^wsgi:apps:shop:wheels: 'wheels' is not a folder in salt://shop, or a link that"
    ):
        recipe(wheels="wheels")


def test_id_does_not_depend_on_the_installer(recipe):
    assert len({recipe(installer=installer).environment.id for installer in (None, "pip", "uv")}) == 1


def test_uv_is_used_if_installed_unless_pip_is_configured(recipe, monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "UV", str(tmp_path / "uv"))
    monkeypatch.setattr(environment, "PATH", f"{tmp_path}/bin:/usr/bin")
    assert isinstance(recipe()._installer(), Pip)
    with pytest.raises(WsgiError, match="wsgi:apps:shop:installer: 'uv' is not installed"):
        recipe(installer="uv")._installer()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/uv").touch(mode=0o755)
    assert recipe()._installer().program == str(tmp_path / "bin/uv")
    (tmp_path / "uv").touch(mode=0o755)
    assert recipe(installer="uv")._installer().program == str(tmp_path / "uv")
    assert isinstance(recipe(installer="pip")._installer(), Pip)


def test_lock_file_of_uv_is_refused_for_pip(recipe, monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "UV", str(tmp_path / "uv"))
    (tmp_path / "uv.lock").write_text("")
    with pytest.raises(
        WsgiError, match="wsgi:apps:shop:requirements: only uv can install 'uv.lock'; set installer: uv"
    ):
        recipe(requirements="uv.lock", installer="pip")._installer()


def test_missing_interpreter_is_named_with_the_available_ones(recipe, monkeypatch, tmp_path):
    for name in ("python3", "python3.11", "pypy3.9", "python3-config", "python3.11-config", "python2.7"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setattr(environment, "PATH", str(tmp_path))
    with pytest.raises(WsgiError) as problem:
        recipe(python="python3.99")._installer()
    assert str(problem.value) == (
        "wsgi:apps:shop:python: 'python3.99' is not installed (installed: pypy3.9, python3, python3.11); install it first"
    )


@pytest.fixture
def configured(monkeypatch, tmp_path):
    """configured(pip_conf, **environment) returns the Uv of a machine with this configuration and environment."""

    def of(text, index=None, extra_index=(), **environment):
        (tmp_path / "pip.conf").write_text(text)
        monkeypatch.setattr(installers, "PIP_CONFIGURATION", (str(tmp_path / "pip.conf"),))
        monkeypatch.setattr(installers, "UV_CONFIGURATION", str(tmp_path / "uv.toml"))
        monkeypatch.setattr(os, "environ", environment)
        return Uv("/usr/bin/uv", index, list(extra_index))

    return of


def test_uv_gets_the_configuration_of_pip(configured):
    text = "[global]\ncert = /etc/ours.pem\nindex-url = https://a/simple\n[install]\nextra-index-url =\n  https://b\n  https://c\n"
    found = configured(text, PIP_FIND_LINKS="/opt/a /opt/b", PIP_INDEX_URL="https://d/simple").variables
    assert found["SSL_CERT_FILE"] == "/etc/ours.pem"
    assert found["UV_DEFAULT_INDEX"] == "https://d/simple"
    assert found["UV_INDEX"] == "https://b https://c"
    assert found["UV_FIND_LINKS"] == "/opt/a,/opt/b"


def test_pillar_wins_over_the_configuration_of_the_machine(configured):
    found = configured("[global]\nindex-url = https://a/simple\n", "https://p/simple", ["https://q", "https://r"])
    assert found.variables["UV_DEFAULT_INDEX"] == "https://p/simple"
    assert found.variables["UV_INDEX"] == "https://q https://r"


def test_configuration_of_uv_wins_over_that_of_pip(configured, tmp_path):
    assert (
        configured("", UV_DEFAULT_INDEX="https://u", PIP_INDEX_URL="https://p").variables["UV_DEFAULT_INDEX"]
        == "https://u"
    )
    (tmp_path / "uv.toml").touch()
    found = configured("[global]\nindex-url = https://a/simple\n").variables
    assert "UV_DEFAULT_INDEX" not in found
    assert found["UV_CONFIG_FILE"] == str(tmp_path / "uv.toml")


@pytest.mark.parametrize(("index", "words"), [(None, ["--no-index"]), ("https://a/simple", [])])
def test_machine_without_an_index_has_none_under_uv_either(configured, index, words):
    assert [
        word for word in configured("[global]\nno-index = true\n", index).install("/env") if word == "--no-index"
    ] == words


def test_broken_configuration_of_pip_is_reported_without_its_lines(configured):
    with pytest.raises(WsgiError) as problem:
        configured("index-url = https://me:hunter22@example.com\n")
    assert "hunter22" not in str(problem.value)
    assert problem.value.__suppress_context__


def test_stamp_of_a_finished_environment_must_belong_to_root(monkeypatch, tmp_path):
    """The build user may write there during the build."""
    monkeypatch.setattr(environment, "SRV", str(tmp_path))
    made = Environment("shop", "abc")
    (tmp_path / "shop/environments/abc").mkdir(parents=True)
    assert not made.whole()
    stamp = tmp_path / "shop/environments/abc/.complete"
    stamp.touch()
    lstat = os.lstat
    found = lstat(stamp)
    monkeypatch.setattr(os, "lstat", lambda path: Stat(lstat(path), uid=1000))
    assert not made.built(found.st_gid)
    monkeypatch.setattr(os, "lstat", lambda path: Stat(lstat(path), uid=0))
    assert made.built(found.st_gid)
    assert not made.built(found.st_gid + 1)


class Stat:
    """The os.lstat of a file, with another owner."""

    def __init__(self, found, uid):
        self.st_uid, self.st_gid, self.st_mode = uid, found.st_gid, found.st_mode


def test_passwords_in_urls_are_redacted_in_encoded_and_decoded_form():
    found = passwords_of(["a @ https://me:p%40ss-word@h/x", "https://tok%2Fen@h/", "tiny"])
    assert found == {"p%40ss-word", "p@ss-word", "tok%2Fen", "tok/en"}
