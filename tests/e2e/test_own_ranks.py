"""Two servers on one machine, each with data-parallel ranks of its own and its own clients."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.engine.cases import Case, mismatches, mixed_cases
from tests.support import architectures
from tests.support.hf import Reference
from tests.support.models import SMOLLM2, make_tiny
from tests.support.platform import cpu_only
from tests.support.server import API_KEY, TOGETHER, Started, free_port, get, serving

pytestmark = [pytest.mark.long, cpu_only("one GPU has no second rank")]


@dataclass(frozen=True)
class Mode:
    """How the ranks are shared between the servers."""

    module: str
    flags: tuple[tuple[str, ...], ...]
    """Of each server."""
    ranks: tuple[set[str], ...]
    """Numbers of each server's ranks, as its metrics have them."""


MODES = {
    # vLLM leaves dense models to independent servers.
    "external, experts": Mode(
        "tests.support.gathering_server",
        tuple(
            ("--data-parallel-size", "2", "--data-parallel-rank", str(i),
             "--enable-expert-parallel")
            for i in range(2)
        ),
        ({"0"}, {"1"}),
    ),
    "hybrid, dense": Mode(
        "divserve",
        tuple(
            ("--data-parallel-size", "4", "--data-parallel-size-local", "2",
             "--data-parallel-hybrid-lb", "--data-parallel-start-rank", str(start))
            for start in (0, 2)
        ),
        ({"0", "1"}, {"2", "3"}),
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=MODES)
def mode(request: pytest.FixtureRequest) -> Mode:
    return MODES[request.param]


@pytest.fixture(scope="module")
def model(mode: Mode, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its vocabulary is that of the other tests; answers are compared by token ids."""
    folder = tmp_path_factory.mktemp("model")
    if mode.module == "divserve":
        return make_tiny(folder, vocab_size=49_216)
    architectures.make(architectures.named("Qwen3-MoE"), folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(SMOLLM2 / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def servers(
    mode: Mode, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Started]]:
    """Started at once: the first waits for the ranks of the second."""
    folder, port = tmp_path_factory.mktemp("servers"), str(free_port())
    shared = ["--data-parallel-address", "127.0.0.1", "--data-parallel-rpc-port", port]
    shared += ["--distributed-executor-backend", "uni"]
    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:

        def start(number: int) -> Started:
            log = folder / f"{number}.txt"
            flags = [*shared, *mode.flags[number]]
            url, process = stack.enter_context(serving(model, log, flags, mode.module, TOGETHER))
            return Started(url, process, log)

        yield list(pool.map(start, range(2)))


def ask(url: str, case: Case) -> list[int]:
    """The token ids of an answer."""
    decoding = {"method": case.method, "guide": {"prompt": case.guide}} if case.method else None
    extra: Any = {"ignore_eos": True, "return_token_ids": True}
    with openai.OpenAI(base_url=f"{url}/v1", api_key=API_KEY, max_retries=0) as client:
        answer: Any = client.completions.create(
            model="smol", prompt=case.prompt, max_tokens=case.max_tokens, temperature=0,
            extra_body=extra | ({"decoding": decoding} if decoding else {}),
        )  # fmt: skip
        return list(answer.choices[0].token_ids)


def test_each_server_answers_as_the_reference(
    servers: list[Started], mode: Mode, model: Path
) -> None:
    cases = mixed_cases(Reference(model), guided=4, plain=2, longest=100, seed=13)
    with ThreadPoolExecutor(4) as pool:
        for server in servers:
            answers = list(pool.map(lambda case, url=server.url: ask(url, case), cases))
            assert mismatches(cases, answers) == []
    for server, ranks in zip(servers, mode.ranks, strict=True):
        assert engines(get(server.url, "/metrics")) == ranks


def engines(text: str) -> set[str]:
    """The ranks that have decoded tokens, by the metrics of their server."""
    return {
        sample.labels["engine"]
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "vllm:generation_tokens_total" and sample.value
    }


def test_both_stop_as_asked(servers: list[Started]) -> None:
    """Runs last."""
    for server in servers:
        server.process.send_signal(signal.SIGTERM)
    assert [server.process.wait(60) for server in servers] == [0, 0]
