"""How large a model is: what a token of it costs, as the papers on small and large models count."""

from __future__ import annotations

from functools import cache
from typing import Any

__all__ = ["parameter_ratio"]


def parameter_ratio(small: Any, large: Any) -> float | None:
    """Parameters of one model over those of another (vLLM's ``ModelConfig``); None if not known."""
    counts = [_parameters(config.model, config.trust_remote_code) for config in (small, large)]
    if counts[0] is None or not counts[1]:
        return None
    return counts[0] / counts[1]


@cache
def _parameters(model: str, trust_remote_code: bool) -> int | None:
    """Parameters of a model, tied ones once, from its configuration alone."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            made = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        made.tie_weights()
    except Exception:
        # Whatever a configuration of another format or of remote code raises: it is only a figure.
        return None
    return sum(int(p.numel()) for p in made.parameters())
