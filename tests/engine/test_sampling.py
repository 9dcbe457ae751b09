"""Sampled tokens follow the guided distribution (χ² with fixed seeds)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare
from vllm import SamplingParams

from tests.support.engine import Engine, order
from tests.support.hf import Reference, combine

PROMPT, GUIDE = list(range(10, 60)), list(range(30, 60))
TEMPERATURE = 2.0
"""vLLM's highest: the tiny model's peaked distribution then has several likely tokens."""
DRAWS, PARTS = 4000, 4
LINEAR_ALIGNMENT = {"ratio": 0.5, "nucleus": 0.9, "nucleus_temperature": TEMPERATURE}


@pytest.fixture(scope="module")
def engine(tiny: Path) -> Iterator[Engine]:
    """Enough rows that the draws are batched."""
    engine = Engine(tiny, max_num_seqs=128, max_num_batched_tokens=512)
    yield engine
    engine.close()


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("kl_temperature", {"sigma": 2.0}),
        ("adacad", {}),
        *(
            pytest.param(method, fields, marks=pytest.mark.long)
            for method, fields in (
                ("kl_temperature", {"sigma": 10.0}),
                ("cad", {"alpha": 0.3}),
                ("cfg", {"scale": 1.25}),
                ("coiecd", {}),
                ("instructive", {}),
                ("linear_alignment", LINEAR_ALIGNMENT),
                ("uscd", {"weight": 0.3, "uncertainty": 1.0}),
            )
        ),
    ],
)
def test_frequencies(
    engine: Engine, tiny_reference: Reference, method: str, fields: dict[str, float]
) -> None:
    """Four thousand first tokens against the reference's probabilities, p > 1e-3.

    `test_draws` has every method, without an engine.
    """
    counts: Counter[int] = Counter()
    for part in range(PARTS):
        params = SamplingParams(
            temperature=TEMPERATURE,
            n=DRAWS // PARTS,
            seed=11 + 100_000 * part,
            max_tokens=1,
            detokenize=False,
            extra_args=order(method, GUIDE, TEMPERATURE, **fields),
        )
        (output,) = engine.generate([(PROMPT, params)])
        counts.update(choice.token_ids[0] for choice in output.outputs)
    expected = probabilities(tiny_reference, method, fields) * DRAWS
    likely = [int(t) for t in expected.argsort(descending=True) if expected[t] >= 8]
    observed = [counts[t] for t in likely]
    theory = [float(expected[t]) for t in likely]
    if (rest := DRAWS - sum(theory)) > 1e-6:
        # All other tokens form one class.
        observed.append(DRAWS - sum(observed))
        theory.append(rest)
    assert sum(observed) == DRAWS
    assert len(likely) >= 5
    assert chisquare(observed, theory).pvalue > 1e-3


@torch.inference_mode()
def probabilities(reference: Reference, method: str, fields: dict[str, float]) -> torch.Tensor:
    """``[V] float64`` from two forwards of Hugging Face."""
    rows = [reference.model(torch.tensor([s])).logits[0, -1].float() for s in (PROMPT, GUIDE)]
    guided = combine(method, rows[0], rows[1], **fields)
    return (guided / TEMPERATURE).softmax(-1)
