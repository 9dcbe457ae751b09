"""The documents' examples answer what the documents say: texts exactly, numbers to three digits.

`python -m tests.support.documented_answers` writes the outputs. All requests are sent at once, so
that they share the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.documented import Example, Place, differs, examples, outputs
from tests.support.hf_models import without_layers
from tests.support.models import ROOT
from tests.support.server import API_KEY, serving

LAYERS_LEFT_OUT = range(18, 22)
"""Of the small model of `entropy_switch`: those that ``drop:4`` leaves out, too."""
EXTRAS = ("--amateur", "drop:4", "--tuned", "drop:2", "--look-back")

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ALL = {
    f"{page.relative_to(ROOT)}:{number}": example
    for page in PAGES
    for number, example in enumerate(examples(page.read_text(encoding="utf-8")), 1)
}
PLAIN = {name: example for name, example in ALL.items() if not example.flags}
FLAGGED = {name: example for name, example in ALL.items() if example.flags}


def all_outputs(cases: dict[str, Example], place: Place) -> dict[str, dict[str, str]]:
    """What a server answers to examples, by their names."""
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda example: outputs(example, place), cases.values())
        return dict(zip(cases, found, strict=True))


def changed(example: Example, now: dict[str, str]) -> dict[str, str]:
    """The outputs that differ from the documents."""
    return {b.title: now[b.title] for b in example.outputs if differs(b, now[b.title])}


@pytest.fixture(scope="module")
def answers(server: str) -> dict[str, dict[str, str]]:
    """The outputs of SmolLM2's server."""
    return all_outputs(PLAIN, Place(server, "smol", API_KEY))


@pytest.mark.parametrize("name", PLAIN)
def test_an_example_answers_what_its_page_says(
    answers: dict[str, dict[str, str]], name: str
) -> None:
    assert changed(PLAIN[name], answers[name]) == {}


@pytest.fixture(scope="module")
def flagged(
    smollm2: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, dict[str, str]]]:
    """The outputs of a server with all that the other examples need."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("documented")
    small = folder / "small"
    without_layers(smollm2, LAYERS_LEFT_OUT).save_pretrained(small)
    AutoTokenizer.from_pretrained(smollm2).save_pretrained(small)
    with serving(smollm2, folder / "log.txt", (*EXTRAS, "--small", str(small))) as (url, _):
        yield all_outputs(FLAGGED, Place(url, "smol", API_KEY))


@pytest.mark.long
@pytest.mark.parametrize("name", FLAGGED)
def test_an_example_of_a_server_with_flags(flagged: dict[str, dict[str, str]], name: str) -> None:
    """Long: a server of its own, with two engines; `test_two_models` has tiny models."""
    assert changed(FLAGGED[name], flagged[name]) == {}
