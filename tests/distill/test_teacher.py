"""What cannot be distilled is rejected with a one-line error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from divserve.distill import teacher
from divserve.distill.teacher import Teacher
from divserve.errors import StartupError
from tests.distill.conftest import CPU

SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def refusal(folder: Path) -> str:
    with pytest.raises(StartupError) as error:
        teacher.load(folder, CPU)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)
    return str(error.value)


def rewrite(source: Path, folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def test_no_folder_and_no_weights(tmp_path: Path, tiny: Path) -> None:
    assert "no config.json" in refusal(tmp_path / "nowhere")
    assert "cannot load" in refusal(rewrite(tiny, tmp_path / "empty"))
    assert "cannot load" in refusal(rewrite(tiny, tmp_path / "odd", model_type="nonesuch"))


def test_other_architectures(tmp_path: Path) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, T5Config

    GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    ).save_pretrained(tmp_path / "gpt2")
    assert "GPT2LMHeadModel) is not built like Llama" in refusal(tmp_path / "gpt2")
    T5Config(vocab_size=64).save_pretrained(tmp_path / "t5")
    assert "only decoders" in refusal(tmp_path / "t5")
    capped = Gemma2Config(**SMALL, head_dim=8, intermediate_size=16, final_logit_softcapping=0.01)
    torch.manual_seed(0)
    Gemma2ForCausalLM(capped).save_pretrained(tmp_path / "gemma2")
    assert "otherwise than with one matrix" in refusal(tmp_path / "gemma2")


def test_quantised(tmp_path: Path, tiny: Path) -> None:
    quantised = {"quant_method": "gptq", "bits": 4}
    folder = rewrite(tiny, tmp_path / "gptq", quantization_config=quantised)
    assert "quantised" in refusal(folder)


def test_what_a_teacher_knows(big: Teacher, spoken: Teacher) -> None:
    assert big.tokenizer is None
    assert spoken.tokenizer.chat_template
    assert (big.stops, big.context, big.dtype) == ([2], 4096, torch.float32)
    assert big.model.device == CPU
    assert not big.model.training


def test_the_fingerprint_tells_models_apart(tiny: Path, tiny_with_tokenizer: Path) -> None:
    assert teacher.fingerprint(tiny) == teacher.fingerprint(tiny)
    assert teacher.fingerprint(tiny) != teacher.fingerprint(tiny_with_tokenizer)
