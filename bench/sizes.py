"""The models, dtypes and modes that benchmarks of engines can be asked for.

``--size`` names the shape of a real model with random weights, which is written as a
``config.json`` alone; ``--mode`` says whether a step launches its kernels one by one, replays CUDA
graphs, or is also compiled. Without ``--size`` a benchmark takes models that suit a CPU.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from tests.support.engine import Engine
from tests.support.models import SMOLLM2
from tests.support.platform import ON_GPU

__all__ = [
    "ON_GPU",
    "DtypeOption",
    "Mode",
    "ModeOption",
    "Model",
    "Size",
    "SizeOption",
    "engine_options",
    "seconds",
    "synchronize",
]  # fmt: skip

KV_CACHE = 6 << 30
"""Bytes for each engine of a benchmark on a GPU: three fit beside an 8B model's weights twice."""
SHARED: dict[str, Any] = {
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.02,
    "use_cache": True,
}


@dataclass(frozen=True)
class Shape:
    """Sizes of a model."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool
    kind: str = "llama"
    architecture: str = "LlamaForCausalLM"

    def write(self, folder: Path, dropped: int = 0) -> Path:
        """Writes the configuration, without some of the layers, for weights that are made up."""
        folder.mkdir(parents=True)
        config = SHARED | {
            "architectures": [self.architecture],
            "model_type": self.kind,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers - dropped,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.hidden // self.heads,
            "vocab_size": self.vocab,
            "tie_word_embeddings": self.tied,
        }
        (folder / "config.json").write_text(json.dumps(config))
        return folder


class Size(StrEnum):
    """Shapes of real models, and one for trying a benchmark out."""

    TINY = "tiny"
    SMALL = "1.5b"
    LARGE = "8b"

    @property
    def shape(self) -> Shape:
        """Its sizes."""
        return SHAPES[self]


SHAPES = {
    Size.TINY: Shape(64, 128, 6, 2, 1, 512, tied=False),
    Size.SMALL: Shape(1536, 8960, 28, 12, 2, 151_936, True, "qwen2", "Qwen2ForCausalLM"),
    Size.LARGE: Shape(4096, 14336, 32, 32, 8, 128_256, tied=False),
}
"""Qwen2 1.5B and Llama 3 8B."""


class Mode(StrEnum):
    """How a step reaches the device."""

    EAGER = "eager"
    GRAPHS = "graphs"
    COMPILE = "compile"


# Graphs without the compiler start in seconds; its kernels are the same in all sides of a ratio.
MODES: dict[Mode, dict[str, Any]] = {
    Mode.EAGER: {"enforce_eager": True},
    Mode.GRAPHS: {
        "enforce_eager": False,
        "compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"},
    },
    Mode.COMPILE: {"enforce_eager": False},
}
SizeOption = Annotated[Size | None, typer.Option(help="A shape with random weights.")]
DtypeOption = Annotated[str, typer.Option(help="Of the weights, with --size.")]
ModeOption = Annotated[Mode, typer.Option(help="CUDA graphs or the compiler, with --size.")]


@dataclass(frozen=True)
class Model:
    """What is measured."""

    name: str
    path: Path
    vocab: int
    hidden: int
    options: dict[str, Any]
    """Arguments of its engines."""
    size: Size | None = None

    @classmethod
    def chosen(cls, size: Size | None, dtype: str, mode: Mode, folder: Path) -> Model:
        """SmolLM2 in float32, or random weights of a real shape, described in ``folder``."""
        options = engine_options(size, dtype, mode, ON_GPU)
        if size is None:
            return cls("smollm2", SMOLLM2, 49_152, 576, options)
        shape, name = size.shape, f"{size}, {mode}, {dtype}"
        path = shape.write(folder / size)
        return cls(name, path, shape.vocab, shape.hidden, options, size)


def engine_options(size: Size | None, dtype: str, mode: Mode, on_gpu: bool) -> dict[str, Any]:
    """Arguments of `tests.support.engine.Engine` for ``--size``, ``--dtype`` and ``--mode``."""
    options: dict[str, Any] = {}
    if size is not None:
        options |= {"load_format": "dummy", "dtype": dtype, **MODES[mode]}
    if on_gpu:
        options |= {"asynchronous": True, "kv_cache_memory_bytes": KV_CACHE}
    return options


def seconds(engine: Engine, batch: list[Any]) -> float:
    """Wall time of a batch, until the device has done it."""
    synchronize()
    start = time.perf_counter()
    engine.generate(batch)
    synchronize()
    return time.perf_counter() - start


def synchronize() -> None:
    """Waits for the GPU, if there is one."""
    if ON_GPU:
        torch.cuda.synchronize()
