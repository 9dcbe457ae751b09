"""LoRA on CPU with every slot in use: rows of the base model get no adapter's output."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from divserve.engine.worker.lora import MODULES, OPERATIONS, skip_base_rows

SLOTS, RANK, WIDTH = 2, 4, 6
OF_ROW = (0, 2, 1, 0, 2)
"""The adapter of each row; 0 is the base model."""


@pytest.fixture(autouse=True)
def stock() -> Iterator[None]:
    """vLLM's own operations, before and after each test."""
    before = {(module, name): getattr(module, name) for module in MODULES for name in OPERATIONS}

    def restore() -> None:
        for (module, name), operation in before.items():
            setattr(module, name, getattr(operation, "__wrapped__", operation))

    restore()
    yield
    for (module, name), operation in before.items():
        setattr(module, name, operation)


def linear(prefill: bool) -> torch.Tensor:
    """What the adapters add to the rows of a linear layer ``[5, WIDTH]``."""
    torch.manual_seed(0)
    punica = PunicaWrapperCPU(16, 8, "cpu")
    punica.update_metadata(LoRAMapping(OF_ROW, OF_ROW, prefill), [1, 2], SLOTS, 100)
    x, out = torch.randn(len(OF_ROW), WIDTH), torch.zeros(len(OF_ROW), WIDTH)
    a, b = torch.randn(SLOTS, 1, RANK, WIDTH), torch.randn(SLOTS, 1, WIDTH, RANK)
    punica.add_lora_linear(out, x, (a,), (b,), 1.0, (WIDTH,))
    return out


def embedding() -> torch.Tensor:
    """What they add to embeddings: base rows look up the first slot's there."""
    torch.manual_seed(0)
    punica = PunicaWrapperCPU(16, 8, "cpu")
    punica.update_metadata(LoRAMapping(OF_ROW, OF_ROW, is_prefill=True), [1, 2], SLOTS, 100)
    out = torch.zeros(len(OF_ROW), WIDTH)
    x, b = torch.randn(len(OF_ROW), RANK), torch.randn(SLOTS, 1, WIDTH, RANK)
    punica.add_lora_embedding(out, x, b)
    return out


def of_head() -> torch.Tensor:
    """What they add to logits."""
    torch.manual_seed(0)
    punica = PunicaWrapperCPU(16, 8, "cpu")
    punica.update_metadata(LoRAMapping(OF_ROW, OF_ROW, is_prefill=False), [1, 2], SLOTS, 100)
    x, out = torch.randn(len(OF_ROW), WIDTH), torch.zeros(len(OF_ROW), 100)
    a, b = torch.randn(SLOTS, 1, RANK, WIDTH), torch.randn(SLOTS, 1, 100, RANK)
    punica.add_lora_logits(out, x, a, b, 1.0)
    return out


CASES = {
    "prefill": lambda: linear(prefill=True),
    "decode": lambda: linear(prefill=False),
    "embedding": embedding,
    "head": of_head,
}


@pytest.mark.parametrize("case", CASES)
def test_base_rows_are_left_alone(case: str) -> None:
    base = torch.tensor(OF_ROW) == 0
    before = CASES[case]()
    assert bool(before[base].any()), "vLLM does it by itself now"
    for _ in range(2):
        skip_base_rows()
        after = CASES[case]()
        assert not bool(after[base].any())
        assert torch.equal(after[~base], before[~base])
    assert lora_ops.bgmv_shrink is punica_cpu.bgmv_shrink
