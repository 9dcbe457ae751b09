"""Scored texts: orders, what an engine returned of them, and Hugging Face's figures in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from divserve.decoding import FIGURES, Program, Read, Reading, Spec
from divserve.engine.order import Order
from tests.support.engine import report_of


def scored(reading: Reading, guides: list[list[int]] | None = None, **fields: Any) -> Any:
    """``SamplingParams`` of a request whose prompt ends in a scored text.

    Args:
        reading: what is asked for.
        guides: token ids of the guides, each with the text at its end.
        fields: others of the `Spec`.
    """
    from vllm import SamplingParams

    spec = Spec(fields.pop("program", Program()), guides=guides or [], reading=reading, **fields)
    extra = Order(spec).pack()
    return SamplingParams(temperature=0, max_tokens=1, detokenize=False, extra_args=extra)


def read_of(output: Any) -> Read:
    """What the engine found in the text of a request."""
    report = report_of(output)
    assert report is not None
    assert report.read is not None
    return report.read


def table(read: Read) -> np.ndarray:
    """``[N, len(FIGURES)]``."""
    return np.frombuffer(read.figures, np.float32).reshape(-1, len(FIGURES))


def column(read: Read, name: str) -> np.ndarray:
    """One figure of every position."""
    found: np.ndarray = table(read)[:, FIGURES.index(name)]
    return found


@torch.inference_mode()
def logits(model: Any, prompt: list[int], count: int) -> Tensor:
    """Logits ``[N, V] float64`` before each of the last ``count`` tokens of a prompt."""
    found: Tensor = model(torch.tensor([prompt])).logits[0, -count - 1 : -1].double()
    return found


def expected(
    text: list[int],
    own: Tensor,
    guide: Tensor | None = None,
    reference: Tensor | None = None,
    chosen: Tensor | None = None,
) -> dict[str, np.ndarray]:
    """Every figure in float64, from logits ``[N, V]``."""
    log_p = own.log_softmax(-1)
    log_c = log_p if chosen is None else chosen.log_softmax(-1)
    ids = torch.tensor(text)[:, None]
    probs = log_c.exp()
    safe = log_c.masked_fill(probs == 0, 0.0)
    mean = (probs * safe).sum(-1)
    found = {
        "logprob": log_c.gather(1, ids)[:, 0],
        "rank": 1.0 + (log_c > log_c.gather(1, ids)).sum(-1),
        "entropy": -mean,
        "varentropy": (probs * safe.square()).sum(-1) - mean.square(),
        "own_logprob": log_p.gather(1, ids)[:, 0],
    }
    if guide is not None:
        log_q = guide.log_softmax(-1)
        middle = torch.logaddexp(log_p, log_q) - math.log(2)
        halves = (log_p.exp() * (log_p - middle) + log_q.exp() * (log_q - middle)).sum(-1)
        found["guide_logprob"] = log_q.gather(1, ids)[:, 0]
        found["kl"] = (log_p.exp() * (log_p - log_q)).sum(-1)
        found["jsd"] = halves / 2
    if reference is not None:
        log_r = reference.log_softmax(-1)
        log_p = log_p[:, : log_r.shape[1]]
        cross = (log_r.exp() * log_p).sum(-1)
        found["reference_logprob"] = log_r.gather(1, ids)[:, 0]
        found["cross_entropy"] = -cross
        found["cross_variance"] = (log_r.exp() * log_p.square()).sum(-1) - cross.square()
    return {name: values.numpy() for name, values in found.items()}


def differences(read: Read, wanted: dict[str, np.ndarray]) -> dict[str, float]:
    """The largest difference of each figure; figures that are not wanted must be NaN."""
    for name in set(FIGURES) - wanted.keys():
        assert np.isnan(column(read, name)).all(), name
    return {
        name: float(np.abs(column(read, name) - values).max()) for name, values in wanted.items()
    }
