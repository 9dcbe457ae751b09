"""One app on a fake engine client for the tests of the edges."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tests.support.fake_client import FakeClient, arguments


@pytest.fixture(scope="session")
def fake_engine() -> FakeClient:
    from vllm.engine.arg_utils import AsyncEngineArgs

    return FakeClient(AsyncEngineArgs.from_cli_args(arguments()).create_engine_config())


@pytest.fixture(scope="module")
def app(fake_engine: FakeClient) -> Any:
    """The real application around it."""
    from divserve.server import build_app

    return asyncio.run(build_app(fake_engine, arguments()))  # type: ignore[arg-type]


@pytest.fixture
def engine(fake_engine: FakeClient) -> FakeClient:
    """The engine behind the app; it has only the orders of this test."""
    fake_engine.orders.clear()
    fake_engine.fail_at = None
    return fake_engine


@pytest.fixture
def http(app: FastAPI, engine: FakeClient) -> TestClient:
    return TestClient(app)
