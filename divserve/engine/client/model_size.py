"""The size of a model: the cost per token as papers on small and large models measure it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import get_local_safetensors_metadata, get_safetensors_metadata

__all__ = ["parameter_ratio"]

PACKED = {"I32", "U8"}
"""Dtypes whose elements hold several packed weights."""


def parameter_ratio(small: Any, large: Any) -> float | None:
    """Parameters of one model over those of another (vLLM's ``ModelConfig``); None if not known."""
    counts = [_parameters(config.model, config.revision) for config in (small, large)]
    if counts[0] is None or not counts[1]:
        return None
    return counts[0] / counts[1]


def _parameters(model: str, revision: str | None) -> int | None:
    """Parameters, from the headers of a model's safetensors files, which hold tied ones once.

    The loaded weights cannot be counted: vLLM shards, pads and repacks them, on a CPU into objects
    that are not parameters.
    """
    try:
        if Path(model).exists():
            found = get_local_safetensors_metadata(model)
        else:
            found = get_safetensors_metadata(model, revision=revision)
    except Exception:
        # No safetensors, no network or any other error: it is only a figure.
        return None
    counts = found.parameter_count
    return None if counts.keys() & PACKED else sum(counts.values())
