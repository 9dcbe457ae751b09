"""The real application with an engine that is a fake, at an address that clients can call."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from divserve.batches.flags import BatchSettings
from tests.support.fake_client import FakeClient, arguments
from tests.support.socket_server import listening


@pytest.fixture(scope="package")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the OpenAI API is, with batches; the model is called ``smol``."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    from divserve.server import build_app

    args = arguments(BatchSettings(batch_dir=tmp_path_factory.mktemp("batches")))
    engine = FakeClient(AsyncEngineArgs.from_cli_args(args).create_engine_config())
    app = asyncio.run(build_app(engine, args))  # type: ignore[arg-type]
    with listening(app) as (host, port):
        yield f"http://{host}:{port}/v1"
