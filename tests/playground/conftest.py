"""The playground on a scripted API, in Chromium."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.browser import browser, page, shots
from tests.support.fake_openai import running
from tests.support.fake_playground import FakeApi

__all__ = ["api", "browser", "page", "shots", "url"]


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


@pytest.fixture
def url(api: FakeApi) -> Iterator[str]:
    """The page's address."""
    with running(api.app()) as url:
        yield f"{url}/playground/"
