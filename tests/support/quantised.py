"""Tiny Llamas with quantised weights, in the formats that docs/models.md lists."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["FORMATS", "NOT_SERVED", "Format", "make"]

GROUP = 128
"""Input channels that share a scale."""
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Order of the columns in a packed number."""
Tensors = dict[str, Tensor]


def channels(kind: str) -> dict[str, Any]:
    """compressed-tensors: weights scaled by channel, activations by token."""
    numbers = {"num_bits": 8, "type": kind, "symmetric": True}
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized" if kind == "int" else "float-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**numbers, "strategy": "channel", "dynamic": False},
                "input_activations": {**numbers, "strategy": "token", "dynamic": True},
                "output_activations": None,
            }
        },
    }


def int8(name: str, weight: Tensor) -> Tensors:
    """``[out, in]`` as int8, by channel."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    scaled = (weight / scale).round().clamp(-128, 127).to(torch.int8)
    return {f"{name}.weight": scaled, f"{name}.weight_scale": scale}


def float8(name: str, weight: Tensor) -> Tensors:
    """``[out, in]`` as float8, by channel."""
    scale = weight.abs().amax(1, keepdim=True) / 448
    return {
        f"{name}.weight": (weight / scale).to(torch.float8_e4m3fn),
        f"{name}.weight_scale": scale,
    }


def four_bits(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of ``[out, in]``: ``[in, out]`` of 0 to 15, and scales and zeros of each group of inputs."""
    groups = weight.t().reshape(-1, GROUP, weight.shape[0])
    low, high = groups.amin(1), groups.amax(1)
    scales = ((high - low) / 15).clamp_min(1e-6)
    zeros = (-low / scales).round().clamp(0, 15)
    found = (groups / scales[:, None] + zeros[:, None]).round().clamp(0, 15)
    return found.reshape(weight.shape[1], weight.shape[0]), scales, zeros


def packed(values: Tensor, order: Sequence[int] = range(8)) -> Tensor:
    """Eight columns in one int32."""
    columns = values.long().reshape(len(values), -1, 8)
    found = torch.zeros(columns.shape[:2], dtype=torch.int64)
    for place, column in enumerate(order):
        found |= columns[:, :, column] << (4 * place)
    return torch.where(found >= 1 << 31, found - (1 << 32), found).int()


def awq(name: str, weight: Tensor) -> Tensors:
    """AWQ's packing, without its search for scales."""
    values, scales, zeros = four_bits(weight)
    return {
        f"{name}.qweight": packed(values, AWQ_ORDER),
        f"{name}.qzeros": packed(zeros, AWQ_ORDER),
        f"{name}.scales": scales.half(),
    }


def gptq(name: str, weight: Tensor) -> Tensors:
    """GPTQ's packing, symmetric, without its correction of errors."""
    groups = weight.t().reshape(-1, GROUP, weight.shape[0])
    scales = (groups.abs().amax(1) / 7).clamp_min(1e-6)
    values = (groups / scales[:, None]).round().clamp(-8, 7) + 8
    flat = values.reshape(weight.shape[1], weight.shape[0])
    return {
        f"{name}.qweight": packed(flat.t().contiguous()).t().contiguous(),
        f"{name}.qzeros": packed(torch.full_like(scales, 7)),
        f"{name}.scales": scales.half(),
        f"{name}.g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // GROUP,
    }


@dataclass(frozen=True)
class Format:
    """A format of quantised weights."""

    title: str
    quantise: Callable[[str, Tensor], Tensors]
    config: dict[str, Any]
    """``quantization_config``."""


FORMATS = (
    Format("W8A8, int8 (compressed-tensors)", int8, channels("int")),
    Format("FP8 by channel (compressed-tensors)", float8, channels("float")),
    Format(
        "AWQ, 4 bits",
        awq,
        {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True,
         "version": "gemm"},
    ),
    Format(
        "GPTQ, 4 bits",
        gptq,
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True,
         "lm_head": False},
    ),
)  # fmt: skip
NOT_SERVED = {
    "FP8 of whole tensors (`quant_method` fp8)": "vLLM's CPU back end has no kernel that scales "
    "activations (`static_scaled_fp8_quant`): the first request ends the engine, in stock vLLM too",
}
"""Why nothing can be compared, by title."""


def make(one: Format, directory: Path) -> Path:
    """Writes a model with random weights."""
    from safetensors.torch import load_file, save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=GROUP, intermediate_size=2 * GROUP, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=4096,
        tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, pad_token_id=2,
        initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).float().save_pretrained(directory)
    path = directory / "model.safetensors"
    found: Tensors = {}
    for name, weight in load_file(path).items():
        module = name.removesuffix(".weight")
        found |= one.quantise(module, weight) if "proj" in name else {name: weight}
    save_file(found, path, metadata={"format": "pt"})
    file = directory / "config.json"
    fields = json.loads(file.read_text()) | {"quantization_config": one.config}
    file.write_text(json.dumps(fields))
    return directory
