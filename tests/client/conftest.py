"""The real application with an engine that is a fake, at an address that clients can call."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import pytest

from divserve.batches.flags import BatchSettings
from tests.support.fake_client import FakeClient, arguments
from tests.support.socket_server import listening


class Ending(FakeClient):
    """Ends its answers as models do: with a token that has no text."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.answer.append(self.renderer.tokenizer.eos_token_id)

    def _output(self, index: int, tokens: list[int], logprobs: Any, last: bool) -> Any:
        output = super()._output(index, tokens, logprobs, last)
        output.text = self.renderer.tokenizer.decode(tokens, skip_special_tokens=True)
        output.finish_reason = "stop" if last else None
        return output


@pytest.fixture(scope="package")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the OpenAI API is, with batches; the model is called ``smol``."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    from divserve.batches.folder import prepare
    from divserve.server import build_app

    folder = tmp_path_factory.mktemp("batches")
    prepare(folder)
    args = arguments(BatchSettings(batch_dir=folder))
    engine = Ending(AsyncEngineArgs.from_cli_args(args).create_engine_config())
    app = asyncio.run(build_app(engine, args))  # type: ignore[arg-type]
    with listening(app, lifespan="on") as (host, port):
        yield f"http://{host}:{port}/v1"


@pytest.fixture(scope="package")
def compose_schema() -> Any:
    """The schema of the Compose specification, from the package check-jsonschema."""
    files = metadata.files("check-jsonschema") or []
    (found,) = [file for file in files if file.name == "compose-spec.json"]
    return json.loads(found.read_text(encoding="utf-8"))
