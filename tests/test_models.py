"""The prepared SmolLM2, and how its folder is made."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from divserve import models
from divserve.errors import StartupError


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Replaces the conversion with a file of one word; returns the list of its calls."""
    calls: list[Path] = []

    def convert(source: Path, out: Path, progress: object) -> None:
        calls.append(source)
        (out / "model.safetensors").write_text("new")

    monkeypatch.setattr(models, "_convert", convert)
    monkeypatch.setattr(models, "_check", lambda folder: None)
    return calls


def fail(*_: object) -> None:
    raise StartupError("the converted model answers wrongly")


def names(folder: Path) -> set[str]:
    """What a user sees in `folder`, and leftovers (the lock file stays, empty)."""
    return {path.name for path in folder.iterdir()} - {".model.lock"}


def load(folder: Path, kind: str) -> Any:
    import transformers

    return getattr(transformers, kind).from_pretrained(folder)


def test_generation_stops_at_the_end_of_the_turn(smollm2: Path) -> None:
    tokenizer = load(smollm2, "AutoTokenizer")
    (end,) = tokenizer.encode("<|im_end|>")
    assert tokenizer.eos_token == "<|im_end|>"
    assert load(smollm2, "GenerationConfig").eos_token_id == end
    config = load(smollm2, "AutoConfig")
    assert (config.eos_token_id, config.vocab_size) == (end, 49_152)
    assert json.loads((smollm2 / "config.json").read_text())["dtype"] == "float32"


def test_chat_template(smollm2: Path) -> None:
    tokenizer = load(smollm2, "AutoTokenizer")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("in 2024", ["in", "Ġ", "2", "0", "2", "4"]),
        ("a\n\n2. b", ["a", "ĊĊ", "2", ".", "Ġb"]),  # transformers alone says Ċ, Ċ
        ("x   1", ["x", "ĠĠĠ", "1"]),
    ],
)
def test_digits_are_split_first(smollm2: Path, text: str, tokens: list[str]) -> None:
    tokenizer = load(smollm2, "AutoTokenizer")
    assert tokenizer.tokenize(text) == tokens
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_second_time_does_nothing(tmp_path: Path, quick: list[Path]) -> None:
    out = tmp_path / "deep" / "model"
    assert models.prepare(out)
    assert names(out) == {"divserve.json", "model.safetensors"}
    assert not models.prepare(out)
    assert len(quick) == 1


def test_two_at_once_convert_once(tmp_path: Path, quick: list[Path]) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(models.prepare, [tmp_path / "model"] * 4))
    assert sorted(made) == [False, False, False, True]
    assert len(quick) == 1


@pytest.mark.parametrize("step", ["_convert", "_check"])
def test_failure_leaves_nothing_behind(
    tmp_path: Path, quick: list[Path], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    out = tmp_path / "model"
    with monkeypatch.context() as patch:
        patch.setattr(models, step, fail)
        with pytest.raises(StartupError, match="answers wrongly"):
            models.prepare(out)
    assert names(tmp_path) == set()
    assert models.prepare(out)


def test_remains_of_a_killed_run_are_cleared(tmp_path: Path, quick: list[Path]) -> None:
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "half.safetensors").write_text("half")
    assert models.prepare(tmp_path / "model")
    assert names(tmp_path) == {"model"}
    assert names(tmp_path / "model") == {"divserve.json", "model.safetensors"}


def test_older_recipe_is_replaced_only_by_a_good_one(
    tmp_path: Path, quick: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model"
    out.mkdir()
    (out / "divserve.json").write_text('{"recipe": 0}')
    (out / "model.safetensors").write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(models, "_check", fail)
        with pytest.raises(StartupError):
            models.prepare(out)
    assert (out / "model.safetensors").read_text() == "old"
    assert models.prepare(out)
    assert (out / "model.safetensors").read_text() == "new"


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, quick: list[Path]) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(StartupError, match="choose another --out"):
        models.prepare(tmp_path)
    assert names(tmp_path) == {"precious.txt"}
    assert quick == []


def test_missing_package_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_PACKAGE", "llm-nowhere")
    with pytest.raises(StartupError, match="make setup"):
        models.prepare(tmp_path / "model")
