"""One engine without an engine for the tests of the edges."""

from __future__ import annotations

import pytest

from tests.support.fake_client import FakeClient, arguments


@pytest.fixture(scope="session")
def fake_engine() -> FakeClient:
    from vllm.engine.arg_utils import AsyncEngineArgs

    return FakeClient(AsyncEngineArgs.from_cli_args(arguments()).create_engine_config())
