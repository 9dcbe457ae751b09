"""The hidden states of all tokens, in vLLM's own paged KV cache.

A cache-only attention layer beside the model's own gets pages from the same block table, so prefix
cache hits, chunked prefill, preemption and copied blocks treat hidden states like keys and values.
With a linear head, log p_j(v) = w_v·h_j − lse_j: H numbers stand for a distribution over V tokens,
and KL(p_t‖p_j) = Σ p_t log p_t − μ_t·h_j + lse_j with μ_t = Wᵀp_t (`divserve_kernels.history`).

Each slot also has lse_j. It is known where a token was sampled, else computed when first needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
from vllm.v1.attention.backend import AttentionCGSupport

from divserve.decoding.look import MAX_CANDIDATES
from divserve.engine.models.linear_head import Head, LinearHead
from divserve_kernels.candidates import likeliest
from divserve_kernels.history import Nearest, nearest
from divserve_kernels.streams import send

__all__ = ["LAYER", "Head", "HiddenStore", "attach", "store_of"]

ATTRIBUTE = "divserve_hidden"
LAYER = "divserve_hidden.layers.0.attn"

LOGITS = 128 << 20
"""Most bytes of float32 logits that `HiddenStore.fill` has at a time: 220 positions at V = 151,936,
so that reading the head's weights does not dominate. With 16-bit logits and the temporary of the
sum it takes 2.5 times as many, of the memory that vLLM leaves free."""


class HiddenStore:
    """Hidden states, log-sum-exps, and the positions of the step's rows in them."""

    def __init__(self, model: nn.Module, layer: Any) -> None:
        self._layer = layer
        self._head = LinearHead(model)
        self.lse: Tensor = torch.empty(0)
        """``[blocks · block + 1] float32`` by slot; NaN where unknown; the last one is unused."""
        self.seq_lens: Tensor = torch.empty(0, dtype=torch.int32)
        """``[R] int32``: tokens of each row, including those of this step; maybe more rows, which
        are padding. vLLM's own buffer, like the block table: valid until its next step."""
        self._table: Tensor = torch.empty(0, 0, dtype=torch.int32)

    @property
    def states(self) -> Tensor:
        """``[blocks, block, H]`` in the dtype of the KV cache."""
        cache: Tensor = self._layer.kv_cache
        return cache[:, 0]

    def bind(self) -> None:
        """Makes room for the log-sum-exps of a new KV cache.

        Not in a step: memory from a CUDA graph's pool would be used again by other graphs.
        """
        blocks, block = self.states.shape[:2]
        device = self.states.device
        with torch.inference_mode(False):
            self.lse = torch.full((blocks * block + 1,), math.nan, device=device)

    def begin(self, metadata: Any) -> None:
        """Prepares for a step before its forward, which writes new states to its slots.

        Args:
            metadata: vLLM's ``CommonAttentionMetadata``.
        """
        self.seq_lens, self._table = metadata.seq_lens, metadata.block_table_tensor
        # vLLM also profiles with a model that has no KV cache.
        if self._layer.kv_cache.numel():
            # Padding has slot −1 and lands in the unused one.
            slots = metadata.slot_mapping.remainder(len(self.lse)).long()
            self.lse.index_fill_(0, slots, math.nan)

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
        logits of all positions instead: those that are known keep their value. The number of calls
        of the head depends on the spans alone (`LOGITS`). Call it only in the first step of a
        request or an alarm.

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
        for part in slots.split(max(1, LOGITS // (4 * len(self._head.weight)))):
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
        mu, states, table = self._head.mean(probs), self.states, self._table
        most = min(most, table.shape[1] * states.shape[1])
        return nearest(states, self.lse, table, rows, *spans, mu, negative_entropy, most=most)

    def check(self, head: Head) -> None:
        """See `LinearHead.check`."""
        self._head.check(head)

    def warm(self) -> None:
        """Compiles the comparison, single- and multi-threaded, and the choice of candidates.

        Otherwise the first requests would wait for it.
        """
        weight, layer = self._head.weight, self._layer
        shape = (1, layer.block_size, layer.head_size)
        states = torch.zeros(shape, dtype=layer.kv_cache_torch_dtype, device=weight.device)
        count, most = 8, 1024
        lse = torch.zeros(layer.block_size + 1, device=weight.device)
        blocks = most // layer.block_size + 1
        table = torch.zeros(count, blocks, dtype=torch.int32, device=lse.device)
        rows = torch.arange(count, device=lse.device)
        starts = torch.zeros(count, dtype=torch.int32, device=lse.device)
        mu = torch.zeros(count, layer.head_size, device=lse.device)
        for length in (1, most):
            ends = torch.full_like(starts, length)
            nearest(states, lse, table, rows, starts, ends, mu, lse[:count], most=length)
        logits = torch.zeros(1, len(weight), device=weight.device)
        likeliest(logits, torch.ones(1, dtype=torch.bool, device=weight.device), MAX_CANDIDATES)

    def _slots(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Slots ``[N] int64`` of positions ``[N] int64`` of rows ``[N] int64``."""
        block = self.states.shape[1]
        return self._table[rows, positions // block].long() * block + positions % block


def _unknown(slots: Tensor, lse: Tensor) -> Tensor:
    """The slots without a log-sum-exp, each once; it waits for the device."""
    slots = slots.unique()
    return slots[lse[slots].isnan()]


class _Builder(CacheOnlyAttentionMetadataBuilder):
    """vLLM calls it in Python before every forward, even if that is a replayed CUDA graph.

    Both runners also call it before they capture one, not in the captured region, with slots of −1.
    What is captured is the layer's write of the states. It reads the slots from a buffer that each
    runner keeps and fills anew in every step, so any batch may replay it. (Microbatches would call
    it for a part of the rows; ``--enable-dbo`` and ``--ubatch-size`` are refused.)
    """

    @classmethod
    def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> AttentionCGSupport:
        return AttentionCGSupport.ALWAYS

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

    def bind_kv_cache(self, kv_cache: Tensor) -> None:
        super().bind_kv_cache(kv_cache)
        self.store.bind()


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
