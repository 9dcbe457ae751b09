"""Guided logits through vLLM's own sampler follow the formula (χ²): a million draws with --soak."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from vllm.v1.sample.logits_processor import LogitsProcessors
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.sampler import Sampler

from divserve_kernels import guide
from tests.kernels.cases import of_method, pairs
from tests.support.hf import Reference, combine

PROMPT, GUIDE = list(range(10, 60)), list(range(30, 60))
TEMPERATURE = 2.0
"""vLLM's highest: the tiny model's peaked distribution then has several likely tokens."""
ROWS, STEPS, SOAK_STEPS = 2_000, 25, 500
METHODS: dict[str, dict[str, Any]] = {
    "adacad": {},
    "cad": {"alpha": 0.3},
    "cfg": {"scale": 1.25},
    "coiecd": {},
    "instructive": {},
    "kl_temperature": {"sigma": 2.0},
    "linear_alignment": {"ratio": 0.5, "nucleus": 0.9, "nucleus_temperature": TEMPERATURE},
    "uscd": {"weight": 0.3, "uncertainty": 1.0},
}


@pytest.fixture(scope="module")
def logits(tiny_reference: Reference) -> Tensor:
    """``[2, V] float32``: after the prompt and after its guide."""
    with torch.inference_mode():
        rows = [tiny_reference.model(torch.tensor([s])).logits[0, -1] for s in (PROMPT, GUIDE)]
    return torch.stack(rows).float()


def sampling(rows: int) -> SamplingMetadata:
    """What vLLM's runner hands to its sampler for unseeded requests without further settings."""
    none = torch.zeros(rows)
    fields: dict[str, Any] = {
        "temperature": torch.full((rows,), TEMPERATURE),
        "all_greedy": False,
        "all_random": True,
        "top_p": None,
        "top_k": None,
        "generators": {},
        "max_num_logprobs": None,
        "no_penalties": True,
        "prompt_token_ids": None,
        "frequency_penalties": none,
        "presence_penalties": none,
        "repetition_penalties": none + 1,
        "output_token_ids": [[] for _ in range(rows)],
        "allowed_token_ids_mask": None,
        "bad_words_token_ids": {},
        "logitsprocs": LogitsProcessors(),
    }
    return SamplingMetadata(**fields)


@pytest.mark.parametrize("method", METHODS)
def test_frequencies(logits: Tensor, method: str, soak: bool) -> None:
    """Against the formula in float64, p > 1e-3; tokens expected under 8 times form one class."""
    torch.manual_seed(5)
    steps, fields = SOAK_STEPS if soak else STEPS, METHODS[method]
    draws = ROWS * steps
    expected = (combine(method, *logits, **fields) / TEMPERATURE).softmax(-1) * draws
    rows = pairs(logits.repeat(ROWS, 1), [of_method(method, TEMPERATURE, **fields)] * ROWS)
    guided = logits.repeat(ROWS, 1)
    guide(guided, rows)
    sampler, metadata = Sampler(), sampling(ROWS)
    counts = torch.zeros(logits.shape[1], dtype=torch.int64)
    for _ in range(steps):
        # The sampler divides by the temperature in place.
        drawn = sampler(guided[::2].clone(), metadata).sampled_token_ids
        counts += drawn.flatten().bincount(minlength=len(counts))
    likely = expected >= 8
    observed = [*counts[likely].tolist(), int(counts[~likely].sum())]
    theory = [*expected[likely].tolist(), float(expected[~likely].sum())]
    assert sum(observed) == draws
    assert len(observed) > 8
    if theory[-1] == 0:
        assert (observed.pop(), theory.pop()) == (0, 0)
    assert chisquare(observed, theory).pvalue > 1e-3
