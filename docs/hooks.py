"""What the site needs beside mkdocs.yml: pages and files from outside docs/, and GitHub's anchors.

The pages are written for GitHub, where a link to ``../CONTRIBUTING.md`` works. Here such pages
become pages of the site, and other files (results, test data) are copied beside them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url
from pymdownx.slugs import slugify

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "tests/README.md": "tests.md",
}
"""Pages from outside docs/, and their names in the site."""
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[#)])")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Anchors as GitHub makes them, so that one link works in both places."""
    config.mdx_configs["toc"]["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages and files that are outside of docs/."""
    for source, name in PAGES.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    for file in files.documentation_pages():
        page = Path(str(file.abs_src_path))
        for target in LINK.findall(page.read_text(encoding="utf-8")):
            found = (page.parent / target).resolve()
            name = name_of(found)
            if found.is_file() and files.get_file_from_path(name) is None:
                files.append(File.generated(config, name, abs_src_path=str(found)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turns links between files of the repository into links between pages of the site."""
    source = Path(str(page.file.abs_src_path))

    def replaced(link: re.Match[str]) -> str:
        name = name_of((source.parent / link[1]).resolve())
        return str(get_relative_url(name, str(Path(page.file.src_uri).parent)))

    return LINK.sub(replaced, markdown)


def name_of(file: Path) -> str:
    """The name of a file of the repository in the site, with slashes."""
    relative = file.relative_to(ROOT).as_posix()
    if relative.startswith("docs/"):
        return relative.removeprefix("docs/")
    return PAGES.get(relative, f"files/{relative}")
