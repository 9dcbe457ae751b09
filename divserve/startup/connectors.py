"""KV connectors (``--kv-transfer-config``, ``--kv-offloading-size``): which are given.

`divserve.startup.refused` says why some of them are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["adapters", "gives", "several_kinds_of_cache", "several_ranks", "transfers"]


def transfers(config: Any) -> bool:
    """Whether a ``VllmConfig`` has a KV connector; ``--kv-offloading-size`` sets one, too."""
    return config.kv_transfer_config is not None


def gives(*names: str) -> Callable[[Any], bool]:
    """A test of a ``VllmConfig``: whether it has one of these connectors, alone or among several.

    One's own connector may have any name.
    """

    def given(config: Any) -> bool:
        asked = config.kv_transfer_config
        if asked is None or asked.kv_connector_module_path:
            return False
        return any(map(asked.has_connector, names))

    return given


def several_ranks(config: Any) -> bool:
    """Whether several schedulers or stages would have a connector each."""
    parallel = config.parallel_config
    several = parallel.pipeline_parallel_size > 1 or parallel.data_parallel_size > 1
    return transfers(config) and several


def several_kinds_of_cache(config: Any) -> bool:
    """Whether a connector would load windows, chunks or recurrent states."""
    model = config.model_config
    return transfers(config) and bool(
        model.is_hybrid
        or model.is_attention_free
        or model.get_sliding_window() is not None
        or model.attention_chunk_size is not None
    )


def adapters(config: Any) -> bool:
    """Whether a connector would load what adapters have computed."""
    return transfers(config) and config.lora_config is not None
