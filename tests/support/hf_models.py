"""Independent references of the methods of several models: plain Hugging Face float32 loops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.support.hf import Answer, Reference, nucleus

__all__ = ["Moved", "Trio", "contrast", "moved", "without_layers"]


def contrast(body: dict[str, Any], z: Tensor, amateur: Tensor, tuned: Tensor | None) -> Tensor:
    """Guided logits ``[V] float64`` of one token, from raw logits of one vocabulary."""
    method = body["method"]
    made: Tensor
    if method == "contrastive":
        alpha, heat = body.get("alpha", 0.1), body.get("amateur_temperature", 1.0)
        if body.get("form") == "original":
            made = z.log_softmax(-1) - (amateur / heat).log_softmax(-1)
        else:
            beta = body.get("beta", 0.5)
            made = (1 + beta) * z - beta * amateur / heat
        plausible = z.softmax(-1) >= alpha * z.softmax(-1).max()
        return made.masked_fill(~plausible, -math.inf)
    assert tuned is not None
    alpha = body.get("alpha", 1.0 if method == "proxy_tuning" else 2.0)
    made = z + alpha * (tuned - amateur)
    if method == "dexperts":
        return made.masked_fill(~nucleus(z, body.get("filter_p", 0.9), 1.0), -math.inf)
    return made


class Trio:
    """A served model, an amateur and perhaps a tuned one, whose vocabularies may be padded."""

    def __init__(self, served: Reference, *amateurs: Any) -> None:
        self.served = served.model
        self.amateurs = amateurs

    @torch.inference_mode()
    def greedy(self, prompt: list[int], body: dict[str, Any] | None, max_tokens: int) -> Answer:
        """Decodes greedily; ``body`` None is plain decoding."""
        answer, feed = Answer(), list(prompt)
        models = [self.served, *(self.amateurs if body else ())]
        caches: list[Any] = [None] * len(models)
        for _ in range(max_tokens):
            logits = []
            for i, model in enumerate(models):
                # Vocabularies are padded differently: an id may have no row.
                ids = torch.tensor([feed]).clamp_max(model.config.vocab_size - 1)
                out = model(ids, past_key_values=caches[i], use_cache=True)
                caches[i] = out.past_key_values
                logits.append(out.logits[0, -1].double())
            if body is not None:
                shared = min(len(z) for z in logits)
                z, amateur, *tuned = (row[:shared] for row in logits)
                logits[0] = contrast(body, z, amateur, tuned[0] if tuned else None)
            best = logits[0].topk(2)
            answer.margins.append(float(best.values[0] - best.values[1]))
            answer.tokens.append(int(best.indices[0]))
            feed = answer.tokens[-1:]
        return answer


@dataclass
class Moved:
    """An answer that two models made together."""

    tokens: list[int] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    """Entropy in bits of the model that made the token."""
    doubt: list[float] = field(default_factory=list)
    """By token: how close it was to another token or another model; 0 is a tie."""

    def sure(self, margin: float) -> int:
        """Tokens before the first doubtful one."""
        return next((i for i, d in enumerate(self.doubt) if d < margin), len(self.tokens))


@torch.inference_mode()
def moved(
    large: Any,
    small: Any,
    prompt: Sequence[int],
    max_tokens: int,
    *,
    threshold: float,
    window: int,
    min_run: int,
    start: str = "small",
    stop: Callable[[int], bool] = lambda _: False,
) -> Moved:
    """Simonds 2025 as worded, greedily: the active model computes each token from scratch.

    Args:
        large, small: Hugging Face models.
        stop: whether a token ends the answer.
    """
    answer, ids, run, active = Moved(), list(prompt), 0, start
    shared = min(large.config.vocab_size, small.config.vocab_size)
    for _ in range(max_tokens):
        model = large if active == "large" else small
        z = model(torch.tensor([ids]), use_cache=False).logits[0, -1].double()
        log_p = z.log_softmax(-1)
        entropy = -float((log_p.exp() * log_p).sum()) / math.log(2)
        best = z[:shared].topk(2)
        answer.tokens.append(int(best.indices[0]))
        answer.models.append(active)
        answer.entropies.append(entropy)
        doubt = float(best.values[0] - best.values[1])
        ids.append(answer.tokens[-1])
        run += 1
        if len(answer.tokens) >= window and run >= min_run:
            mean = sum(answer.entropies[-window:]) / window
            doubt = min(doubt, abs(mean - threshold))
            wanted = "large" if mean >= threshold else "small"
            if wanted != active:
                active, run = wanted, 0
        answer.doubt.append(doubt)
        if stop(answer.tokens[-1]):
            break
    return answer


def without_layers(path: Path, dropped: Sequence[int]) -> Any:
    """The model of a folder without some of its decoder layers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    kept = [layer for i, layer in enumerate(model.model.layers) if i not in set(dropped)]
    for i, layer in enumerate(kept):
        layer.self_attn.layer_idx = i
    model.model.layers = torch.nn.ModuleList(kept)
    model.config.num_hidden_layers = len(kept)
    return model
