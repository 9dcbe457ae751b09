"""The texts of a trace's tokens are those of vLLM's logprobs, whatever a token cuts in two."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from divserve.api.serving import GuidedServing
from divserve.api.texts import CONTEXT, Token, decoder
from tests.support.fake_client import FakeClient

TEXT = "Ein 😀, 한국어 and 漢字 👩‍👩‍👧 – naïve 🇫🇷"


@pytest.fixture(scope="module")
def tokenizer(fake_engine: FakeClient) -> Any:
    return fake_engine.renderer.tokenizer


def as_logprobs(tokenizer: Any, ids: list[int]) -> list[str]:
    """The tokens of vLLM's logprobs for an answer of these ids."""
    from vllm.v1.engine.logprobs import LogprobsProcessor
    from vllm.v1.outputs import LogprobsLists

    shown: list[Any] = []
    processor = LogprobsProcessor(tokenizer, shown, None, 0.0, 0, None)
    for number in ids:
        step = LogprobsLists(np.array([[number]]), np.array([[-1.0]]), np.array([1]))
        processor._update_sample_logprobs(step)
    return [step[number].decoded_token for step, number in zip(shown, ids, strict=True)]


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_a_character_of_several_tokens(tokenizer: Any, cut: int) -> None:
    ids = tokenizer.encode(TEXT)
    # Also where the answer begins or ends within a character.
    ids = ids[4 + cut :] + ids[:7]
    decode = decoder(tokenizer)
    found = decode(ids, [ids[max(0, i - CONTEXT) : i] for i in range(len(ids))])
    assert [token.text for token in found] == as_logprobs(tokenizer, ids)
    assert [bytes(token.utf8 or []).decode() for token in found] == [t.text for t in found]
    assert sum(token.text == "" for token in found) > 5


def test_they_add_up_to_the_text(tokenizer: Any) -> None:
    ids = tokenizer.encode(TEXT)
    found = decoder(tokenizer)(ids, [ids[max(0, i - CONTEXT) : i] for i in range(len(ids))])
    assert "".join(token.text for token in found) == TEXT


def test_ids_in_place_of_texts(tokenizer: Any) -> None:
    serving: Any = SimpleNamespace()
    serving.return_tokens_as_token_ids = True
    serving.renderer = SimpleNamespace(tokenizer=tokenizer)
    shown = GuidedServing._decode(serving, None)([504], [[]])
    assert shown == [Token("token_id:504", list(b"The"))]
    assert GuidedServing._decode(serving, False)([504], [[]]) == [Token("The", list(b"The"))]
    serving.renderer = SimpleNamespace(tokenizer=None)
    assert GuidedServing._decode(serving, False)([504], [[]]) == [Token("token_id:504", None)]
