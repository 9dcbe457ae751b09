"""Sampled tokens with drafts follow the law without them: three tokens of a vocabulary of 16."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import power_divergence
from torch import Tensor
from vllm import SamplingParams

from divserve.engine.scheduler.governor import OPTION
from divserve.engine.worker.rejection import expand
from tests.support.drafter import Drafter, speculative_config
from tests.support.engine import Engine, order
from tests.support.hf import Reference, combine
from tests.support.models import make_tiny

VOCAB, DRAWS, TOKENS, TEMPERATURE = 16, 20_000, 3, 2.0
PROMPT, GUIDE = [5, 9, 7, 5, 9, 8, 5, 9], [9, 7, 11]
LOOKUP = {
    "method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_min": 1, "prompt_lookup_max": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("sixteen"), vocab_size=VOCAB, seed=3)


def law(model: Path, temperature: float, top_p: float) -> np.ndarray:
    """``[V³] float64``: probability of each three tokens."""
    reference = Reference(model)
    with torch.inference_mode():
        before: list[list[int]] = [[]] + [[a] for a in range(VOCAB)]
        before += [[a, b] for a in range(VOCAB) for b in range(VOCAB)]
        after = {tuple(b): of_next(reference, b, temperature, top_p).numpy() for b in before}
    found = np.zeros((VOCAB, VOCAB, VOCAB))
    for a in range(VOCAB):
        for b in range(VOCAB):
            found[a, b] = after[()][a] * after[a,][b] * after[a, b]
    return found.ravel()


def of_next(reference: Reference, before: list[int], temperature: float, top_p: float) -> Tensor:
    """``[V] float64``: probability of the next token under CAD."""
    rows = [
        reference.model(torch.tensor([start + before])).logits[0, -1] for start in (PROMPT, GUIDE)
    ]
    p = (combine("cad", *rows) / temperature).softmax(-1)
    likeliest = p.argsort(descending=True)
    spare = likeliest[p[likeliest].cumsum(0) - p[likeliest] >= top_p]
    p[spare] = 0
    return p / p.sum()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::numba.core.errors.NumbaPendingDeprecationWarning")
@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("drafter", ["ngram", "fixed"])
def test_frequencies(
    model: Path, drafter: str, top_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    theory = law(model, TEMPERATURE, top_p).reshape(VOCAB, VOCAB, VOCAB)
    likeliest = [int(theory.sum(axis).argmax()) for axis in ((0, 2), (0, 1))]
    monkeypatch.setattr(Drafter, "always", likeliest)
    config: Any = LOOKUP if drafter == "ngram" else speculative_config(2)
    engine = Engine(
        model,
        speculative_config=config,
        max_num_seqs=256,
        max_num_batched_tokens=4096,
        additional_config={OPTION: False},
    )
    counts: Counter[tuple[int, ...]] = Counter()
    accepted = [0, 0]
    update = engine.scheduler.update_from_output

    def counting(output: Any, made: Any) -> Any:
        for name, drafts in output.scheduled_spec_decode_tokens.items():
            if "~" not in name:
                accepted[0] += len(drafts)
                accepted[1] += len(made.sampled_token_ids[made.req_id_to_index[name]]) - 1
        return update(output, made)

    engine.scheduler.update_from_output = counting
    params = SamplingParams(
        temperature=TEMPERATURE, top_p=top_p, max_tokens=TOKENS, ignore_eos=True, detokenize=False,
        extra_args=order("cad", GUIDE, TEMPERATURE),
    )  # fmt: skip
    try:
        for output in engine.generate([(PROMPT, params)] * DRAWS):
            counts[tuple(output.outputs[0].token_ids)] += 1
        seeded = params.clone()
        seeded.seed = 5
        (one, other) = (engine.generate([(PROMPT, seeded)])[0] for _ in range(2))
        assert one.outputs[0].token_ids == other.outputs[0].token_ids
        assert set(engine.leftovers().values()) == {0}
    finally:
        engine.close()
    assert 0.02 * accepted[0] < accepted[1] < 0.98 * accepted[0]
    expected = theory.ravel() * DRAWS
    observed = np.zeros(VOCAB**3)
    for (a, b, c), count in counts.items():
        observed[(a * VOCAB + b) * VOCAB + c] = count
    rare = expected < 8
    assert observed[expected == 0].sum() == 0
    sums = [*expected[~rare], expected[rare].sum()]
    found = [*observed[~rare], observed[rare].sum()]
    assert len(found) > 20
    assert power_divergence(found, sums, lambda_="log-likelihood").pvalue > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.int64])
def test_parameters_of_draft_positions(dtype: torch.dtype) -> None:
    """vLLM's own leaves float32 and int32 as they were allocated."""
    values = torch.tensor([0, 3, 2], dtype=dtype)
    found = expand(values, torch.tensor([2, 2, 5], dtype=torch.int32), 5, 0, 1)
    assert found.dtype == dtype
    assert found.tolist() == [1, 1, 2, 2, 2]
