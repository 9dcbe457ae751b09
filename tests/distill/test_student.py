"""The student: which layers it has, what it shares, and the folder that is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors import safe_open

from divserve.distill import student, teacher
from divserve.distill.settings import Keep
from divserve.distill.teacher import Teacher
from divserve.errors import StartupError
from tests.distill.conftest import CPU

IDS = torch.tensor([[1, 5, 9, 200, 7]])


def made(folder: Path, **changes: Any) -> Teacher:
    """A random four-layer model of another shape than the shared ones."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(1)
    dtype = changes.pop("dtype", torch.float32)
    options: dict[str, Any] = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "use_sliding_window": True,
        "sliding_window": 4,
        "layer_types": ["full_attention", "sliding_attention"] * 2,
    }
    model = Qwen3ForCausalLM(Qwen3Config(**(options | changes))).to(dtype)
    model.save_pretrained(folder)
    return teacher.load(folder, CPU)


def loaded(folder: Path, dtype: Any = "auto") -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


@pytest.mark.parametrize(
    ("total", "count", "keep", "kept"),
    [
        (30, 4, "even", [0, 10, 19, 29]),
        (30, 2, "even", [0, 29]),
        (30, 1, "even", [0]),
        (5, 5, "even", [0, 1, 2, 3, 4]),
        (30, 26, "drop-middle", [*range(18), *range(22, 30)]),
        (30, 29, "drop-middle", [*range(20), *range(21, 30)]),
        (4, 1, "drop-middle", [0]),
        (5, 5, "drop-middle", [0, 1, 2, 3, 4]),
    ],
)
def test_chosen_layers(total: int, count: int, keep: Keep, kept: list[int]) -> None:
    assert student.choose_layers(total, count, keep) == kept


@pytest.mark.parametrize("keep", get_args(Keep))
def test_layers_are_distinct_and_in_order(keep: Keep) -> None:
    for total in range(1, 20):
        for count in range(1, total + 1):
            kept = student.choose_layers(total, count, keep)
            assert len(kept) == count
            assert kept == sorted(set(kept))
            assert 0 <= kept[0] <= kept[-1] < total


@pytest.mark.parametrize("count", [0, 31])
def test_more_layers_than_there_are_are_refused(count: int) -> None:
    with pytest.raises(StartupError, match=f"--layers {count}: the teacher has 30, so 1 to 30"):
        student.choose_layers(30, count, "even")


def test_the_student_has_the_teachers_layers_and_shares_the_rest(big: Teacher) -> None:
    small = student.make(big, [1])
    source = big.model.model.layers[1].state_dict()
    for name, value in small.model.layers[0].state_dict().items():
        assert torch.equal(value, source[name])
        assert value.data_ptr() != source[name].data_ptr()
    assert small.lm_head is big.model.lm_head
    assert small.model.embed_tokens is big.model.model.embed_tokens
    assert all(name.startswith("model.layers.0.") for name in student.trained(small))
    assert len(student.trained(small)) == len(source)
    assert not any(value.requires_grad for value in big.model.parameters())


def test_all_layers_are_the_teacher(big: Teacher) -> None:
    small = student.make(big, [0, 1])
    assert torch.equal(small(IDS).logits, big.model(IDS).logits)
    assert not torch.equal(student.make(big, [1, 0])(IDS).logits, big.model(IDS).logits)


def test_making_draws_nothing_from_the_global_generator(big: Teacher) -> None:
    before = torch.random.get_rng_state()
    student.make(big, [0])
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_folder_is_an_ordinary_model(tmp_path: Path, tied: bool, dtype: torch.dtype) -> None:
    big = made(tmp_path / "big", tie_word_embeddings=tied, dtype=dtype)
    small = student.make(big, [1, 2])
    student.save(small, big, tmp_path / "small")
    found = loaded(tmp_path / "small")
    assert found.dtype == dtype
    assert found.config.num_hidden_layers == 2
    assert found.config.layer_types == ["sliding_attention", "full_attention"]
    assert found.config.architectures == ["Qwen3ForCausalLM"]
    assert str(tmp_path) not in (tmp_path / "small" / "config.json").read_text()
    same = loaded(tmp_path / "small", torch.float32)
    assert torch.equal(same(IDS).logits, small(IDS).logits)
    with safe_open(tmp_path / "small" / "model.safetensors", "pt") as file:
        assert ("lm_head.weight" in file.keys()) is not tied  # noqa: SIM118
    with safe_open(tmp_path / "big" / "model.safetensors", "pt") as file:
        frozen = file.get_tensor("model.embed_tokens.weight")
    assert torch.equal(found.model.embed_tokens.weight, frozen)
    assert not list((tmp_path / "small").glob(".*"))


def test_the_folder_has_the_teachers_tokenizer(tmp_path: Path, spoken: Teacher) -> None:
    from transformers import AutoTokenizer

    student.save(student.make(spoken, [0]), spoken, tmp_path)
    found = AutoTokenizer.from_pretrained(tmp_path)
    assert found.chat_template == spoken.tokenizer.chat_template
    text = "What is 12 + 7?\n\n1. x"
    assert found.encode(text) == spoken.tokenizer.encode(text)
    for name in ("tokenizer.json", "generation_config.json"):
        assert (tmp_path / name).read_bytes() == (spoken.folder / name).read_bytes()
