"""Writes what a server answers into the examples of pages, so that nobody types it.

python -m tests.support.documented_answers URL PAGE…

URL is that of a server of SmolLM2 as ``make serve`` starts it, with the flags that the examples
name.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.documented import Place, examples, outputs


def filled(page: str, place: Place) -> str:
    """A page with the outputs of now."""
    for example in reversed(examples(page)):
        now = outputs(example, place)
        for block in reversed(example.outputs):
            page = page[: block.start] + now[block.title] + page[block.end :]
    return page


def main(url: str, *pages: str) -> None:
    """Writes the pages anew."""
    for page in map(Path, pages):
        page.write_text(filled(page.read_text(encoding="utf-8"), Place(url)), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
