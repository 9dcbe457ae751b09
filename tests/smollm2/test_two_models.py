"""SmolLM2 and a weaker sibling in float32: contrast and switching equal Hugging Face loops.

The sibling is SmolLM2 without four layers of its middle: ``drop:4`` beside the expert in one
engine, and a folder of its own for the second engine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from divserve.decoding import METHODS, Stack
from divserve.engine.models.drop import kept_layers
from tests.engine.cases import NEAR_TIE
from tests.smollm2.test_token_identity import FACTS
from tests.support.hf import Reference
from tests.support.hf_models import Trio, moved, without_layers
from tests.support.two_engines import Pair, switching, two_engines

TOKENS = 16
DROPPED = sorted(set(range(30)) - set(kept_layers(30, 4)))
THRESHOLD = 1.2
RULE: dict[str, Any] = {"threshold": THRESHOLD, "window": 2, "min_run": 2}

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def sibling(smollm2: Path) -> Any:
    return without_layers(smollm2, DROPPED)


@pytest.fixture(scope="module")
def pair(smollm2: Path, sibling: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("sibling")
    sibling.save_pretrained(folder)
    AutoTokenizer.from_pretrained(smollm2).save_pretrained(folder)
    room = {"max_num_seqs": 32, "max_num_batched_tokens": 512, "max_model_len": 512}
    with two_engines(smollm2, folder, amateurs={"amateur": "drop:4"}, **room) as pair:
        yield pair


@pytest.fixture(scope="module")
def prompts(smollm2: Path) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    found = []
    for fact, question in FACTS[:6]:
        message = [{"role": "user", "content": f"{fact} {question}"}]
        rendered = tokenizer.apply_chat_template(
            message, add_generation_prompt=True, return_dict=True
        )
        found.append(list(rendered["input_ids"]))
    return found


def test_one_batch_of_contrast_switching_and_plain(
    pair: Pair, smollm2: Path, sibling: Any, prompts: list[list[int]]
) -> None:
    """Six requests of each kind at once."""
    body = {"method": "contrastive"}
    contrastive = Stack(METHODS["contrastive"].model_validate(body)).spec(0.0, [None])
    orders = [contrastive, switching(**RULE), None]
    answers = pair.ask_all([(p, o) for p in prompts for o in orders], max_tokens=TOKENS)
    reference = Reference(smollm2)
    trio = Trio(reference, sibling)
    changed = switches = 0
    for i, prompt in enumerate(prompts):
        contrast, switched, plain = answers[3 * i : 3 * i + 3]
        expected = trio.greedy(prompt, body, TOKENS)
        sure = next((k for k, m in enumerate(expected.margins) if m < NEAR_TIE), TOKENS)
        assert contrast.tokens[:sure] == expected.tokens[:sure]
        changed += contrast.tokens != plain.tokens

        replay = moved(reference.model, sibling, prompt, TOKENS, **RULE)
        sure = replay.sure(NEAR_TIE)
        assert switched.tokens[:sure] == replay.tokens[:sure]
        assert switched.models[:sure] == replay.models[:sure]
        bits = [row[0] / math.log(2) for row in switched.rows]
        assert bits[:sure] == pytest.approx(replay.entropies[:sure], abs=2e-3)
        switches += switched.switches

        alone = trio.greedy(prompt, None, TOKENS)
        sure = next((k for k, m in enumerate(alone.margins) if m < NEAR_TIE), TOKENS)
        assert plain.tokens[:sure] == alone.tokens[:sure]
    assert changed > 1
    assert switches > 4
    assert set(pair.figures().values()) == {0}
