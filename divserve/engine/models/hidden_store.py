"""The hidden states of all tokens, in vLLM's own paged KV cache.

A cache-only attention layer beside the model's own gets pages from the same block table, so prefix
cache hits, chunked prefill, preemption and copied blocks treat hidden states like keys and values.
With a linear head, log p_j(v) = w_v·h_j − lse_j: H numbers stand for a distribution over V tokens,
and KL(p_t‖p_j) = Σ p_t log p_t − μ_t·h_j + lse_j with μ_t = Wᵀp_t (`divserve_kernels.history`).

Each slot also has lse_j. It is known where a token was sampled, else computed when first needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from vllm.config import set_current_vllm_config
from vllm.model_executor.models.extract_hidden_states import (
    CacheOnlyAttentionBackend,
    CacheOnlyAttentionLayer,
    CacheOnlyAttentionMetadataBuilder,
)

from divserve.errors import StartupError
from divserve_kernels.history import Nearest, expected_row, nearest
from divserve_kernels.streams import send

__all__ = ["LAYER", "Head", "HiddenStore", "attach", "store_of"]

ATTRIBUTE = "divserve_hidden"
LAYER = "divserve_hidden.layers.0.attn"

Head = Callable[[Tensor], Tensor]
"""The model's head: hidden states ``[n, H]`` to logits ``[n, V]``."""

SLICE = 64
"""Number of positions whose logits are in memory at a time."""
PROBE_LOGIT = 20.0
"""Largest logit of the made-up states of `HiddenStore.check`: large enough to reveal soft-caps."""
TOLERANCE = {torch.float32: 2e-3}
"""Nats by which KL(p‖p) may differ from 0, by the dtype of the head; 16-bit logits are rounded to
1/8 near `PROBE_LOGIT`."""
ROUNDED = 0.25


class HiddenStore:
    """Hidden states, log-sum-exps, and the positions of the step's rows in them."""

    def __init__(self, model: nn.Module, layer: Any) -> None:
        self._layer = layer
        self._model = model
        self._lse: Tensor | None = None
        self.seq_lens: Tensor = torch.empty(0, dtype=torch.int32)
        """``[R] int32``: tokens of each row, including those of this step."""
        self._table: Tensor = torch.empty(0, 0, dtype=torch.int32)

    @property
    def states(self) -> Tensor:
        """``[blocks, block, H]`` in the dtype of the KV cache."""
        cache: Tensor = self._layer.kv_cache
        return cache[:, 0]

    @property
    def lse(self) -> Tensor:
        """``[blocks · block + 1] float32`` by slot; NaN where unknown; the last one is unused."""
        blocks, block = self.states.shape[:2]
        if self._lse is None or len(self._lse) != blocks * block + 1:
            self._lse = torch.full((blocks * block + 1,), math.nan, device=self.states.device)
        return self._lse

    def begin(self, metadata: Any) -> None:
        """Prepares for a step before its forward, which writes new states to its slots.

        Args:
            metadata: vLLM's ``CommonAttentionMetadata``.
        """
        self.seq_lens, self._table = metadata.seq_lens, metadata.block_table_tensor
        if self._layer.kv_cache.numel():
            # Padding has slot −1 and lands in the unused one.
            lse = self.lse
            lse.index_fill_(0, metadata.slot_mapping.remainder(len(lse)).long(), math.nan)

    def copied(self, copies: list[tuple[int, int]], num_blocks: int) -> None:
        """Repeats vLLM's copies of blocks (source, destination), before their step's forward."""
        source, target = send(copies, torch.int64, self.lse.device).unbind(1)
        rows = self.lse[:-1].view(num_blocks, -1)
        rows.index_copy_(0, target, rows.index_select(0, source))

    def sampled(self, rows: Tensor, lse: Tensor) -> None:
        """Stores the log-sum-exps ``[N] float32`` of the last tokens of rows ``[N] int64``."""
        last = self.seq_lens.index_select(0, rows).long() - 1
        self.lse.index_copy_(0, self._slots(rows, last), lse)

    def fill(self, spans: Sequence[tuple[int, int, int]], head: Head) -> None:
        """Computes the log-sum-exps that are not known yet.

        Which these are is only asked of a CPU; a GPU would have to be waited for, and computes the
        logits of all positions instead. Call it only in the first step of a request or an alarm.

        Args:
            spans: row, first position, and one past the last.
            head: computes the logits.
        """
        device, block = self.lse.device, self.states.shape[1]
        lengths = [stop - first for _, first, stop in spans]
        rows = np.repeat([row for row, _, _ in spans], lengths)
        positions = np.concatenate([np.arange(first, stop) for _, first, stop in spans])
        slots = self._slots(*send(np.stack((rows, positions)), torch.int64, device))
        if device.type == "cpu":
            slots = _unknown(slots, self.lse)
        for part in slots.split(SLICE):
            logits = head(self.states[part // block, part % block])
            known = self.lse.index_select(0, part)
            found = logits.float().logsumexp(-1).where(known.isnan(), known)
            self.lse.index_copy_(0, part, found)

    def nearest(
        self,
        rows: Tensor,
        spans: tuple[Tensor, Tensor],
        most: int,
        probs: Tensor,
        negative_entropy: Tensor,
    ) -> Nearest:
        """The smallest KL from each distribution to those at a span of its row's positions.

        Args:
            rows: ``[N] int64``.
            spans: ``[N] int32`` each: first position, and one past the last.
            most: at least as long as every span.
            probs: ``[N, V] float32``.
            negative_entropy: ``[N] float32``: Σ p log p.
        """
        mu = expected_row(probs, self._weight()) * self._scale()
        states, table = self.states, self._table
        most = min(most, table.shape[1] * states.shape[1])
        return nearest(states, self.lse, table, rows, *spans, mu, negative_entropy, most=most)

    def check(self, head: Head) -> None:
        """Checks on made-up states that log p(v) = w_v·h − lse holds: KL(p‖p) must be 0.

        Raises:
            StartupError: it does not, so look-back would compare with wrong distributions.
        """
        head_module = _head_of(self._model)
        if getattr(head_module, "bias", None) is not None:
            raise StartupError("--look-back: this model's head has a bias")
        weight = self._weight()
        if weight.ndim != 2 or not weight.is_floating_point() or not weight.numel():
            raise StartupError("--look-back: this model's head is quantised or packed")
        some = weight[:: max(1, len(weight) // 8)][:8].float()
        states = (some * (PROBE_LOGIT / some.square().sum(-1, keepdim=True))).to(weight.dtype)
        logits = head(states).float()
        probs = logits.softmax(-1)
        mu = expected_row(probs, weight) * self._scale()
        error = ((probs * logits).sum(-1) - (mu * states.float()).sum(-1)).abs().max()
        limit = TOLERANCE.get(logits.dtype if weight.dtype == torch.float32 else None, ROUNDED)  # type: ignore[arg-type]
        if not error <= limit:
            raise StartupError(
                "--look-back: this model's logits are not linear in its hidden states (a soft-cap, "
                f"a bias, a quantised head?): KL(p‖p) is {float(error):.2g} nats, not 0"
            )

    def warm(self) -> None:
        """Compiles the comparison, single- and multi-threaded, so that no request waits for it."""
        weight, layer = self._weight(), self._layer
        shape = (1, layer.block_size, layer.head_size)
        states = torch.zeros(shape, dtype=layer.kv_cache_torch_dtype, device=weight.device)
        count, most = 8, 1024
        lse = torch.zeros(layer.block_size + 1, device=weight.device)
        table = torch.zeros(count, most // layer.block_size + 1, dtype=torch.int32).to(lse.device)
        rows = torch.arange(count, device=lse.device)
        starts = torch.zeros(count, dtype=torch.int32, device=lse.device)
        mu = torch.zeros(count, layer.head_size, device=lse.device)
        for length in (1, most):
            ends = torch.full_like(starts, length)
            nearest(states, lse, table, rows, starts, ends, mu, lse[:count], most=length)

    def _weight(self) -> Tensor:
        weight: Tensor | None = getattr(_head_of(self._model), "weight", None)
        if weight is None:
            raise StartupError("--look-back: this model's head is quantised or packed")
        return weight

    def _scale(self) -> float:
        return float(getattr(getattr(self._model, "logits_processor", None), "scale", 1.0))

    def _slots(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Slots ``[N] int64`` of positions ``[N] int64`` of rows ``[N] int64``."""
        block = self.states.shape[1]
        return self._table[rows, positions // block].long() * block + positions % block


def _unknown(slots: Tensor, lse: Tensor) -> Tensor:
    """The slots without a log-sum-exp, each once; it waits for the device."""
    slots = slots.unique()
    return slots[lse[slots].isnan()]


class _Builder(CacheOnlyAttentionMetadataBuilder):
    """vLLM calls it in Python before every forward, even if that is a replayed CUDA graph."""

    def build(self, common_prefix_len: int, common_attn_metadata: Any, *args: Any) -> Any:
        context = self.vllm_config.compilation_config.static_forward_context
        context[LAYER].store.begin(common_attn_metadata)
        return super().build(common_prefix_len, common_attn_metadata, *args)


class _Backend(CacheOnlyAttentionBackend):
    @staticmethod
    def get_builder_cls() -> type[CacheOnlyAttentionMetadataBuilder]:
        return _Builder


class _Layer(CacheOnlyAttentionLayer):
    store: HiddenStore

    def get_attn_backend(self) -> type[CacheOnlyAttentionBackend]:
        return _Backend


def attach(model: nn.Module, vllm_config: Any, hidden_size: int) -> None:
    """Re-classes a loaded model so that its forward also stores its hidden states."""
    with set_current_vllm_config(vllm_config):
        layer: Any = _Layer(num_heads=1, head_size=hidden_size, prefix=LAYER)
    layer.store = HiddenStore(model, layer)
    base: Any = type(model)

    class Storing(base):
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            states: Tensor = base.forward(self, *args, **kwargs)
            layer(states.view(-1, 1, hidden_size))
            return states

    # vLLM prints and compares class names.
    Storing.__name__, Storing.__qualname__ = base.__name__, base.__qualname__
    model.__class__ = Storing
    # Not registered as a module of the model, or vLLM would look for its weights.
    object.__setattr__(model, ATTRIBUTE, layer.store)


def store_of(model: nn.Module) -> HiddenStore | None:
    """The store of a model; None without ``--look-back``."""
    found: HiddenStore | None = getattr(model, ATTRIBUTE, None)
    return found


def _head_of(model: nn.Module) -> nn.Module:
    """The module with the rows w_v."""
    inner: Any = model
    found: nn.Module = inner.lm_head if hasattr(inner, "lm_head") else inner.model.embed_tokens
    return found
