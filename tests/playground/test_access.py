"""The page by keyboard, on a phone, in the dark, and as axe sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import completed, opened, run
from tests.support.fake_playground import FakeApi

DESKTOP: Any = {"width": 1280, "height": 900}
PHONE: Any = {
    "viewport": {"width": 390, "height": 844}, "device_scale_factor": 2,
    "is_mobile": True, "has_touch": True,
}  # fmt: skip
READABLE = 4.5
"""The contrast of text (WCAG 2.2, AA)."""
CONTRASTS = """(count) => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
    const luminance = (colour) => {
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        const linear = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => {
            const c = v / 255;
            return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    };
    const token = document.querySelector(".has-level .word");
    token.style.setProperty("transition", "none");
    return [...Array(count).keys()].map((i) => {
        token.style.setProperty("--level", i / (count - 1));
        const style = getComputedStyle(token);
        return {ground: luminance(style.backgroundColor), text: luminance(style.color)};
    });
}"""


def axe(page: Page) -> list[str]:
    """What axe finds that is serious or worse."""
    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {node['html'][:120]}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser: Browser, url: str, scheme: Any, shots: Path) -> None:
    page = opened(browser.new_page(color_scheme=scheme, viewport=DESKTOP), url)
    page.locator("#settings summary").click()
    run(page)
    page.locator(".token").nth(4).focus()
    expect(page.locator("token-card")).to_be_visible()
    assert axe(page) == []
    page.keyboard.press("Escape")
    page.locator("#run").focus()
    page.screenshot(path=shots / f"desktop-{scheme}.png", full_page=True)
    page.get_by_role("button", name="Copy as code").first.click()
    assert axe(page) == []
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_are_in_order_and_text_is_readable_on_all(
    browser: Browser, url: str, scheme: Any
) -> None:
    """In the order of luminance, which colour-blind people see as others do."""
    page = opened(browser.new_page(color_scheme=scheme), url)
    run(page)
    found = page.evaluate(CONTRASTS, 11)
    grounds = [one["ground"] for one in found]
    assert grounds == sorted(grounds, reverse=scheme == "light")
    assert len({*grounds}) == 11
    for one in found:
        high, low = sorted((one["ground"], one["text"]), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= READABLE
    page.close()


def test_by_keyboard_alone(page: Page, url: str) -> None:
    opened(page, url)
    press = page.keyboard.press
    for _ in range(40):
        press("Tab")
        if page.evaluate("document.activeElement.id") == "prompt":
            break
    press("Control+A")
    page.keyboard.type("Where is it?")
    press("Control+Enter")
    completed(page)
    for _ in range(60):
        press("Tab")
        if page.evaluate("document.activeElement.closest('.tokens') !== null"):
            break
    focused = page.locator(":focus")
    expect(focused).to_have_attribute("data-index", "0")
    card = page.locator("token-card")
    expect(card).to_contain_text("token 1 of 9")
    moves = {"ArrowRight": 2, "ArrowDown": 3, "ArrowLeft": 2, "End": 9, "Home": 1}
    for key, number in moves.items():
        press(key)
        expect(card).to_contain_text(f"token {number} of 9")
    press("Escape")
    expect(card).to_be_hidden()
    press("Tab")
    assert page.evaluate("document.activeElement.closest('.tokens') === null")


def test_on_a_phone(browser: Browser, url: str, shots: Path) -> None:
    page = opened(browser.new_page(**PHONE), url)
    run(page)
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(wide) == 0
    one, other = (page.locator("answer-column").nth(i).bounding_box() for i in (0, 1))
    assert one is not None
    assert other is not None
    assert other["y"] > one["y"] + one["height"]
    page.screenshot(path=shots / "phone.png", full_page=True)
    page.locator("answer-column").nth(1).locator(".token").nth(6).tap()
    card = page.locator("token-card")
    expect(card).to_be_visible()
    box = card.bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    page.screenshot(path=shots / "phone-card.png")
    small = page.locator("button:visible, select:visible").evaluate_all(
        """(all) => all.filter((one) => one.getBoundingClientRect().height < 24)
            .map((one) => one.outerHTML)"""
    )
    assert small == [], "WCAG 2.2: targets of 24 pixels"
    assert axe(page) == []
    page.close()


def test_columns_keep_what_they_have_when_one_is_added(page: Page, url: str, api: FakeApi) -> None:
    opened(page, url)
    run(page)
    page.get_by_role("button", name="Add a column").click()
    assert len(api.bodies) == 2
    expect(page.locator("answer-column").nth(0).locator(".token")).to_have_count(9)
    expect(page.locator("answer-column").nth(2).locator(".status")).to_have_text("Not run yet.")
