"""Random LoRA adapters of a tiny Llama, and a reference whose streams have their own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.support.hf import Answer, combine

__all__ = ["RANK", "AdapterReference", "make_adapter"]

RANK = 8
SCALE = 2.0
MODULES = ("q_proj", "v_proj", "o_proj")


def make_adapter(base: Path, directory: Path, seed: int, size: float = 0.25) -> Path:
    """Writes an adapter that changes what the model says, and beside it the model with it merged.

    Args:
        base: a tiny Llama.
        directory: where the adapter goes; the merged model goes to ``merged`` in it.
        seed: of the weights.
        size: standard deviation of the weights.
    """
    from safetensors.torch import load_file, save_file

    merged = load_file(base / "model.safetensors")
    rng = torch.Generator().manual_seed(seed)
    adapter: dict[str, torch.Tensor] = {}
    for name in [name for name in merged if name.split(".")[-2] in MODULES]:
        rows, columns = merged[name].shape
        down = torch.randn(RANK, columns, generator=rng) * size
        up = torch.randn(rows, RANK, generator=rng) * size
        module = f"base_model.model.{name.removesuffix('.weight')}"
        adapter |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
        merged[name] = merged[name] + up @ down * SCALE
    (directory / "merged").mkdir(parents=True)
    save_file(adapter, directory / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK * SCALE,
        "bias": "none", "target_modules": [*MODULES], "base_model_name_or_path": "tiny",
        "lora_dropout": 0.0, "fan_in_fan_out": False, "inference_mode": True,
    }  # fmt: skip
    (directory / "adapter_config.json").write_text(json.dumps(config))
    save_file(merged, directory / "merged" / "model.safetensors", metadata={"format": "pt"})
    (directory / "merged" / "config.json").write_text((base / "config.json").read_text())
    return directory


class AdapterReference:
    """Greedy decoding with a model for each stream.

    Args:
        models: folders by the name of the adapter; the served model alone is "".
    """

    def __init__(self, models: Mapping[str, Path]) -> None:
        from transformers import AutoModelForCausalLM

        self._models: dict[str, Any] = {
            name: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
            for name, path in models.items()
        }

    @torch.inference_mode()
    def greedy(
        self, streams: Sequence[tuple[str, list[int]]], method: str, max_tokens: int
    ) -> Answer:
        """The answer to a prompt, and perhaps its guide.

        Args:
            streams: adapter and token ids of the prompt, then of the guide.
            method: empty without a guide.
            max_tokens: length of the answer.
        """
        answer, feeds = Answer(), [ids for _, ids in streams]
        caches: list[Any] = [None] * len(feeds)
        for _ in range(max_tokens):
            logits = []
            for i, (name, _) in enumerate(streams):
                out = self._models[name](
                    torch.tensor([feeds[i]]), past_key_values=caches[i], use_cache=True
                )
                caches[i] = out.past_key_values
                logits.append(out.logits[0, -1].double())
            guided = combine(method, *logits) if method else logits[0]
            best = guided.topk(2)
            answer.margins.append(float(best.values[0] - best.values[1]))
            answer.tokens.append(int(best.indices[0]))
            feeds = [[answer.tokens[-1]]] * len(feeds)
        return answer
