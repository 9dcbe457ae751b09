"""The playground on SmolLM2's real server, in Chromium."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from divserve.playground import STATIC
from tests.support.browser import answer, completed, opened, run
from tests.support.server import API_KEY

EXAMPLES: list[dict[str, Any]] = json.loads((STATIC / "examples.json").read_text())
MOST_TOKENS = 60


def unlocked(page: Page, server: str) -> Page:
    page.goto(f"{server}/playground")
    expect(page.locator("#server")).to_contain_text("API key")
    page.locator("#key").fill(API_KEY)
    page.locator("#key").press("Enter")
    expect(page.locator("#server")).to_have_text("smol")
    return page


def test_the_eiffel_tower_of_the_readme(page: Page, server: str, shots: Path) -> None:
    run(unlocked(page, server))
    # Again, for the picture: the first answers of a server take longer.
    run(page)
    assert "Paris" in answer(page, 0)
    assert "Berlin" in answer(page, 1)
    column = page.locator("answer-column").nth(1)
    count = column.locator(".token").count()
    expect(column.locator(".status")).to_contain_text(f"the method applied to {count}")
    token = column.locator(".token", has_text="Berlin")
    page.set_viewport_size({"width": 1280, "height": 1600})
    token.hover()
    card = page.locator("token-card")
    expect(card.locator("h4")).to_have_text(["With the document", "Without it", "With the method"])
    expect(card.locator("li")).to_have_count(15)
    expect(card.locator(".is-guided li").first).to_contain_text("Berlin")
    top, bottom = page.locator("#composer").bounding_box(), card.bounding_box()
    assert top is not None
    assert bottom is not None
    # docs/playground.png is this picture.
    start, end = top["y"] - 16, bottom["y"] + bottom["height"] + 32
    clip: Any = {"x": 0, "y": start, "width": 1280, "height": end - start}
    page.screenshot(path=shots / "real.png", clip=clip)


@pytest.mark.long
def test_every_example_differs_from_the_plain_answer(page: Page, server: str, shots: Path) -> None:
    """Six examples of two answers each take longer than `make test` has."""
    assert len(EXAMPLES) == 6
    unlocked(page, server)
    for number, example in enumerate(EXAMPLES):
        page.get_by_role("button", name=example["title"]).click()
        completed(page)
        plain, guided = answer(page, 0), answer(page, 1)
        assert plain != guided
        # What the example promises stands in one answer and not in the other.
        assert example["shows"] in guided
        assert example["shows"] not in plain
        assert page.locator("answer-column").nth(1).locator(".token").count() <= MOST_TOKENS
        page.screenshot(path=shots / f"example-{number}.png", full_page=True)


def test_an_error_of_the_real_server(page: Page, server: str) -> None:
    unlocked(page, server)
    page.locator("answer-column").nth(1).get_by_label("floor", exact=True).fill("11")
    page.locator("#run").click()
    alert = page.locator("answer-column").nth(1).locator(".error")
    expect(alert).to_contain_text("Field: decoding.floor")
    alert.get_by_role("button").click()
    expect(page.locator('[data-place="decoding.floor"]')).to_be_focused()


def test_a_link_with_a_method(page: Page, server: str) -> None:
    fragment = "#prompt=Hi&tokens=4&temperature=0.7&with=entropy_temperature"
    page.set_extra_http_headers({"Authorization": f"Bearer {API_KEY}"})
    run(opened(page, f"{server}/playground/{fragment}"))
    expect(page.locator(".token")).to_have_count(4)
