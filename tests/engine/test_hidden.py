"""The store of hidden states: the heads it accepts, the modes it rejects, what bfloat16 costs."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from divserve.engine.models.hidden_store import HiddenStore
from divserve.errors import StartupError
from tests.support.engine import Engine, order, random_prompt
from tests.support.look_back import divergences, recorded

VOCAB, HIDDEN = 300, 32


class Head(nn.Module):
    """The part of a model that the check reads."""

    def __init__(self, bias: bool = False, scale: float = 1.0, cap: float | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lm_head = nn.Linear(HIDDEN, VOCAB, bias=bias)
        self.logits_processor = SimpleNamespace(scale=scale)
        self.cap = cap

    def compute_logits(self, states: Tensor) -> Tensor:
        logits: Tensor = self.lm_head(states) * self.logits_processor.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_a_linear_head_proves_itself(dtype: torch.dtype, scale: float) -> None:
    model = Head(scale=scale).to(dtype).requires_grad_(False)
    HiddenStore(model, None).check(model.compute_logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("fields", "why"),
    [({"cap": 30.0}, "not linear"), ({"bias": True}, "has a bias")],
    ids=["soft-cap", "bias"],
)
def test_other_heads_are_refused(fields: dict[str, Any], why: str, dtype: torch.dtype) -> None:
    model = Head(**fields).to(dtype).requires_grad_(False)
    with pytest.raises(StartupError, match=why):
        HiddenStore(model, None).check(model.compute_logits)


@pytest.mark.parametrize("weight", [None, torch.zeros(8, 4, dtype=torch.int8), torch.zeros(0)])
def test_quantised_and_packed_heads_are_refused(weight: Tensor | None) -> None:
    model = Head().requires_grad_(False)
    del model.lm_head.weight
    if weight is not None:
        model.lm_head.weight = weight
    with pytest.raises(StartupError, match="quantised or packed"):
        HiddenStore(model, None).check(lambda states: states)


def test_the_noise_of_bfloat16(smollm2: Path) -> None:
    """KLmin against that of the engine's own bfloat16 logits: the documented 0.1 nat and a
    margin."""
    from vllm import SamplingParams

    engine = Engine(smollm2, look_back=True, dtype="bfloat16", max_model_len=256)
    rows, steps = recorded(engine), []
    runner = engine.llm.llm_engine.model_executor.driver_worker.worker.model_runner
    compute = runner.model.compute_logits
    prompt = random_prompt(random.Random(1), 48, 40_000)
    params = SamplingParams(
        max_tokens=24,
        ignore_eos=True,
        detokenize=False,
        prompt_logprobs=0,
        extra_args=order("look_back", None, threshold=0.0, window=0, reference="generated"),
    )

    def kept(states: Tensor) -> Tensor:
        logits: Tensor = compute(states)
        if len(states) == 1:
            steps.append(logits[0].double().log_softmax(-1))
        return logits

    runner.model.compute_logits = kept
    (output,) = engine.generate([(prompt, params)])
    found = rows[output.request_id]
    known = torch.stack(steps[-24:])
    for i in range(1, 24):
        expected = float(divergences(known[i], known[:i]).min())
        assert found[i].kl_min == pytest.approx(expected, abs=0.15)
    engine.close()
