"""One server on two hosts: data parallel, and one engine of which each host has a half."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.e2e.test_own_ranks import ask, engines
from tests.engine.cases import Case, mismatches, mixed_cases
from tests.support.chat import complete, guided
from tests.support.hf import Reference
from tests.support.hosts import HEAD, Hosts, hosts
from tests.support.losses import lose
from tests.support.models import make_tiny
from tests.support.models_page import Row, record
from tests.support.platform import cpu_only
from tests.support.server import API_KEY, get

pytestmark = [pytest.mark.long, cpu_only("each host would need a GPU of its own")]

RANKS = (
    "--data-parallel-size", "2", "--data-parallel-size-local", "1", "--data-parallel-address", HEAD,
    "--data-parallel-rpc-port", "13345", "--distributed-executor-backend", "uni",
)  # fmt: skip
HALVES = ("--tensor-parallel-size", "2", "--nnodes", "2", "--master-addr", HEAD)
TOLD_WITHIN_S, LEAVES_WITHIN_S = 10, 60


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with hosts(tmp_path_factory.mktemp("hosts")) as made:
        yield made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its vocabulary is that of the other tests; answers are compared by token ids."""
    return make_tiny(tmp_path_factory.mktemp("model"), vocab_size=49_216)


@pytest.fixture(scope="module")
def cases(model: Path) -> list[Case]:
    return mixed_cases(Reference(model), guided=6, plain=3, longest=100, seed=17)


def assert_right(url: str, cases: list[Case]) -> None:
    with ThreadPoolExecutor(len(cases)) as pool:
        assert mismatches(cases, list(pool.map(partial(ask, url), cases))) == []


def assert_streams(url: str) -> None:
    """A stream says what the whole answer says, in several pieces."""
    options: Any = {"decoding": guided(), "extra_body": {"ignore_eos": True}}
    with openai.OpenAI(base_url=f"{url}/v1", api_key=API_KEY, max_retries=0) as client:
        whole = complete(client, **options).choices[0].text
        pieces = [
            chunk.choices[0].text
            for chunk in complete(client, stream=True, **options)
            if chunk.choices
        ]
    assert "".join(pieces) == whole
    assert len(pieces) > 3


def test_two_ranks_on_two_hosts_answer_until_one_is_lost(
    two: Hosts, model: Path, cases: list[Case]
) -> None:
    """Both have decoded; all clients are told of the loss, and the head leaves as after a crash."""
    head, node = two.start(model, RANKS, (*RANKS, "--data-parallel-start-rank", "1"))
    assert_right(two.url, cases)
    assert engines(get(two.url, "/metrics")) == {"0", "1"}
    assert_streams(two.url)
    errors, took_s = asyncio.run(lose(two.url, partial(two.lose, node)))
    assert {error["code"] for error in errors} == {"engine_unavailable"}
    assert took_s < TOLD_WITHIN_S
    assert head.wait(LEAVES_WITHIN_S) == 1
    record(
        Row(
            "hosts",
            "`--data-parallel-size 2`, a rank on each of two hosts",
            "guided and plain over HTTP, both ranks, streamed; a killed host",
            "tiny Llama, float32, V1, CPU, two network namespaces",
            "Hugging Face float32, token by token",
        )
    )


def test_one_engine_on_two_hosts_ends_with_the_head(
    two: Hosts, model: Path, cases: list[Case]
) -> None:
    """Tensor parallel over the network: no shared memory between the hosts."""
    head, node = two.start(model, (*HALVES, "--node-rank", "0"), (*HALVES, "--node-rank", "1"))
    assert_right(two.url, cases)
    assert_streams(two.url)
    head.send_signal(signal.SIGTERM)
    assert (head.wait(LEAVES_WITHIN_S), node.wait(LEAVES_WITHIN_S)) == (0, 0)
    record(
        Row(
            "hosts",
            "`--tensor-parallel-size 2 --nnodes 2`",
            "guided and plain over HTTP, streamed; a drain",
            "tiny Llama, float32, V1, CPU, two network namespaces",
            "Hugging Face float32, token by token",
        )
    )
