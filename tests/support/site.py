"""The built docs site loads nothing from other hosts, and its links lead somewhere.

python -m tests.support.site FOLDER

`make docs` runs it after the build.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["faults"]

LOADED = {
    "script": ("src",), "link": ("href",), "img": ("src", "srcset"), "iframe": ("src",),
    "source": ("src", "srcset"), "video": ("src",), "audio": ("src",), "object": ("data",),
}  # fmt: skip
"""Elements that a browser loads something for by itself, and the attributes that say what."""
LINKED = {"a": ("href",)}
IN_CSS = re.compile(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')\s]+)")
DIAGRAM = "mermaid"
"""The theme loads a library from another host for elements of this class."""


@dataclass
class Found(HTMLParser):
    """What one page loads, links to and can be linked at."""

    loaded: list[str] = field(default_factory=list)
    linked: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)
    classes: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes the addresses and names of an element."""
        values = {name: value for name, value in attrs if value}
        self.loaded += [values[name] for name in LOADED.get(tag, ()) if name in values]
        self.linked += [values[name] for name in LINKED.get(tag, ()) if name in values]
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        self.classes |= set(values.get("class", "").split())


@cache
def read(page: Path) -> Found:
    """The contents of a page."""
    found = Found()
    found.feed(page.read_text(encoding="utf-8"))
    return found


def elsewhere(address: str) -> bool:
    """Whether an address is that of another host."""
    return bool(urlsplit(address).netloc)


def faults(site: Path) -> Iterator[str]:
    """What is wrong with a site, a line each."""
    for page in sorted(site.rglob("*.html")):
        found, name = read(page), page.relative_to(site)
        yield from (f"{name} loads {address}" for address in found.loaded if elsewhere(address))
        if DIAGRAM in found.classes:
            yield f"{name} has a diagram that is drawn by a library of another host"
        yield from (f"{name} links to {link}" for link in dead(page, found.linked + found.loaded))
    for sheet in sorted(site.rglob("*.css")):
        for address in IN_CSS.findall(sheet.read_text(encoding="utf-8")):
            yield f"{sheet.relative_to(site)} loads {address}"


def dead(page: Path, links: list[str]) -> Iterator[str]:
    """The links of a page within the site that lead nowhere."""
    for link in links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc or page.name == "404.html":
            continue
        file = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        file = file / "index.html" if file.is_dir() else file
        anchor = unquote(parts.fragment)
        if not file.is_file() or (anchor and anchor not in read(file).anchors):
            yield link


def main(folder: str) -> None:
    """Fails with the faults of a site."""
    found = list(faults(Path(folder)))
    sys.exit("\n".join(found) if found else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
