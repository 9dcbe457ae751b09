"""Scores of given texts over HTTP, against Hugging Face in float32."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from torch import Tensor

from tests.support import hf
from tests.support.chat import CAD, DOCUMENT, MESSAGES, PROMPT, QUESTION, account, complete
from tests.support.scored import expected, logits

CLOSE = 1e-3
TEXT = f"{PROMPT} Lyon, not Paris."


@pytest.fixture(scope="module")
def reference(smollm2: Path) -> hf.Reference:
    return hf.Reference(smollm2)


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2)


def log_probs(reference: hf.Reference, method: str, ids: list[int], guide: list[int]) -> Tensor:
    """``[N, V]``: log-probs under a method before the tokens that prompt and guide both end in."""
    count = len(guide) - 1
    own, other = (logits(reference.model, tokens, count) for tokens in (ids, guide))
    pairs = zip(own, other, strict=True)
    return torch.stack([hf.combine(method, *pair) for pair in pairs]).log_softmax(-1)


@pytest.mark.parametrize("method", ["cad", "adacad", "coiecd", "uscd"])
def test_echo_has_the_log_probs_of_the_method(
    client: openai.OpenAI, reference: hf.Reference, tokenizer: Any, method: str
) -> None:
    """As lm-eval reads them: its tokens' numbers, and whether each is the likeliest."""
    decoding = {**CAD, "method": method}
    found = complete(client, decoding, prompt=TEXT, echo=True, logprobs=1, max_tokens=1).choices[0]
    ids, guide = (tokenizer.encode(text) for text in (TEXT, TEXT.replace(DOCUMENT, "")))
    wanted = log_probs(reference, method, ids, guide)
    start = len(ids) - len(wanted)
    numbers, tops = found.logprobs.token_logprobs, found.logprobs.top_logprobs
    assert numbers[:start] == [None] * start
    assert len(numbers) == len(ids) + 1
    for place, own in enumerate(wanted):
        value = max(float(own[ids[start + place]]), -9999.0)
        assert numbers[start + place] == pytest.approx(value, abs=CLOSE)
        is_greedy = numbers[start + place] == max(tops[start + place].values())
        assert is_greedy == (int(own.argmax()) == ids[start + place])
    assert account(found)["applied_steps"] == 1


def test_a_method_without_a_guide_scores_the_whole_prompt(
    client: openai.OpenAI, reference: hf.Reference, tokenizer: Any
) -> None:
    decoding = {"method": "entropy_temperature", "theta": 2.0}
    fields: dict[str, Any] = {"prompt": TEXT, "echo": True, "logprobs": 0, "temperature": 1}
    found = complete(client, decoding, max_tokens=0, **fields).choices[0]
    ids = tokenizer.encode(TEXT)
    warm = [hf.edt(row, theta=2.0) for row in logits(reference.model, ids, len(ids) - 1)]
    numbers = torch.stack(warm).log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    assert found.text == TEXT
    assert found.logprobs.token_logprobs[0] is None
    assert found.logprobs.token_logprobs[1:] == pytest.approx(numbers.tolist(), abs=CLOSE)


def test_answers_behind_a_chat(
    client: openai.OpenAI, reference: hf.Reference, tokenizer: Any
) -> None:
    """Two answers, with the document and without it."""
    answers = ["It is Lyon.", "Paris"]
    body = {
        "model": "smol", "messages": MESSAGES, "answer": answers, "guide": {"without": DOCUMENT},
        "scores": ["loss", "ppl", "pmi", "kl", "jsd"], "tokens": True,
    }  # fmt: skip
    data = client.post("/decoding/score", body=body, cast_to=object)
    assert isinstance(data, dict)
    asked: dict[str, Any] = {"tokenize": True, "add_generation_prompt": True, "return_dict": False}
    prompt, guide = (
        tokenizer.apply_chat_template([{"role": "user", "content": text}], **asked)
        for text in (DOCUMENT + QUESTION, QUESTION)
    )
    for text, item in zip(answers, data["data"], strict=True):
        ids = tokenizer.encode(text, add_special_tokens=False)
        wanted = expected(
            ids, *(logits(reference.model, before + ids, len(ids)) for before in (prompt, guide))
        )
        loss = -float(wanted["logprob"].mean())
        assert item["scores"] == pytest.approx(
            {
                "loss": loss,
                "ppl": math.exp(loss),
                "pmi": float((wanted["logprob"] - wanted["guide_logprob"]).sum()),
                "kl": float(wanted["kl"].mean()),
                "jsd": float(wanted["jsd"].mean()),
            },
            rel=CLOSE,
            abs=CLOSE,
        )
        assert [entry["token_id"] for entry in item["trace"]] == ids
        assert "".join(entry["token"] for entry in item["trace"]) == text
