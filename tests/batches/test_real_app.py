"""Batches in the real application, on an engine that is a fake: methods, aliases and errors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient

from divserve.batches.flags import BatchSettings
from tests.support.batches import begin, client_of, ended, line, lines_of
from tests.support.chat import CAD, MESSAGES
from tests.support.fake_client import FakeClient, arguments

pytestmark = pytest.mark.filterwarnings("ignore:max_tokens is deprecated:DeprecationWarning")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    from vllm.engine.arg_utils import AsyncEngineArgs

    from divserve.batches.folder import prepare
    from divserve.server import build_app

    folder = tmp_path_factory.mktemp("batches")
    prepare(folder)
    args = arguments(BatchSettings(batch_dir=folder, batch_max_rows=2), max_concurrent_per_key=1)
    args.api_key, args.decodings = ["sk-1"], {"faithful": CAD}
    engine = FakeClient(AsyncEngineArgs.from_cli_args(args).create_engine_config())
    app = asyncio.run(build_app(engine, args))  # type: ignore[arg-type]
    with TestClient(app) as http:
        yield client_of(http, "sk-1")


def test_lines_are_decoded_as_on_the_route(client: openai.OpenAI) -> None:
    body: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 5}
    lines = [
        line("plain", **body),
        line("guided", **body, decoding=CAD),
        line("alias", **body | {"model": "smol@faithful"}),
        line("wrong", **body, decoding={"method": "cad"}),
        line("many", **body, decoding=CAD, n=3),
        line("none", **body | {"model": "other"}),
    ]
    batch = ended(client, begin(client, *lines))
    assert batch.status == "completed"
    found = {each["custom_id"]: each for each in lines_of(client, batch.output_file_id)}
    assert found.keys() == {"plain", "guided", "alias", "many"}
    usages = [each["response"]["body"]["usage"] for each in found.values()]
    assert batch.usage is not None
    assert batch.usage.input_tokens == sum(usage["prompt_tokens"] for usage in usages)
    assert batch.usage.output_tokens == sum(usage["completion_tokens"] for usage in usages)
    assert batch.usage.total_tokens == sum(usage["total_tokens"] for usage in usages)
    choices = {name: each["response"]["body"]["choices"] for name, each in found.items()}
    assert "decoding" not in choices["plain"][0]
    assert choices["guided"][0]["decoding"]["method"] == "cad"
    assert choices["alias"][0]["decoding"]["method"] == "cad"
    assert found["alias"]["response"]["body"]["model"] == "smol@faithful"
    # Six rows, of which a batch may have two while there are other lines.
    assert len(choices["many"]) == 3
    errors = {each["custom_id"]: each for each in lines_of(client, batch.error_file_id)}
    assert errors.keys() == {"wrong", "none"}
    wrong, none = (errors[name]["response"] for name in ("wrong", "none"))
    assert (wrong["status_code"], none["status_code"]) == (400, 404)
    assert wrong["body"]["error"]["param"] == "decoding.guide"


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("/v1/completions", {"prompt": "Lyon is"}),
        ("/v1/responses", {"input": "Lyon is"}),
        ("/v1/messages", {"messages": MESSAGES}),
    ],
)
def test_every_endpoint_is_served(
    client: openai.OpenAI, endpoint: str, body: dict[str, Any]
) -> None:
    name = "max_output_tokens" if endpoint == "/v1/responses" else "max_tokens"
    request = {"model": "smol", name: 20, **body}
    one = {"custom_id": "a", "method": "POST", "url": endpoint, "body": request}
    batch = ended(client, begin(client, one, endpoint=endpoint))
    assert batch.error_file_id is None, lines_of(client, batch.error_file_id)
    (answer,) = lines_of(client, batch.output_file_id)
    body = answer["response"]["body"]
    assert "Lyon is the capital" in str(body)
    assert batch.usage is not None
    counted = body["usage"].get("output_tokens", body["usage"].get("completion_tokens"))
    assert (batch.usage.output_tokens, batch.usage.input_tokens > 0) == (counted, True)
