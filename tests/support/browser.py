"""Debian's Chromium, driven by Playwright: fixtures for the tests of the playground."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support.models import ROOT

OUT = ROOT / "tests" / "out" / "playground"
"""Where screenshots go."""
PATIENCE_MS = 15_000
"""Longest wait for something on the page; the machine may be busy."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for a file. Its driver keeps an event loop running, beside which tests of other
    files could not use ``asyncio.run``."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no Chromium here: make setup-browser installs Debian's")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        # Root, as which containers run tests, has no sandbox; the pages are our own.
        browser = playwright.chromium.launch(executable_path=path, chromium_sandbox=False)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of a desktop; an error of its code, or of its security policy, fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda m: wrong.append(m.text) if "Content Security" in m.text else None)
    page.set_default_timeout(PATIENCE_MS)
    yield page
    context.close()
    assert wrong == []


@pytest.fixture(scope="session")
def shots() -> Path:
    """The folder of screenshots."""
    OUT.mkdir(parents=True, exist_ok=True)
    return OUT


def opened(page: Page, url: str) -> Page:
    """The page at an address, once it knows the server's methods."""
    page.goto(url)
    expect(page.locator("answer-column").first).to_be_visible()
    return page


def run(page: Page) -> None:
    """Runs all columns to their ends."""
    page.get_by_role("button", name="Run", exact=True).click()
    completed(page)


def completed(page: Page) -> None:
    """Waits for the ends of all answers."""
    for status in page.locator(".status").all():
        expect(status).to_contain_text(re.compile(r"\d s$"), timeout=2 * PATIENCE_MS)


def answer(page: Page, column: int) -> str:
    """The text of a column's answer, without the mark of its end."""
    tokens = page.locator("answer-column").nth(column).locator(".token:not(.is-end)")
    return "".join(tokens.evaluate_all("(all) => all.map((one) => one.textContent)"))
