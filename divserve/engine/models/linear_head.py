"""The head of a model whose logits are linear in its hidden states: log p(v) = w_v·h − lse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from divserve.errors import StartupError
from divserve_kernels.history import expected_row

__all__ = ["Head", "LinearHead"]

Head = Callable[[Tensor], Tensor]
"""The model's head: hidden states ``[n, H]`` to logits ``[n, V]``."""

PROBE_LOGIT = 20.0
"""Largest logit of the made-up states of `LinearHead.check`: large enough to reveal soft-caps."""
TOLERANCE = {torch.float32: 2e-3}
"""Nats by which KL(p‖p) may differ from 0, by the dtype of the head; 16-bit logits are rounded to
1/8 near `PROBE_LOGIT`."""
ROUNDED = 0.25


class LinearHead:
    """The rows w_v of a model's head."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    @property
    def weight(self) -> Tensor:
        """``[V', H]``: output embeddings, then padding.

        Raises:
            StartupError: the head has none.
        """
        weight: Tensor | None = getattr(self._module(), "weight", None)
        if weight is None:
            raise StartupError("--look-back: this model's head is quantised or packed")
        return weight

    def mean(self, probs: Tensor) -> Tensor:
        """μ = Σ p(v)·w_v in the scale of the logits, ``[N, H] float32``, of ``[N, V] float32``."""
        return expected_row(probs, self.weight) * self._scale()

    def check(self, head: Head) -> None:
        """Checks on made-up states that log p(v) = w_v·h − lse holds: KL(p‖p) must be 0.

        Raises:
            StartupError: it does not, so look-back would compare with wrong distributions.
        """
        if getattr(self._module(), "bias", None) is not None:
            raise StartupError("--look-back: this model's head has a bias")
        weight = self.weight
        if weight.ndim != 2 or not weight.is_floating_point() or not weight.numel():
            raise StartupError("--look-back: this model's head is quantised or packed")
        some = weight[:: max(1, len(weight) // 8)][:8].float()
        states = (some * (PROBE_LOGIT / some.square().sum(-1, keepdim=True))).to(weight.dtype)
        logits = head(states).float()
        probs = logits.softmax(-1)
        error = ((probs * logits).sum(-1) - (self.mean(probs) * states.float()).sum(-1)).abs().max()
        limit = TOLERANCE.get(logits.dtype if weight.dtype == torch.float32 else None, ROUNDED)  # type: ignore[arg-type]
        if not error <= limit:
            raise StartupError(
                "--look-back: this model's logits are not linear in its hidden states (a soft-cap, "
                f"a bias, a quantised head?): KL(p‖p) is {float(error):.2g} nats, not 0"
            )

    def _module(self) -> nn.Module:
        """The module with the rows w_v."""
        inner: Any = self._model
        found: nn.Module
        found = inner.lm_head if hasattr(inner, "lm_head") else inner.model.embed_tokens
        return found

    def _scale(self) -> float:
        return float(getattr(getattr(self._model, "logits_processor", None), "scale", 1.0))
