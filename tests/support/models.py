"""Models for the tests: tiny random Llamas, made on demand, and the prepared SmolLM2."""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SMOLLM2 = ROOT / ".models" / "smollm2-135m-instruct"

TINY_VOCAB = 512


def make_tiny(
    directory: Path, *, vocab_size: int = TINY_VOCAB, seed: int = 0, layers: int = 2
) -> Path:
    """Writes a random Llama of two layers; its peaked logits make greedy ties almost impossible.

    With SmolLM2's vocabulary size (49,152) or more it also gets SmolLM2's tokenizer.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        initializer_range=0.25,
    )
    LlamaForCausalLM(config).float().save_pretrained(directory)
    if vocab_size >= 49152:
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(SMOLLM2 / name, directory / name)
    return directory
