"""Tiny random models of architectures whose KV cache or layers differ from Llama's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.models import TINY_VOCAB

__all__ = ["NAMES", "WINDOW", "make"]

WINDOW = 64
"""Tokens of a sliding window, and of a chunk."""
SLIDING, FULL = "sliding_attention", "full_attention"

SHAPE: dict[str, Any] = {
    "vocab_size": TINY_VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    # Peaked logits make greedy ties almost impossible.
    "initializer_range": 0.25,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_experts": 4}

ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gemma3": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {
            "num_hidden_layers": 6,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 32,
            "tie_word_embeddings": True,
            "layer_types": [*[SLIDING] * 5, FULL],
        },
    ),
    "gpt-oss": (
        "GptOssConfig",
        "GptOssForCausalLM",
        {
            **EXPERTS,
            "intermediate_size": 64,
            "sliding_window": WINDOW,
            "layer_types": [SLIDING, FULL],
        },
    ),
    "llama4": (
        "Llama4TextConfig",
        "Llama4ForCausalLM",
        {
            "num_hidden_layers": 4,
            "attention_chunk_size": WINDOW,
            "intermediate_size_mlp": 128,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 1,
            "no_rope_layers": [1, 1, 1, 0],
            "layer_types": [*["chunked_attention"] * 3, FULL],
        },
    ),
    "qwen3-moe": (
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {
            **EXPERTS,
            "moe_intermediate_size": 64,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        },
    ),
}
NAMES = tuple(ARCHITECTURES)


def make(name: str, directory: Path) -> Path:
    """Writes a model with random weights."""
    import torch
    import transformers

    config, architecture, fields = ARCHITECTURES[name]
    torch.manual_seed(0)
    made = getattr(transformers, config)(**SHAPE | fields)
    model = getattr(transformers, architecture)(made).float()
    with torch.no_grad():
        for weights in model.parameters():
            # Some are left as they were in memory, or as zeros.
            if not weights.isfinite().all() or (weights.dim() > 1 and not float(weights.std())):
                weights.normal_(0, 0.25)
    model.save_pretrained(directory)
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": [architecture]}))
    return directory
