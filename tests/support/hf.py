"""An independent reference: plain Hugging Face float32, one forward per stream and step.

Written from the papers' formulas in float64, sharing no code with the product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def jsd(z1: Tensor, z2: Tensor) -> float:
    """Jensen-Shannon divergence in nats of two logit vectors."""
    p, q = z1.softmax(-1), z2.softmax(-1)
    m = (p + q) / 2
    return float(torch.xlogy(p, p / m).sum() + torch.xlogy(q, q / m).sum()) / 2


def kl(z1: Tensor, z2: Tensor) -> float:
    """Clipped KL in nats (Chang et al. 2023, their code)."""
    p, q = z1.softmax(-1).clamp(1e-7, 1), z2.softmax(-1).clamp(1e-7, 1)
    return max(0.0, float((p * (p.log() - q.log())).sum()))


def combine(method: str, z1: Tensor, z2: Tensor, **parameters: float | str) -> Tensor:
    """The guided logits of one token; ``z1``, ``z2`` are ``[V]``."""
    z1, z2 = z1.double(), z2.double()
    if method == "cad":
        alpha = float(parameters.get("alpha", 0.5))
        return (1 + alpha) * z1 - alpha * z2
    if method == "adacad":
        unit = math.log(2) if parameters.get("jsd_base") == "bits" else 1.0
        alpha = max(jsd(z1, z2) / unit, float(parameters.get("floor", 0.0)))
        return (1 + alpha) * z1 - alpha * z2
    if method == "cfg":
        return z2 + float(parameters.get("scale", 1.5)) * (z1 - z2)
    if method == "kl_temperature":
        sigma = float(parameters.get("sigma", 1.0))
        return z1 / max(2 ** (-kl(z1, z2) / sigma), 1e-4) if sigma else z1
    raise ValueError(method)


@dataclass
class Answer:
    """What the reference generated."""

    tokens: list[int] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    """Gap between the two best guided logits at each step."""
    divergences: list[tuple[float, float]] = field(default_factory=list)
    """(KL, JSD) of the two streams at each step, nats."""


class Reference:
    """Greedy decoding with two separate prompts."""

    def __init__(self, path: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    @torch.inference_mode()
    def greedy(
        self,
        prompt: list[int],
        guide: list[int] | None,
        method: str,
        max_tokens: int,
        **parameters: Any,
    ) -> Answer:
        """Decodes greedily; ``guide=None`` is plain decoding."""
        streams = [prompt] if guide is None else [prompt, guide]
        caches: list[Any] = [None] * len(streams)
        answer = Answer()
        for _ in range(max_tokens):
            logits = []
            for i, feed in enumerate(streams):
                out = self.model(torch.tensor([feed]), past_key_values=caches[i], use_cache=True)
                caches[i] = out.past_key_values
                logits.append(out.logits[0, -1].float())
            guided = logits[0] if guide is None else combine(method, *logits, **parameters)
            best = guided.topk(2).values
            answer.margins.append(float(best[0] - best[1]))
            if guide is not None:
                answer.divergences.append(
                    (kl(*(z.double() for z in logits)), jsd(*(z.double() for z in logits)))
                )
            token = int(guided.argmax())
            answer.tokens.append(token)
            streams = [[token] for _ in streams]
        return answer
