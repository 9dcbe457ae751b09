"""Two data-parallel ranks behind one API process, until one of them is lost."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from tests.support.chat import PROMPT, account, complete, guided
from tests.support.data_parallel import FLAGS
from tests.support.losses import assert_all_are_told
from tests.support.platform import cpu_only
from tests.support.server import API_KEY, TOGETHER, Started, gauges, get, serving

pytestmark = [pytest.mark.long, cpu_only("one GPU has no second rank")]

ROWS, QUEUE = 4, 8
TOLD_WITHIN_S = 30


@pytest.fixture(scope="module")
def started(
    tiny_with_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Started]:
    log = tmp_path_factory.mktemp("ranks") / "log.txt"
    flags = [*FLAGS, "--max-num-seqs", str(ROWS), "--max-queue", str(QUEUE)]
    with serving(tiny_with_tokenizer, log, flags, environment=TOGETHER) as (url, process):
        yield Started(url, process, log)


@pytest.fixture(scope="module")
def client(started: Started) -> Iterator[openai.OpenAI]:
    url = f"{started.url}/v1"
    with openai.OpenAI(base_url=url, api_key=API_KEY, max_retries=0) as client:
        yield client


def test_a_request_may_name_its_rank(started: Started, client: openai.OpenAI) -> None:
    """Stock's header; plain and guided, and all choices go there."""
    texts = set()
    for rank in ("0", "1"):
        before = tokens_of(started.url, rank)
        answer = complete(
            client, guided("cad", trace={"top": 2}), n=2, max_tokens=8, temperature=1e-4,
            extra_headers={"X-data-parallel-rank": rank}, extra_body={"ignore_eos": True},
        )  # fmt: skip
        texts |= {choice.text for choice in answer.choices}
        assert {
            (*entry["top"], len(entry["top"]["guide"]))
            for choice in answer.choices
            for entry in account(choice)["trace"]
        } == {("primary", "guide", "guided", 2)}
        assert [account(choice)["applied_steps"] for choice in answer.choices] == [8, 8]
        assert tokens_of(started.url, rank) - before == 16
    assert len(texts) == 1
    with pytest.raises(openai.BadRequestError, match=r"data_parallel_rank 2 is out of range"):
        complete(client, extra_headers={"X-data-parallel-rank": "2"})


def test_the_queue_begins_behind_the_rows_of_all_ranks(
    started: Started, client: openai.OpenAI
) -> None:
    """Those of both, and eight that wait."""
    long = {"max_tokens": 1000, "extra_body": {"ignore_eos": True}}
    everything = 2 * ROWS + QUEUE
    with ThreadPoolExecutor(everything // ROWS) as pool:
        answers = [
            pool.submit(complete, client, prompt=[PROMPT] * ROWS, **long)
            for _ in range(everything // ROWS)
        ]
        deadline = time.monotonic() + TOLD_WITHIN_S
        while sum(gauges(started.url).values()) < everything and time.monotonic() < deadline:
            time.sleep(0.05)
        with pytest.raises(openai.RateLimitError, match="queue is full"):
            complete(client)
    assert {choice.finish_reason for a in answers for choice in a.result().choices} == {"length"}


def test_a_killed_rank_ends_the_server(started: Started) -> None:
    """Requests of the other rank end with the same error. Runs last."""
    assert_all_are_told(started.url, started.process, signal.SIGKILL, TOLD_WITHIN_S, rank=1)


def test_a_killed_rank_ends_several_api_processes(
    tiny_with_tokenizer: Path, tmp_path: Path
) -> None:
    """Their parent owns the ranks, and tells them."""
    flags = (*FLAGS, "--api-server-count", "2")
    log = tmp_path / "log.txt"
    with serving(tiny_with_tokenizer, log, flags, environment=TOGETHER) as (url, process):
        assert_all_are_told(url, process, signal.SIGKILL, TOLD_WITHIN_S, rank=1)


def tokens_of(url: str, rank: str) -> float:
    """Tokens that a rank has decoded."""
    name = f'vllm:generation_tokens_total{{engine="{rank}"'
    (line,) = (one for one in get(url, "/metrics").splitlines() if one.startswith(name))
    return float(line.split()[-1])
