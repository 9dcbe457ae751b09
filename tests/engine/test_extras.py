"""Start-up with more models: flags, rejections by name, and shares of memory."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from divserve.errors import StartupError
from divserve.startup import launch
from divserve.startup.extras import Extras
from tests.support.models import make_tiny


def retokenized(source: Path, folder: Path, change: Callable[[Any], None]) -> Path:
    """A copy of a model, with its tokenizer's model changed by ``change``."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    change(content["model"])
    file.write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def foreign(tiny_with_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with two entries of its vocabulary swapped."""

    def exchange(model: Any) -> None:
        vocab = model["vocab"]
        vocab["Ġthe"], vocab["Ġof"] = vocab["Ġof"], vocab["Ġthe"]

    return retokenized(tiny_with_tokenizer, tmp_path_factory.mktemp("foreign"), exchange)


@pytest.fixture(scope="module")
def remerged(tiny_with_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same vocabulary, with merges in another order."""
    folder = tmp_path_factory.mktemp("remerged")
    return retokenized(tiny_with_tokenizer, folder, lambda model: model["merges"].reverse())


def configured(model: Path) -> Any:
    """A resolved ``VllmConfig`` of a model."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    args = AsyncEngineArgs(model=str(model), dtype="float32", max_model_len=1024, block_size=32)
    return args.create_engine_config()


@pytest.fixture(scope="module")
def config(tiny_with_tokenizer: Path) -> Any:
    return configured(tiny_with_tokenizer)


def flags(*given: str) -> Extras:
    extras: Extras = launch.parse(["model", *given]).extras
    return extras


def test_flags() -> None:
    assert flags() == Extras()
    both = flags("--amateur", "a", "--tuned", "b", "--small", "c", "--small-share", "0.4")
    assert both == Extras({"amateur": "a", "tuned": "b"}, "c", 0.4)
    assert both.names == {"amateur", "tuned", "small"}
    assert flags("--small", "c", "--small-tensor-parallel-size", "2").small_ranks == 2
    assert flags("--amateur", "drop:4").names == {"amateur"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--tuned", "b"], "--tuned needs --amateur"),
        (["--amateur", "drop:4:"], "give drop:N"),
        (["--amateur", "a", "--tuned", "drop:0"], "give drop:N"),
        (["--small", "c", "--small-share", "1"], "between 0 and 1"),
        (["--small", "c", "--small-share", "0"], "between 0 and 1"),
        (["--small", "c", "--small-tensor-parallel-size", "0"], "is at least 1, not 0"),
        (["--small", "c", "--preset", "small=PRESET"], "cannot be called 'small'"),
    ],
)
def test_flags_that_make_no_sense(given: list[str], words: str, tmp_path: Path) -> None:
    preset = tmp_path / "preset.json"
    preset.write_text('{"method": "entropy_temperature"}')
    given = [value.replace("PRESET", str(preset)) for value in given]
    with pytest.raises(StartupError, match=words):
        flags(*given)


@pytest.mark.parametrize("other", ["foreign", "remerged"])
def test_another_tokenizer_is_refused_with_both_names(
    config: Any, other: str, request: pytest.FixtureRequest
) -> None:
    path = str(request.getfixturevalue(other))
    with pytest.raises(StartupError, match="different tokenizers") as as_amateur:
        Extras({"amateur": path}).install(config)
    small = configured(Path(path)).model_config
    with pytest.raises(StartupError, match="different tokenizers") as as_small:
        Extras(small=path).check_small(config.model_config, small)
    for refused in (as_amateur, as_small):
        assert str(config.model_config.model) in str(refused.value)
        assert path in str(refused.value)


@pytest.mark.parametrize(
    ("amateur", "words"),
    [
        ("drop:0", "give drop:N"),
        ("drop:-1", "give drop:N"),
        ("drop:two", "give drop:N"),
        ("drop:1", "leaves fewer than two"),
        ("drop:9", "leaves fewer than two"),
        ("no/such/model", "vLLM refuses no/such/model"),
    ],
)
def test_amateurs_that_cannot_be(config: Any, amateur: str, words: str) -> None:
    with pytest.raises(StartupError, match=words):
        Extras({"amateur": amateur}).install(config)


def test_a_model_without_rows_for_all_tokens(config: Any, tmp_path: Path) -> None:
    path = make_tiny(tmp_path, vocab_size=49_000)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(config.model_config.model) / name, path / name)
    with pytest.raises(StartupError, match="49000 rows for the 49152 tokens"):
        Extras({"amateur": str(path)}).install(config)


def test_the_amateurs_are_loaded_beside_what_was_to_be_loaded(tiny_with_tokenizer: Path) -> None:
    config = configured(tiny_with_tokenizer)
    Extras({"amateur": str(tiny_with_tokenizer)}).install(config)
    assert config.load_config.load_format == "divserve_amateurs"
    extra = config.load_config.model_loader_extra_config
    assert extra["load_format"] == "auto"
    assert extra["amateurs"] == {"amateur": str(tiny_with_tokenizer)}


def test_shares_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares of the KV cache if its size is given, else of the device."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "8")

    def engine(kv: int | None) -> Any:
        cache = SimpleNamespace(kv_cache_memory_bytes=kv, gpu_memory_utilization=0.9)
        return SimpleNamespace(cache_config=cache)

    asked = Extras(small="c", small_share=0.25)
    on_cpu, on_gpu = [engine(8000) for _ in range(2)], [engine(None) for _ in range(2)]
    asked.split_memory(*on_cpu)
    asked.split_memory(*on_gpu)
    assert [e.cache_config.kv_cache_memory_bytes for e in on_cpu] == [6000, 2000]
    shares = [e.cache_config.gpu_memory_utilization for e in on_gpu]
    assert shares == pytest.approx([0.675, 0.225])
    assert "VLLM_CPU_KVCACHE_SPACE" not in os.environ


def test_the_small_engine_takes_over_what_does_not_belong_to_a_model(tiny: Path) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    own: dict[str, Any] = {"quantization": "fp8", "hf_overrides": {"a": 1}}
    large = AsyncEngineArgs(model=str(tiny), block_size=64, max_num_seqs=7, **own)
    small = Extras(small="little").small_arguments(large, "served")
    assert (small.model, small.served_model_name) == ("little", ["served@small"])
    assert (small.quantization, small.hf_overrides, small.tokenizer) == (None, {}, None)
    assert (small.block_size, small.max_num_seqs) == (64, 7)
    assert (large.model, large.quantization) == (str(tiny), "fp8")


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_small_engine_has_ranks_of_its_own(tiny: Path, ranks: int) -> None:
    """Its heads may not be divisible by the number of the served model's."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    large = AsyncEngineArgs(
        model=str(tiny),
        tensor_parallel_size=4,
        pipeline_parallel_size=2,
        decode_context_parallel_size=2,
        enable_expert_parallel=True,
    )
    small = Extras(small="little", small_ranks=ranks).small_arguments(large, "served")
    assert (small.tensor_parallel_size, small.pipeline_parallel_size) == (ranks, 1)
    assert (small.decode_context_parallel_size, small.enable_expert_parallel) == (1, False)
    assert (large.tensor_parallel_size, large.pipeline_parallel_size) == (4, 2)


def test_parameters_are_counted_once(tiny_with_tokenizer: Path, tmp_path: Path) -> None:
    from divserve.engine.client.model_size import parameter_ratio

    deep = make_tiny(tmp_path, vocab_size=49_152, layers=4)
    large, small = (
        SimpleNamespace(model=str(path), revision=None) for path in (deep, tiny_with_tokenizer)
    )
    layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128 + 2 * 64
    rest = 2 * 49_152 * 64 + 64
    assert parameter_ratio(small, large) == pytest.approx((rest + 2 * layer) / (rest + 4 * layer))
    empty = SimpleNamespace(model=str(tmp_path / "empty"), revision=None)
    Path(empty.model).mkdir()
    assert parameter_ratio(empty, large) is None


def test_packed_parameters_are_not_counted(tiny_with_tokenizer: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from divserve.engine.client.model_size import parameter_ratio

    weights = {"qweight": torch.zeros(4, 4, dtype=torch.int32), "norm": torch.ones(4)}
    save_file(weights, tmp_path / "model.safetensors")
    packed, plain = (
        SimpleNamespace(model=str(path), revision=None) for path in (tmp_path, tiny_with_tokenizer)
    )
    assert parameter_ratio(packed, plain) is None
