"""Real replicas behind Ray Serve: chosen by the prompt's prefix, and of several ranks each."""

from __future__ import annotations

import importlib.util
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.engine.cases import Case, mismatches, mixed_cases
from tests.support.deploy import SETUP
from tests.support.hf import Reference
from tests.support.models import make_tiny
from tests.support.platform import cpu_only
from tests.support.ray_serve import serving_in_ray

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason=f"Ray Serve is not here: {SETUP}"
    ),
    cpu_only("the replicas of this file have no GPU"),
]

METRICS, COUNTED_WITHIN_S = 19_500, 5
DOCUMENT = "The tower now stands in Berlin. " * 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its vocabulary is that of the other tests; answers are compared by token ids."""
    return make_tiny(tmp_path_factory.mktemp("model"), vocab_size=49_216)


@pytest.fixture(scope="module")
def cases(model: Path) -> list[Case]:
    return mixed_cases(Reference(model), guided=6, plain=3, longest=100, seed=23)


def flags(model: Path, *others: str) -> list[str]:
    return [str(model), "--served-model-name=tiny", "--max-model-len=1024", *others]


@pytest.fixture(scope="module")
def by_prefix(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Two replicas behind a front."""
    options = {
        "argv": flags(model, "--enable-prompt-tokens-details", "--max-body-bytes=100000"),
        "replicas": 2,
        "by_prefix": True,
        "cpus": 0.5,
        "metrics_port": METRICS,
    }
    with serving_in_ray(options, tmp_path_factory.mktemp("ray") / "log.txt") as url:
        yield url


def connected(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def ask(url: str, case: Case) -> list[int]:
    """The token ids of an answer."""
    decoding = {"method": case.method, "guide": {"prompt": case.guide}} if case.method else None
    extra: Any = {"ignore_eos": True, "return_token_ids": True}
    with connected(url) as client:
        answer: Any = client.completions.create(
            model="tiny", prompt=case.prompt, max_tokens=case.max_tokens, temperature=0,
            extra_body=extra | ({"decoding": decoding} if decoding else {}),
        )  # fmt: skip
        return list(answer.choices[0].token_ids)


def assert_right(url: str, cases: list[Case]) -> None:
    with ThreadPoolExecutor(len(cases)) as pool:
        assert mismatches(cases, list(pool.map(partial(ask, url), cases))) == []


def chat(client: openai.OpenAI, document: str, **options: Any) -> Any:
    decoding = {"method": "adacad", "guide": {"without": document}}
    return client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": f"{document} Where does it stand?"}],
        max_tokens=8,
        temperature=0,
        extra_body={"decoding": decoding, "ignore_eos": True},
        **options,
    )


def guided_tokens(total: float) -> list[float]:
    """How many each replica has made, by its own metrics, once they are `total` together.

    An answer is counted after it has been sent.
    """
    deadline = time.monotonic() + COUNTED_WITHIN_S
    while True:
        found = []
        for port in (METRICS, METRICS + 1):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                lines = answer.read().decode().splitlines()
            (line,) = [one for one in lines if one.startswith("divserve_guided_steps_total ")]
            found.append(float(line.split()[1]))
        if sum(found) == total or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def test_a_prompt_goes_where_its_beginning_is_cached(by_prefix: str) -> None:
    """Its guide as well; and other prompts go to the other replica."""
    cached: list[list[int]] = []
    made = [0.0, 0.0]
    with connected(by_prefix) as client:
        for number in range(4):
            before, document = made, f"Document {number}. {DOCUMENT}"
            answers = [chat(client, document) for _ in range(3)]
            cached.append([each.usage.prompt_tokens_details.cached_tokens for each in answers])
            assert len({each.choices[0].message.content for each in answers}) == 1
            made = guided_tokens(sum(before) + 3 * 8)
            new = [after - start for after, start in zip(made, before, strict=True)]
            assert sorted(new) == [0, 3 * 8], (number, cached)
        chunks = [chunk for chunk in chat(client, DOCUMENT, stream=True) if chunk.choices]
    assert len(chunks) > 4
    assert all(first < 32 < min(later) for first, *later in cached)
    assert all(made)


def test_answers_by_prefix_are_the_reference_s(by_prefix: str, cases: list[Case]) -> None:
    assert_right(by_prefix, cases)


def test_a_body_is_bounded_before_it_is_routed(by_prefix: str) -> None:
    with (
        connected(by_prefix) as client,
        pytest.raises(openai.APIStatusError, match="larger --max-body-bytes") as refused,
    ):
        chat(client, "x" * 100_000)
    assert refused.value.status_code == 413


def test_a_replica_of_two_ranks_with_two_halves_each(
    model: Path, cases: list[Case], tmp_path: Path
) -> None:
    """Data times tensor parallel: four workers of one replica."""
    argv = flags(model, "--data-parallel-size=2", "--tensor-parallel-size=2")
    options = {"argv": argv, "metrics_port": METRICS + 100}
    with serving_in_ray(options, tmp_path / "log.txt") as url:
        assert_right(url, cases)
        address = f"http://127.0.0.1:{METRICS + 100}/metrics"
        with urllib.request.urlopen(address, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
    totals = [line for line in lines if line.startswith("vllm:generation_tokens_total{")]
    assert len(totals) == 2
    assert all(float(line.split()[-1]) > 0 for line in totals)
