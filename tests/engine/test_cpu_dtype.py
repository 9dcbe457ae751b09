"""The dtype on CPU: float32, except for models that vLLM cannot run in it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import DeepseekV3Config, LlamaConfig, PreTrainedConfig, Qwen3NextConfig
from vllm.engine.arg_utils import AsyncEngineArgs

from divserve.startup import cpu
from tests.support.platform import cpu_only

INT8 = {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {}}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}


def quantized(config: dict[str, Any]) -> PreTrainedConfig:
    return LlamaConfig(quantization_config=config)


@pytest.mark.parametrize(
    ("config", "flag", "amx", "fails"),
    [
        (LlamaConfig(), None, True, None),
        (Qwen3NextConfig(), None, False, "gated delta networks"),
        (quantized(AWQ), None, False, "quantised"),
        (quantized(INT8), None, False, None),
        (quantized(INT8), None, True, "quantised"),
        (LlamaConfig(), "fp8", False, "quantised"),
        (DeepseekV3Config(), None, False, None),
        (DeepseekV3Config(), None, True, "latent attention"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, PreTrainedConfig) else str(value),
)
def test_which_models_do_not_run_in_float32(
    config: PreTrainedConfig, flag: str | None, amx: bool, fails: str | None
) -> None:
    why = cpu.float32_fails(config, flag, amx)
    assert (why is None) == (fails is None)
    assert (fails or "") in (why or "")


def args_of(folder: Path, config: PreTrainedConfig, **fields: Any) -> AsyncEngineArgs:
    config.architectures = [f"{type(config).__name__.removesuffix('Config')}ForCausalLM"]
    config.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["architectures"]
    return AsyncEngineArgs(model=str(folder), **{"dtype": "float32", **fields})


@cpu_only("a GPU's dtype is vLLM's choice")
def test_the_arguments_follow(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = args_of(tmp_path, Qwen3NextConfig())
    logger = logging.getLogger("vllm.divserve")
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.WARNING, logger.name):
            working = cpu.with_working_dtype(given)
    finally:
        logger.removeHandler(caplog.handler)
    assert (given.dtype, working.dtype) == ("float32", "bfloat16")
    assert "bfloat16 instead of float32, because vLLM's gated delta networks" in caplog.text


@cpu_only("a GPU's dtype is vLLM's choice")
def test_what_works_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "has_amx", lambda: True)
    plain = args_of(tmp_path / "plain", LlamaConfig())
    assert cpu.with_working_dtype(plain) is plain
    half = args_of(tmp_path / "half", DeepseekV3Config(), dtype="float16")
    assert cpu.with_working_dtype(half) is half
    (tmp_path / "nothing").mkdir()
    nothing = AsyncEngineArgs(model=str(tmp_path / "nothing"), dtype="float32")
    assert cpu.with_working_dtype(nothing) is nothing
    latent = args_of(tmp_path / "latent", DeepseekV3Config())
    assert cpu.with_working_dtype(latent).dtype == "bfloat16"
