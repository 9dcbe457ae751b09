"""Data parallelism of a mixture of experts on a CPU: what vLLM lacks there.

vLLM's ranks gather each other's tokens before the experts' layers and add up what the experts make
of them. Here both go through gloo, so that steps, waves and dummy batches are vLLM's own. If each
rank has whole experts, it leaves out the others'.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts

from divserve.engine.worker.worker import GuidedCPUWorker

__all__ = ["GatheringWorker", "all_gatherv", "install"]


def all_gatherv(self: Any, input_: Any, dim: int = 0, sizes: list[int] | None = None) -> Any:
    """The rows of all ranks, which have different numbers of them."""
    if isinstance(input_, list):
        return [all_gatherv(self, one, dim, sizes) for one in input_]
    assert dim == 0
    sizes = sizes or [len(input_)] * self.world_size
    padded = input_.new_zeros((max(sizes), *input_.shape[1:]))
    padded[: len(input_)] = input_
    parts = [torch.empty_like(padded) for _ in sizes]
    torch.distributed.all_gather(parts, padded, group=self.device_group)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def reduce_scatterv(self: Any, input_: Any, dim: int = -1, sizes: list[int] | None = None) -> Any:
    """This rank's rows of the sum over all ranks."""
    assert dim == 0
    sizes = sizes or [len(input_) // self.world_size] * self.world_size
    total = input_.clone(memory_format=torch.contiguous_format)
    torch.distributed.all_reduce(total, group=self.device_group)
    return total.split(sizes)[self.rank_in_group].clone()


def apply(self: Any, **fields: Any) -> Any:
    """Leaves out what other ranks' experts make; vLLM's kernel for CPUs ends the process there."""
    mapped, ids = fields["expert_map"], fields["topk_ids"]
    if mapped is not None:
        local = mapped[ids.long()]
        weights = fields["topk_weights"].masked_fill(local < 0, 0)
        fields |= {
            "topk_ids": local.clamp(min=0).to(ids.dtype),
            "topk_weights": weights,
            "expert_map": None,
        }
    return _apply(self, **fields)


_apply = CPUUnquantizedExperts.apply


def install() -> None:
    """Puts the substitutes in place, for the rest of this process."""
    CPUUnquantizedExperts.apply = apply
    CpuCommunicator.all_gatherv = all_gatherv
    CpuCommunicator.reduce_scatterv = reduce_scatterv


class GatheringWorker(GuidedCPUWorker):
    """A rank's worker with the substitutes."""

    def init_device(self) -> None:
        """Also puts the substitutes in place."""
        install()
        super().init_device()
