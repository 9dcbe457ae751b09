"""The documents name what exists: links, headings, files, modules, targets of make, methods."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from divserve.decoding import METHODS
from tests.support.documented import OUTPUTS, blocks, examples
from tests.support.models import ROOT
from tests.test_layout import tracked_files

TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
PAGES = [*TOP, *sorted((ROOT / "docs").rglob("*.md"))]
PRESENT = [page for page in PAGES if page.name != "CHANGELOG.md"]
"""Documents that describe the present: a changelog may name what is gone."""

FOLDERS = ("bench", "deploy", "divserve", "docs", "kernels", "loadtest", "requirements", "tests")
WRITTEN = {"loadtest/out", "tests/out/playground"}
"""Paths that exist only after a command has written them."""

LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
MODULE = re.compile(r"python -m ((?:bench|loadtest|tests)[\w.]*)")
MAKE = re.compile(r"^make ((?:[a-z]+(?:-[a-z]+)*\b ?)+)", re.MULTILINE)
TARGET = re.compile(r"^([a-z-]+):", re.MULTILINE)


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@cache
def known() -> frozenset[str]:
    """Every file and folder in the repository, and each of their shorter names."""
    found = set()
    for file in tracked_files():
        path = file.relative_to(ROOT)
        for part in (path, *path.parents[:-1]):
            found |= {"/".join(part.parts[start:]) for start in range(len(part.parts))}
    return frozenset(found)


def headings(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    titles = HEADING.findall(FENCE.sub("", text_of(page)))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for link in LINK.findall(FENCE.sub("", text_of(page))):
        target, _, anchor = link.partition("#")
        if target.startswith(("http://", "https://")):
            continue
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or (anchor and anchor not in headings(file)):
            wrong.append(link)
    assert wrong == []


@pytest.mark.parametrize("page", PRESENT, ids=name_of)
def test_files_are_there(page: Path) -> None:
    """Paths from the root, and names of Python files in any folder."""
    named = {code.rstrip("/") for code in CODE.findall(FENCE.sub("", text_of(page)))}
    paths = {
        code
        for code in named
        if re.fullmatch(r"[\w./-]+", code)
        and (code.startswith(tuple(f"{folder}/" for folder in FOLDERS)) or code.endswith(".py"))
    }
    assert paths - known() - WRITTEN == set()


@pytest.mark.parametrize("page", PRESENT, ids=name_of)
def test_modules_and_targets_are_there(page: Path) -> None:
    text = text_of(page)
    modules = {module.replace(".", "/") for module in MODULE.findall(text)}
    assert {m for m in modules if not {f"{m}.py", f"{m}/__main__.py"} & known()} == set()
    code = "\n".join([*CODE.findall(FENCE.sub("", text)), *FENCE.findall(text)])
    targets = {target for line in MAKE.findall(code) for target in line.split()}
    assert targets - set(TARGET.findall(text_of(ROOT / "Makefile"))) == set()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_page_and_its_rows(method: str) -> None:
    page = text_of(ROOT / "docs" / "methods" / f"{method}.md")
    assert page.startswith(f"# `{method}`: {METHODS[method].title}\n")
    for parameter in METHODS[method].parameters():
        assert f"| `{parameter}` |" in page
    for figure in METHODS[method].reports:
        assert f"- `{figure}`: " in page
    assert f"[`{method}`](docs/methods/{method}.md)" in text_of(ROOT / "README.md")
    assert f"[`{method}`](methods/{method}.md)" in text_of(ROOT / "docs" / "decoding.md")
    assert f"[`{method}`](methods/{method}.md)" in text_of(ROOT / "docs" / "choosing.md")
    assert examples(page)


LINES_OF_README = 120
PLACEHOLDER = re.compile(r"\b(TODO|TBD|FIXME|XXX|lorem ipsum|coming soon)\b", re.IGNORECASE)
FROM_OUTSIDE = {"index.md", "contributing.md", "security.md", "changelog.md", "tests.md"}
"""Pages of the site that docs/hooks.py takes from elsewhere."""
RUN = [page for page in PAGES if page.parent.name == "methods" or page.name in {
    "README.md", "quickstart.md", "choosing.md",
}]  # fmt: skip
"""Pages all of whose requests are run."""


def test_the_readme_is_short() -> None:
    assert len(text_of(ROOT / "README.md").splitlines()) <= LINES_OF_README


def named(nav: Any) -> Iterator[str]:
    """The pages of a navigation."""
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from named(entry)


def test_warnings_of_the_site_are_errors() -> None:
    """With ``--quiet`` mkdocs counts none."""
    config = yaml.safe_load(text_of(ROOT / "mkdocs.yml"))
    assert config["strict"] is True
    assert set(config["validation"].values()) == {"warn"}
    commands = [x for x in text_of(ROOT / "Makefile").splitlines() if "mkdocs build" in x]
    assert len(commands) == 1
    assert "quiet" not in commands[0]


def test_every_page_is_in_the_navigation_once() -> None:
    pages = list(named(yaml.safe_load(text_of(ROOT / "mkdocs.yml"))["nav"]))
    docs = ROOT / "docs"
    own = {str(page.relative_to(docs)) for page in docs.rglob("*.md")}
    assert sorted(pages) == sorted(own | FROM_OUTSIDE)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_nothing_waits_to_be_written(page: Path) -> None:
    assert PLACEHOLDER.findall(FENCE.sub("", text_of(page))) == []
    shown = [block.text for block in blocks(text_of(page)) if block.title in OUTPUTS]
    assert {"{}", "[]", ""}.isdisjoint(text.strip() for text in shown)


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_every_request_has_an_output(page: Path) -> None:
    """`tests/e2e/test_documented.py` runs those that have one."""
    requests = [x for x in blocks(text_of(page)) if x.text.startswith(("curl ", "from openai "))]
    assert requests == [example.request for example in examples(text_of(page))] != []


def test_the_example_of_a_method_is_one() -> None:
    (shown,) = (x for x in blocks(text_of(ROOT / "docs" / "adding_a_method.md")) if x.title)
    assert text_of(ROOT / shown.title).endswith(shown.text)
