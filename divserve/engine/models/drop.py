"""`drop:N`: an amateur made of the served model's own weights, without N of its middle layers.

It needs no download and no memory for weights: every module but the attention layers themselves
(which name a place in the KV cache) is the served model's. How good it is: SmolLM2-135M with 26 of
its 30 layers makes about half of the full model's greedy choices.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.utils.torch_utils import set_default_torch_dtype

from divserve.errors import StartupError

__all__ = ["dropped_layers", "kept_layers", "shared_model"]

DROP = re.compile(r"drop:(\d+)")


def dropped_layers(model: str) -> int | None:
    """N of ``drop:N``; None for the path or name of a model.

    Raises:
        StartupError: ``drop:`` is not followed by a positive number.
    """
    if not model.startswith("drop:"):
        return None
    found = DROP.fullmatch(model)
    if found is None or int(found[1]) == 0:
        raise StartupError(f"'{model}': give drop:N with the number of layers to leave out")
    return int(found[1])


def kept_layers(layers: int, dropped: int) -> list[int]:
    """The layers that stay when a block around two thirds of the depth is left out.

    Middle layers are the most alike, especially the later ones; the first and last layers do what
    no other does. So the block is centred on layer 20 of 30.

    Raises:
        StartupError: fewer than two layers would stay.
    """
    if layers - dropped < 2:
        raise StartupError(f"drop:{dropped} of a model with {layers} layers leaves fewer than two")
    first = min(max(1, round(layers * 2 / 3) - (dropped + 1) // 2), layers - 1 - dropped)
    return [i for i in range(layers) if not first <= i < first + dropped]


def shared_model(served: nn.Module, config: Any, prefix: str) -> nn.Module:
    """A model with fewer layers that shares all modules with ``served`` but its attention layers.

    Args:
        served: the served model, loaded.
        config: vLLM's ``VllmConfig`` of the new model.
        prefix: prefix of the new layers' names.

    Raises:
        StartupError: its layers cannot be identified.
    """
    # The new model's own weights are not used: on the meta device they take no memory.
    with set_default_torch_dtype(config.model_config.dtype), torch.device("meta"):
        made: nn.Module = initialize_model(vllm_config=config, prefix=prefix)
    theirs, ours = _layers(served), _layers(made)
    kept = kept_layers(len(theirs), len(theirs) - len(ours))
    for mine, index in zip(ours, kept, strict=True):
        _share(mine, theirs[index])
    _share(made, served, ours)
    if any(tensor.is_meta for tensor in (*made.parameters(), *made.buffers())):
        raise StartupError(f"drop:N does not work with {type(served).__name__}: name an amateur")
    made.eval()
    return made


def _layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers: the longest list of modules."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    if not lists:
        raise StartupError(f"drop:N does not work with {type(model).__name__}: name an amateur")
    return max(lists, key=len)


def _share(mine: nn.Module, theirs: nn.Module, apart: nn.Module | None = None) -> None:
    """Replaces the submodules of ``mine`` with those of ``theirs``.

    Attention layers stay, but get the tensors of their counterparts; ``apart`` is left alone.
    """
    for name, child in mine.named_children():
        if child is apart:
            continue
        other = getattr(theirs, name)
        if isinstance(child, AttentionLayerBase):
            _take_tensors(child, other)
        elif any(isinstance(m, AttentionLayerBase) or m is apart for m in child.modules()):
            _share(child, other, apart)
        else:
            setattr(mine, name, other)


def _take_tensors(mine: nn.Module, theirs: nn.Module) -> None:
    """Gives an attention layer the tensors (scales, sinks, slopes …) of another one."""
    impls = (getattr(theirs, "impl", None), getattr(mine, "impl", None))
    for source, target in ((theirs, mine), impls):
        for name, value in vars(source).items() if source is not None else ():
            if isinstance(value, torch.Tensor) and name != "kv_cache":
                setattr(target, name, value)
    for name, buffer in theirs.named_buffers():
        holder, _, last = name.rpartition(".")
        setattr(mine.get_submodule(holder), last, buffer)
    mine.kv_cache = torch.tensor([])
