"""Grammars, stop strings and lengths within the accepted drafts of a step: the same answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm.sampling_params import StructuredOutputsParams

from tests.engine.test_composition import SCHEMA
from tests.engine.test_groups import greedy
from tests.engine.test_speculation import Watched, both
from tests.support.drafter import Drafter
from tests.support.engine import order, stacked

pytestmark = pytest.mark.long

QUESTION = "Question: What is the capital of Atlantis? Answer:"
JSON = {"structured_outputs": {"json": SCHEMA}}
REGEX = {"structured_outputs": {"regex": r'\{"name": "[a-z]{3,12}", "age": [1-9][0-9]?\}'}}
WAYS: dict[str, dict[str, Any]] = {
    "JSON schema": JSON,
    "regular expression": REGEX,
    "regular expression, cut": REGEX | {"max_tokens": 9},
    "choice": {"structured_outputs": {"choice": ["Atlantis is a myth", "Atlantis is an isle"]}},
    "grammar and penalties": JSON | {"repetition_penalty": 1.3, "presence_penalty": 0.5},
    "grammar and min_tokens": REGEX | {"min_tokens": 6},
    "grammar and logprobs": JSON | {"logprobs": 3},
    "stop string": {"stop": [], "ignore_eos": True},
    "stop string, included": {
        "stop": [], "ignore_eos": True, "include_stop_str_in_output": True,
    },
    "stop string after min_tokens": {"stop": [], "ignore_eos": True, "min_tokens": 9},
    "bad words": {"bad_words": [], "ignore_eos": True},
    "bias": {"allowed_token_ids": list(range(300, 3000)), "ignore_eos": True},
    "presence": {"presence_penalty": 1.5, "repetition_penalty": 1.2, "ignore_eos": True},
}  # fmt: skip
METHODS = ("plain", "cad", "contrast that drops", "with a temperature", "one-token guide")


@pytest.fixture(scope="module")
def watched(tiny_with_tokenizer: Path) -> Iterator[Watched]:
    watched = Watched(
        tiny_with_tokenizer,
        [],
        max_model_len=512,
        structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
    )
    yield watched
    watched.engine.close()


def order_of(method: str, guide: list[int]) -> dict[str, Any] | None:
    match method:
        case "plain":
            return None
        case "contrast that drops":
            return order("linear_alignment", guide)
        case "with a temperature":
            bodies: list[dict[str, Any]] = [{"method": "kl_temperature"}, {"method": "adacad"}]
            return stacked(bodies, [guide[3:], guide])
        case "one-token guide":
            return order("cfg", guide[:1])
    return order(method, guide)


def params_of(fields: dict[str, Any], whole: Any, extra: dict[str, Any] | None) -> Any:
    """The parameters of a way.

    Args:
        fields: of the way.
        whole: the answer without them; what stops or is forbidden is a part of it.
        extra: the order.
    """
    fields = {"max_tokens": 60, "ignore_eos": False} | fields | {"detokenize": True}
    if "structured_outputs" in fields:
        asked = StructuredOutputsParams(**fields["structured_outputs"])
        fields["structured_outputs"] = asked
    if "stop" in fields:
        fields["stop"] = [whole.text[14:17]]
    if "bad_words" in fields:
        fields["bad_words"] = [whole.text[10:14].strip()]
    return greedy(extra, **fields)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", METHODS)
def test_answers_are_those_without_drafts(
    watched: Watched, method: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The drafts are those that should be accepted, and every fifth one is wrong."""
    encode = watched.engine.llm.get_tokenizer().encode
    guide = encode(QUESTION)
    prompt, extra = encode("The capital of Atlantis is Zorb. ") + guide, order_of(method, guide)
    monkeypatch.setattr(Drafter, "drafts", False)
    free = greedy(extra, max_tokens=30, detokenize=True)
    whole = watched.engine.generate([(prompt, free)])[0].outputs[0]
    params = params_of(WAYS[way], whole, extra)
    before, accepted = watched.steps, watched.accepted
    (expected, rows), (answer, drafted) = both(watched, prompt, params, monkeypatch)
    assert (answer.text, list(answer.token_ids)) == (expected.text, list(expected.token_ids))
    assert (answer.finish_reason, answer.stop_reason) == (
        expected.finish_reason,
        expected.stop_reason,
    )
    tokens = len(answer.token_ids)
    assert len(rows) == (tokens if extra else 0)
    # vLLM finds a stop string after the step; the front end drops the rows behind it.
    assert 0 <= len(drafted) - len(rows) <= (3 if params.stop else 0)
    assert drafted[: len(rows)] == [pytest.approx(row, rel=1e-3, abs=1e-3) for row in rows]
    for got, wanted in zip(answer.logprobs or (), expected.logprobs or (), strict=True):
        for token in got.keys() & wanted.keys():
            assert got[token].logprob == pytest.approx(wanted[token].logprob, abs=1e-3)
    assert watched.accepted > accepted
    assert watched.steps - before < 2 * tokens + 6
    assert watched.uneven == []
    assert set(watched.engine.leftovers().values()) == {0}
    if WAYS[way] is JSON:
        assert set(json.loads(answer.text)) == {"city", "people"}


def test_a_mixed_batch_of_grammars(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """All methods and ways with a grammar at once, with drafts and without."""
    encode = watched.engine.llm.get_tokenizer().encode
    guide = encode(QUESTION)
    batch = [
        # No two have the same prompt, of which there is one answer.
        (encode(f"Number {i * len(METHODS) + j}: ") + guide, order_of(method, guide), WAYS[way])
        for i, way in enumerate(way for way in WAYS if "structured_outputs" in WAYS[way])
        for j, method in enumerate(METHODS)
    ]

    def run() -> list[list[int]]:
        asked = [(prompt, params_of(way, None, extra)) for prompt, extra, way in batch]
        return [list(o.outputs[0].token_ids) for o in watched.engine.generate(asked)]

    monkeypatch.setattr(Drafter, "drafts", False)
    expected = run()
    monkeypatch.setattr(Drafter, "drafts", True)
    answers = [(prompt, tokens) for (prompt, _, _), tokens in zip(batch, expected, strict=True)]
    monkeypatch.setattr(Drafter, "answers", answers)
    accepted = watched.accepted
    assert run() == expected
    assert watched.accepted - accepted > 4 * len(batch)
    assert watched.uneven == []
    assert set(watched.engine.leftovers().values()) == {0}
