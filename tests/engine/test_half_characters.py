"""A prompt of token ids that ends within a character is not repeated in the answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest
from vllm.v1.engine.output_processor import OutputProcessor

from divserve.engine.client import half_characters
from tests.support.models import SMOLLM2


@pytest.fixture(scope="module")
def tokenizer(smollm2: Any) -> Any:
    from vllm.tokenizers import get_tokenizer

    return get_tokenizer(str(SMOLLM2))


def texts(
    tokenizer: Any, prompt: list[int], answer: list[int], *, mended: bool = True
) -> list[str]:
    """What a stream sends for each token of the answer."""
    processor = OutputProcessor(tokenizer, log_stats=False)
    if mended:
        half_characters.install(processor)
    sent: list[str] = []
    queue = SimpleNamespace(put=lambda output: sent.append(output.outputs[0].text))
    request = EngineCoreRequest(
        request_id="r", external_req_id="r", prompt_token_ids=prompt, mm_features=None,
        sampling_params=SamplingParams(output_kind=RequestOutputKind.DELTA, max_tokens=99),
        pooling_params=None, arrival_time=0.0, lora_request=None, cache_salt=None,
        data_parallel_rank=None,
    )  # fmt: skip
    processor.add_request(request, None, None, 0, queue)
    for token_id in answer:
        processor.process_outputs([EngineCoreOutput("r", [token_id])])
    return sent


@pytest.mark.parametrize("before", ["", "A secret prompt "])
@pytest.mark.parametrize("character", ["😀", "漢", "👩"])
def test_the_answer_ends_the_character(tokenizer: Any, before: str, character: str) -> None:
    whole = tokenizer.encode(before + character)
    start = len(tokenizer.encode(before.rstrip()))
    cuts = range(start + 1, len(whole))
    assert cuts
    for cut in cuts:
        answer = [*whole[cut:], *tokenizer.encode(" and on")]
        found = "".join(texts(tokenizer, whole[:cut], answer))
        assert found.strip() == f"{character} and on"
    leaked = "".join(texts(tokenizer, whole[: cuts[-1]], answer, mended=False))
    assert before.strip() in leaked


@pytest.mark.parametrize(
    "prompt", ["A whole prompt", "An emoji 😀", "A sign \N{REPLACEMENT CHARACTER}"]
)
def test_a_character_that_is_whole_or_never_ends(tokenizer: Any, prompt: str) -> None:
    found = "".join(texts(tokenizer, tokenizer.encode(prompt), tokenizer.encode(" and on")))
    assert found.endswith(" and on")
    assert len(found) <= len(" \N{REPLACEMENT CHARACTER} and on")


def test_a_request_without_text(tokenizer: Any) -> None:
    assert "".join(texts(None, [504, 505], [506])) == ""
