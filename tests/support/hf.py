"""An independent reference: plain Hugging Face float32, one forward per stream and step.

Written from the papers' formulas in float64, sharing no code with the product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
    if method == "instructive":
        return z1 - float(parameters.get("epsilon", 0.3)) * z2
    if method == "linear_alignment":
        ratio = float(parameters.get("ratio", 2.0))
        heat = float(parameters.get("nucleus_temperature", 0.5))
        kept = nucleus(z1, float(parameters.get("nucleus", 0.8)), heat)
        return ((1 + ratio) * z1 - ratio * z2).masked_fill(~kept, -math.inf)
    if method == "coiecd":
        return coiecd(z1, z2, **{k: float(v) for k, v in parameters.items()})
    if method == "uscd":
        return uscd(z1, z2, **{k: float(v) for k, v in parameters.items()})
    raise ValueError(method)


def coiecd(with_text: Tensor, without: Tensor, alpha: float = 1.0, ratio: float = 4.0) -> Tensor:
    """Yuan et al. 2024 as released, entropy included (it cancels)."""
    l2, l1 = with_text.log_softmax(-1), without.log_softmax(-1)
    difference = (-l2 - edt_entropy(with_text)).log_softmax(-1)
    lower = difference < difference.min() + math.log(ratio)
    if int(lower.sum()) == 1:
        lower[:] = False
    violating = lower | (difference > difference.max() - math.log(ratio))
    return torch.where(violating, l2, l1) + alpha * (l2 - l1)


def uscd(
    standard: Tensor,
    lame: Tensor,
    weight: float = 0.7,
    uncertainty: float = 0.8,
    floor: float = 2 / 3,
) -> Tensor:
    """Wang et al. 2024 as released, with the gate as a standard deviation."""
    p0, p1 = standard.softmax(-1), lame.softmax(-1)
    size = len(p0)
    gate = math.sqrt(max(0.0, (uncertainty - 1 / size) / (size - 1)))
    if float(p0.std()) > gate:
        return p0.log()
    mixed = (p0 - weight * p1).masked_fill(p0 < floor * p0.mean(), 0.0).clamp_min(0.0)
    chosen: Tensor = mixed if bool((mixed > 0).any()) else p0
    return chosen.log()


def nucleus(z: Tensor, mass: float, temperature: float) -> Tensor:
    """Boolean mask of the smallest set of likeliest tokens with at least this mass."""
    order = z.argsort(descending=True)
    before = (z[order] / temperature).softmax(-1).cumsum(-1).roll(1)
    before[0] = 0.0
    kept = torch.zeros_like(z, dtype=torch.bool)
    kept[order[before < mass]] = True
    return kept


def edt_entropy(z: Tensor) -> float:
    """Entropy of softmax(z) in nats."""
    log_p = z.log_softmax(-1)
    return -float((log_p.exp() * log_p).sum())


def vdgd(z: Tensor, grounded: Tensor, score: str = "replace", base: Tensor | None = None) -> Tensor:
    """Ghosh et al. 2025 with the defaults 0.5 and 0.5; ``base``: contrasted logits, if any."""
    kept = nucleus(z, 0.5, 0.5)
    made = grounded if score == "replace" else (z if base is None else base) + grounded
    return made.masked_fill(~kept, -math.inf)


def edt(z: Tensor, theta: float = 0.1, base: float = 0.8) -> Tensor:
    """Zhang et al. 2024 at base temperature 1."""
    factor = max(base ** (theta / max(edt_entropy(z), 1e-6)), 1e-4)
    return z / float(factor)


Combined = Callable[[list[Tensor]], Tensor]
"""Computes the guided logits ``[V]`` from those of all streams, each ``[V] float64``."""


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

    def greedy(
        self,
        prompt: list[int],
        guide: list[int] | None,
        method: str,
        max_tokens: int,
        **parameters: Any,
    ) -> Answer:
        """Decodes greedily with one method; ``guide=None`` is plain decoding."""
        guides = [] if guide is None else [guide]

        def combined(logits: list[Tensor]) -> Tensor:
            return combine(method, *logits, **parameters) if guides else logits[0]

        return self.stacked(prompt, guides, combined, max_tokens)

    def stacked(
        self, prompt: list[int], guides: list[list[int]], combined: Combined, max_tokens: int
    ) -> Answer:
        """Decodes greedily; ``combined`` takes the logits ``[V]`` of the prompt and the guides."""
        return self.together(prompt, guides, [combined], max_tokens)[0]

    @torch.inference_mode()
    def together(
        self,
        prompt: list[int],
        guides: list[list[int]],
        combined: Sequence[Combined],
        max_tokens: int,
    ) -> list[Answer]:
        """Like `stacked`, for several ways to combine, which share the prompts and forwards."""
        feeds = [torch.tensor([stream]) for stream in (prompt, *guides)]
        caches: list[Any] = [None] * len(feeds)
        answers = [Answer() for _ in combined]
        for step in range(max_tokens):
            logits = []
            for i, feed in enumerate(feeds):
                out = self.model(feed, past_key_values=caches[i], use_cache=True)
                caches[i] = out.past_key_values
                if step == 0:
                    caches[i].batch_repeat_interleave(len(answers))
                logits.append(out.logits[:, -1].double().expand(len(answers), -1))
            for number, (answer, way) in enumerate(zip(answers, combined, strict=True)):
                mine = [stream[number] for stream in logits]
                guided = way(mine)
                best = guided.topk(2).values
                answer.margins.append(float(best[0] - best[1]))
                if guides:
                    answer.divergences.append((kl(*mine[:2]), jsd(*mine[:2])))
                answer.tokens.append(int(guided.argmax()))
            feeds = [torch.tensor([[answer.tokens[-1]] for answer in answers])] * len(feeds)
        return answers

    @torch.inference_mode()
    def grounding(self, text: list[int], *, average: bool = False) -> Tensor:
        """max_j (or mean_j) of ln q_j, ``[V] float64``; q_j follows token j of the text."""
        log_probs = self.model(torch.tensor([text])).logits[0].double().log_softmax(-1)
        reduced: Tensor = log_probs.mean(0) if average else log_probs.amax(0)
        return reduced
