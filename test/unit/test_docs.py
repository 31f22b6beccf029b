"""README.md and docs/: links lead to what exists, each page and section is linked, and each example is a valid pillar."""

import re
import textwrap
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "_utils/wsgi_formula"
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
ANY_APP = {"source": "salt://wsgi/examples/hello", "application": "hello:application", "domains": ["shop.example.com"]}
PAGES = [*sorted(ROOT.glob("*.md")), *DOCS]


def text_of(page):
    """Return a page's text without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page, level="#+"):
    """Return the anchors that GitHub makes of a page's headings, or of those of one level."""
    headings = re.findall(rf"^{level} (.*)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page):
    """Return the targets of a page's links within the repository."""
    return {target for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()) if not re.match(r"\w+:", target)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_link_leads_to_a_file_and_a_heading_that_exist(page):
    broken = set()
    for target in links(page):
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        if not found.exists() or (anchor and anchor not in anchors(found)):
            broken.add(target)
    assert not broken


def test_readme_links_each_page_of_docs():
    assert {f"docs/{page.name}" for page in DOCS} <= links(README)


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_list_of_contents_has_each_section(page):
    listed = {target[1:] for target in links(page) if target.startswith("#")}
    assert not listed or anchors(page, "##") <= listed


def examples():
    """Yield the pillar of each YAML example in README.md and docs/; keys of an app alone belong to an app shop."""
    for page in [README, *DOCS]:
        for number, text in enumerate(re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)):
            shown = yaml.safe_load(textwrap.dedent(text).replace("…", f"salt${'a' * 86}"))
            if text.startswith("# /") and "wsgi" not in shown:  # a file of the master's
                continue
            wsgi = shown.get("wsgi") or {"apps": {"shop": shown}}
            keys = "-".join(shown if "wsgi" not in shown else wsgi)
            yield pytest.param(wsgi, id=f"{page.name}-{number}-{keys}")


@pytest.mark.parametrize("wsgi", list(examples()))
def test_each_example_in_the_docs_is_a_valid_pillar(load, wsgi):
    apps = {name: {**ANY_APP, **app} for name, app in wsgi.get("apps", {"shop": {}}).items()}
    assert load({**wsgi, "apps": apps}).messages == []


def test_architecture_names_files_and_functions_that_exist():
    missing = []
    for line in text_of(ROOT / "docs/architecture.md").splitlines():
        words = re.findall(r"`([^`\n]+)`", line)
        files = [word for word in words if re.fullmatch(r"\w[\w/]*(/|\.(py|sls|yaml))", word)]
        paths = [found for file in files for found in (ROOT / file, PACKAGE / file) if found.exists()]
        missing += files if len(paths) < len(files) else []
        # A function is in a file that the same line names; where it names none, anywhere.
        code = "".join(path.read_text() for path in paths or PACKAGE.rglob("*.py") if path.suffix == ".py")
        functions = [word.removesuffix("()").rpartition(".")[2] for word in words if word.endswith("()")]
        missing += [name for name in functions if f"def {name}(" not in code and name != "stat"]
    assert missing == []
