"""The LoRA adapters of a request's guides."""

from __future__ import annotations

from typing import Any

import msgspec
from vllm.lora.request import LoRARequest

from divserve.decoding import BASE, Spec

__all__ = ["adapter_of", "adapters_needed"]


def adapter_of(spec: Spec, guide: int, own: Any) -> Any:
    """The ``LoRARequest`` of a guide, or None for the served model alone.

    Args:
        spec: of the request.
        guide: index of the guide.
        own: the ``LoRARequest`` of the request, or None.
    """
    adapter = spec.adapter(guide)
    if adapter is None:
        return own
    return None if adapter == BASE else msgspec.convert(adapter, LoRARequest)


def adapters_needed(spec: Spec, own: Any) -> set[int]:
    """Ids of the adapters that a request and its guides use in one step.

    Args:
        spec: of the request.
        own: the ``LoRARequest`` of the request, or None.
    """
    rows = [own, *(adapter_of(spec, guide, own) for guide in range(len(spec.guides)))]
    return {adapter.lora_int_id for adapter in rows if adapter is not None}
