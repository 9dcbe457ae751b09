"""On CPU: rows of the base model beside rows of adapters stay those of the base model.

vLLM's CPU operations look up the weights of a row's adapter by its slot. Rows without an adapter
have slot −1 and so get the weights of the last slot, which are zeros only while fewer adapters are
loaded than ``--max-loras``. Its GPU kernels skip these rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

from torch import Tensor
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu

__all__ = ["skip_base_rows"]

OPERATIONS = ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice")
"""All that look up weights; the others call these."""
MODULES: tuple[ModuleType, ...] = (lora_ops, punica_cpu)
"""The modules that have these names: the second one has imported them from the first."""


def skip_base_rows() -> None:
    """Replaces vLLM's operations in this process; a second call changes nothing."""
    for name in OPERATIONS:
        operation = getattr(lora_ops, name)
        if not hasattr(operation, "__wrapped__"):
            skipping = _without_base_rows(operation)
            for module in MODULES:
                setattr(module, name, skipping)


def _without_base_rows(operation: Callable[..., None]) -> Callable[..., None]:
    @wraps(operation)
    def skipping(
        inputs: Tensor, weights: Tensor, output: Tensor, slots: Tensor, *args: Any, **kwargs: Any
    ) -> None:
        # The product of a row of zeros is 0 with any adapter.
        inputs = inputs.masked_fill((slots < 0)[:, None], 0)
        operation(inputs, weights, output, slots, *args, **kwargs)

    return skipping
