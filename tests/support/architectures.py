"""Tiny random models of the architectures that docs/models.md lists."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.models import TINY_VOCAB

__all__ = ["ARCHITECTURES", "NOT_JUDGED", "WINDOW", "Architecture", "make", "named"]

WINDOW = 64
"""Tokens of a sliding window, and of a chunk."""
SLIDING, FULL, LINEAR, CHUNKED, MAMBA = (
    "sliding_attention", "full_attention", "linear_attention", "chunked_attention", "mamba",
)  # fmt: skip

SHAPE: dict[str, Any] = {
    "vocab_size": TINY_VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    # Peaked logits make greedy ties almost impossible.
    "initializer_range": 0.25,
}
HEAD = {"head_dim": 32}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_experts": 4}
TIED = {"tie_word_embeddings": True}
STATE = {
    "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1,
    "mamba_d_conv": 4, "mamba_expand": 2,
}  # fmt: skip
"""Recurrent layers of hybrids."""


def windows(*kinds: str, size: str = "sliding_window") -> dict[str, Any]:
    """Layers with windows or chunks."""
    return {"num_hidden_layers": len(kinds), size: WINDOW, "layer_types": list(kinds)}


@dataclass(frozen=True)
class Architecture:
    """A model to make."""

    title: str
    config: str
    """The configuration's class in transformers."""
    fields: dict[str, Any]
    model: str = ""
    """The model's class; that of the configuration by default."""
    engine: dict[str, Any] = field(default_factory=dict)
    """Arguments of the engine."""
    by_stock: bool = False
    """Whether stock vLLM is the reference, because it and transformers do not agree."""
    remark: str = ""
    fast: bool = False
    """Whether `make test` runs it, too: one for each kind of KV cache."""

    @property
    def dtype(self) -> str:
        """In which it is served."""
        return str(self.engine.get("dtype", "float32"))


ARCHITECTURES: Sequence[Architecture] = (
    Architecture("Llama", "LlamaConfig", HEAD),
    Architecture("Qwen3", "Qwen3Config", HEAD),
    Architecture(
        "Qwen3-MoE",
        "Qwen3MoeConfig",
        HEAD
        | EXPERTS
        | {"moe_intermediate_size": 64, "decoder_sparse_step": 1, "mlp_only_layers": []},
    ),
    Architecture("Phi-3", "Phi3Config", {}),
    Architecture("GLM-4", "Glm4Config", HEAD),
    Architecture("Mistral with a window", "MistralConfig", HEAD | {"sliding_window": WINDOW}),
    Architecture(
        "Gemma 3",
        "Gemma3TextConfig",
        HEAD | TIED | windows(*[SLIDING] * 5, FULL) | {"query_pre_attn_scalar": 32},
        "Gemma3ForCausalLM",
        fast=True,
    ),
    Architecture(
        "Gemma 4",
        "Gemma4TextConfig",
        HEAD
        | TIED
        | windows(*[SLIDING] * 5, FULL)
        | {
            "vocab_size_per_layer_input": TINY_VOCAB,
            "hidden_size_per_layer_input": 16,
            "global_head_dim": 32,
            "num_kv_shared_layers": 0,
        },
        "Gemma4ForCausalLM",
    ),
    Architecture(
        "gpt-oss",
        "GptOssConfig",
        HEAD | EXPERTS | windows(SLIDING, FULL) | {"intermediate_size": 64},
    ),
    Architecture(
        "Llama 4 with chunked attention",
        "Llama4TextConfig",
        HEAD
        | windows(*[CHUNKED] * 3, FULL, size="attention_chunk_size")
        | {
            "intermediate_size_mlp": 128,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 1,
            "no_rope_layers": [1, 1, 1, 0],
        },
        "Llama4ForCausalLM",
        fast=True,
    ),
    Architecture(
        "Cohere 2", "Cohere2Config", HEAD | TIED | windows(*[SLIDING] * 3, FULL), by_stock=True
    ),
    Architecture("OLMo 3", "Olmo3Config", windows(*[SLIDING] * 3, FULL)),
    Architecture(
        "Granite 4 hybrid",
        "GraniteMoeHybridConfig",
        STATE
        | {
            "num_hidden_layers": 4,
            "layer_types": [MAMBA, MAMBA, "attention", MAMBA],
            "layers_block_type": [MAMBA, MAMBA, "attention", MAMBA],
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "shared_intermediate_size": 128,
            "position_embedding_type": "nope",
        },
        fast=True,
    ),
    Architecture(
        "Nemotron-H",
        "NemotronHConfig",
        HEAD
        | {
            "num_hidden_layers": 4,
            "hybrid_override_pattern": "M*M-",
            "layers_block_type": [MAMBA, "attention", MAMBA, "mlp"],
            "mamba_num_heads": 4,
            "mamba_head_dim": 32,
            "ssm_state_size": 16,
            "n_groups": 1,
            "conv_kernel": 4,
            "expand": 2,
        },
        by_stock=True,
    ),
    Architecture("Falcon-H1", "FalconH1Config", HEAD | STATE | {"mamba_d_ssm": 128}),
    Architecture(
        "Mamba 2",
        "Mamba2Config",
        {
            "num_heads": 4,
            "head_dim": 32,
            "state_size": 16,
            "n_groups": 1,
            "conv_kernel": 4,
            "expand": 2,
            "chunk_size": 256,
        },
    ),
    Architecture(
        "Qwen3.5",
        "Qwen3_5TextConfig",
        HEAD
        | {
            "num_hidden_layers": 4,
            "layer_types": [*[LINEAR] * 3, FULL],
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
            "linear_conv_kernel_dim": 4,
        },
        "Qwen3_5ForCausalLM",
        {"dtype": "bfloat16"},
        by_stock=True,
        remark="stock vLLM itself differs by up to 0.16: an answer, and the same as a prompt",
    ),
)
NOT_JUDGED = {
    "DeepSeek-V3 (latent attention)": "on CPU, stock vLLM's own answers change with the batch by "
    "up to 1.3 nats, and differ from those of its own prompt log-probs by up to 7; tried: float32, "
    "bfloat16 and `CPU_MLA`, each request alone, in a batch, and with prefix cache hits",
}
"""Why nothing can be compared, by title."""


def named(title: str) -> Architecture:
    """One of `ARCHITECTURES`."""
    return next(one for one in ARCHITECTURES if one.title == title)


def make(architecture: Architecture, directory: Path) -> Path:
    """Writes a model with random weights."""
    import torch
    import transformers

    torch.manual_seed(0)
    made = getattr(transformers, architecture.config)(**SHAPE | architecture.fields)
    name = architecture.model or architecture.config.replace("Config", "ForCausalLM")
    model = getattr(transformers, name)(made).float()
    with torch.no_grad():
        for weights in model.parameters():
            # Some are left as they were in memory, or as zeros.
            if not weights.isfinite().all() or (weights.dim() > 1 and not float(weights.std())):
                weights.normal_(0, 0.25)
    model.save_pretrained(directory)
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": [name]}))
    return directory
