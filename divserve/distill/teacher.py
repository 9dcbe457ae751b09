"""Loads a teacher, and rejects models that cannot be distilled."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from divserve.errors import StartupError

__all__ = ["Teacher", "fingerprint", "load"]

# Only the folder is read: no hub is queried.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@dataclass(frozen=True, slots=True)
class Teacher:
    """A decoder whose logits are one matrix times its last hidden states."""

    model: Any
    """The ``…ForCausalLM`` of transformers, frozen, in evaluation mode."""
    tokenizer: Any
    """None if the folder has none: prompts are then token ids."""
    folder: Path
    dtype: torch.dtype
    """The dtype of the weights on disk."""

    @property
    def stops(self) -> list[int]:
        """Token ids that end a text."""
        ids = self.model.generation_config.eos_token_id
        ids = self.model.config.eos_token_id if ids is None else ids
        return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)

    @property
    def context(self) -> int:
        """Number of tokens that fit into the model's context."""
        return int(getattr(self.model.config, "max_position_embeddings", None) or 2048)


def fingerprint(folder: Path) -> str:
    """A digest of the configuration and of the names and sizes of the weights in `folder`.

    Raises:
        StartupError: there is no model.
    """
    if not (folder / "config.json").is_file():
        raise StartupError(f"{folder} is not the folder of a Hugging Face model (no config.json)")
    digest = hashlib.blake2b((folder / "config.json").read_bytes(), digest_size=12)
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
    return digest.hexdigest()


def load(folder: Path, device: torch.device) -> Teacher:
    """Loads the model of `folder`: float32 on CPU, the stored dtype on a GPU.

    Raises:
        StartupError: it cannot be read, or is not a decoder of the kind this package can shorten.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    fingerprint(folder)
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(folder)
        _check_config(config, folder)
        dtype = torch.float32 if device.type == "cpu" else "auto"
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise StartupError(f"cannot load the model of {folder}: {reason}") from error
    model = model.to(device).eval().requires_grad_(False)
    _check_model(model, folder)
    return Teacher(model, _tokenizer(folder), folder, config.dtype or torch.float32)


def _check_config(config: Any, folder: Path) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise StartupError(f"{folder} is an encoder-decoder: only decoders can be distilled")
    if getattr(config, "quantization_config", None) is not None:
        raise StartupError(f"{folder} is quantised: give the model it was made from")


def _check_model(model: Any, folder: Path) -> None:
    body, head = getattr(model, "model", None), getattr(model, "lm_head", None)
    parts = [getattr(body, name, None) for name in ("embed_tokens", "norm")]
    if not isinstance(getattr(body, "layers", None), torch.nn.ModuleList) or None in parts:
        raise StartupError(
            f"{folder} ({type(model).__name__}) is not built like Llama: it lacks model.layers, "
            "model.embed_tokens or model.norm"
        )
    if not isinstance(head, torch.nn.Linear) or not _head_is_all(model):
        raise StartupError(
            f"{folder} ({type(model).__name__}) makes its logits otherwise than with one matrix: "
            "it cannot be distilled"
        )


@torch.no_grad()
def _head_is_all(model: Any) -> bool:
    ids = torch.arange(min(8, model.config.vocab_size), device=model.device)[None]
    logits: Tensor = model.lm_head(model.model(ids, use_cache=False)[0])
    return torch.allclose(model(ids, use_cache=False).logits, logits, rtol=1e-2, atol=1e-2)


def _tokenizer(folder: Path) -> Any:
    """The tokenizer of `folder`; None if it has none."""
    from transformers import AutoTokenizer

    names = ("tokenizer.json", "tokenizer.model", "vocab.json")
    if not any((folder / name).is_file() for name in names):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise StartupError(f"cannot read the tokenizer of {folder}: {error}") from error
