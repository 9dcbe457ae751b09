"""Grammars, stop strings and lengths within the accepted drafts of a step: the same answers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from vllm.sampling_params import StructuredOutputsParams

from tests.engine.test_composition import SCHEMA
from tests.engine.test_groups import greedy
from tests.engine.test_speculation import Watched
from tests.support.drafter import Drafter
from tests.support.engine import Engine, order, stacked

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
OPTIONS: dict[str, Any] = {
    "max_model_len": 512,
    "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
}
METHODS = ("plain", "cad", "contrast that drops", "with a temperature", "one-token guide")


@dataclass
class Answer:
    """An answer and its statistics."""

    completion: Any
    rows: list[tuple[float, ...]]


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


def answers_of(watched: Watched, batch: list[tuple[list[int], Any]]) -> list[Answer]:
    """All requests at once."""
    watched.rows.clear()
    outputs = watched.engine.generate([(prompt, params.clone()) for prompt, params in batch])
    # The engine adds to a request's id.
    rows = {name.rpartition("-")[0] or name: rows for name, rows in watched.rows.items()}
    return [Answer(one.outputs[0], rows.get(one.request_id, [])) for one in outputs]


def batch_of(engine: Engine) -> dict[tuple[str, str], tuple[list[int], Any]]:
    """Each method in each way, with a prompt of its own, of which there is one answer."""
    encode = engine.llm.get_tokenizer().encode
    guide = encode(QUESTION)
    asked = {
        (method, way): (encode(f"Number {i}: Atlantis is Zorb. ") + guide, order_of(method, guide))
        for i, (method, way) in enumerate(product(METHODS, WAYS))
    }
    free = [
        (prompt, greedy(extra, max_tokens=30, detokenize=True)) for prompt, extra in asked.values()
    ]
    whole = engine.generate(free)
    return {
        (method, way): (prompt, params_of(WAYS[way], one.outputs[0], extra))
        for ((method, way), (prompt, extra)), one in zip(asked.items(), whole, strict=True)
    }


def test_answers_are_those_without_drafts(
    tiny_with_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The drafts are those that should be accepted, and every fifth one is wrong."""
    watched = Watched(
        tiny_with_tokenizer, [], max_num_seqs=64, max_num_batched_tokens=512, **OPTIONS
    )
    monkeypatch.setattr(Drafter, "drafts", False)
    batch = batch_of(watched.engine)
    alone = answers_of(watched, [*batch.values()])
    answers = [
        (prompt, list(one.completion.token_ids))
        for (prompt, _), one in zip(batch.values(), alone, strict=True)
    ]
    monkeypatch.setattr(Drafter, "answers", answers)
    monkeypatch.setattr(Drafter, "drafts", True)
    steps = watched.steps
    drafted = answers_of(watched, [*batch.values()])
    longest = max(len(tokens) for _, tokens in answers)
    assert watched.steps - steps < longest
    differing = [
        name
        for (name, (_, params)), one, other in zip(batch.items(), drafted, alone, strict=True)
        if not same(one, other, params)
    ]
    assert differing == []
    assert {one.completion.finish_reason for one in drafted} == {"stop", "length"}
    assert watched.accepted > sum(len(tokens) for _, tokens in answers) / 3
    assert watched.rejected > len(batch)
    assert watched.uneven == []
    assert set(watched.engine.leftovers().values()) == {0}
    watched.engine.close()


def same(drafted: Answer, alone: Answer, params: Any) -> bool:
    """Text, tokens, end, statistics and log-probs."""
    one, other = drafted.completion, alone.completion
    tokens = len(other.token_ids)
    surplus = len(drafted.rows) - len(alone.rows)
    likely = [
        (got[token].logprob, wanted[token].logprob)
        for got, wanted in zip(one.logprobs or (), other.logprobs or (), strict=True)
        for token in got.keys() & wanted.keys()
    ]
    return (
        (one.text, list(one.token_ids)) == (other.text, list(other.token_ids))
        and (one.finish_reason, one.stop_reason) == (other.finish_reason, other.stop_reason)
        and len(alone.rows) == (tokens if params.extra_args else 0)
        # vLLM finds a stop string after the step; the front end drops the rows behind it.
        and 0 <= surplus <= (3 if params.stop else 0)
        and drafted.rows[: len(alone.rows)]
        == [pytest.approx(row, 1e-3, 1e-3) for row in alone.rows]
        and len(likely) >= tokens * (params.logprobs is not None)
        and all(got == pytest.approx(wanted, abs=1e-3) for got, wanted in likely)
    )
