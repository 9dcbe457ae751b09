"""The student: layers of the teacher between the teacher's own embeddings, norm and head."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from divserve.distill.settings import Keep
from divserve.distill.teacher import Teacher
from divserve.errors import StartupError

__all__ = ["choose_layers", "make", "save", "trained"]

_CENTRE = 2 / 3
"""Centre of the block that `drop-middle` removes: the layers that a model misses least."""
_COPIED = (
    "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json",
    "chat_template*", "generation_config.json", "LICENSE*", "NOTICE*",
)  # fmt: skip


def choose_layers(total: int, count: int, keep: Keep) -> list[int]:
    """Returns which `count` of `total` layers are kept, ascending.

    ``even``: the first, the last, and evenly spaced ones between them. ``drop-middle``: all but one
    block of neighbours centred at two thirds of the depth.

    Raises:
        StartupError: the teacher does not have so many.
    """
    if not 1 <= count <= total:
        raise StartupError(
            f"--layers {count}: the teacher has {total}, so 1 to {total} can be kept"
        )
    if keep == "even":
        gaps = max(count - 1, 1)
        return [(2 * index * (total - 1) + gaps) // (2 * gaps) for index in range(count)]
    dropped = total - count
    start = min(max(round(total * _CENTRE - dropped / 2), 0), total - dropped)
    return [*range(start), *range(start + dropped, total)]


def make(teacher: Teacher, chosen: Sequence[int]) -> Any:
    """Returns a model of the teacher's class with its layers `chosen`, float32 and trainable.

    Embeddings, final norm and head are the teacher's own modules, frozen: they cost no memory, and
    the student differs from the teacher in the hidden states only.
    """
    config = copy.deepcopy(teacher.model.config)
    config.num_hidden_layers = len(chosen)
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = [config.layer_types[index] for index in chosen]
    config.architectures = [type(teacher.model).__name__]
    config.dtype = teacher.dtype
    config._name_or_path = ""
    source, device = teacher.model.model, teacher.model.device
    # transformers draws new weights from the global generator, which are then overwritten.
    with torch.random.fork_rng(devices=[]):
        student = type(teacher.model)(config)
    student = student.float().to(device).requires_grad_(False)
    student.model.embed_tokens, student.model.norm = source.embed_tokens, source.norm
    student.lm_head = teacher.model.lm_head
    for layer, index in zip(student.model.layers, chosen, strict=True):
        layer.load_state_dict(source.layers[index].state_dict())
        layer.requires_grad_(True)
    # No dropout: it would train against noise that serving does not have.
    return student.eval()


def trained(student: Any) -> dict[str, Tensor]:
    """The weights that training changes, by their name in the whole model; storage is shared."""
    return {name: value for name, value in student.named_parameters() if value.requires_grad}


def save(student: Any, teacher: Teacher, out: Path) -> None:
    """Writes `student` to `out` as an ordinary Hugging Face folder, in the teacher's dtype.

    Includes the teacher's tokenizer, chat template and generation settings. Each file gets its name
    when it is complete, the weights before the configuration that makes them loadable.
    """
    from safetensors.torch import save_file

    partial = out / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    weights = {
        name: value.detach().to("cpu", teacher.dtype).contiguous()
        for name, value in student.state_dict().items()
        if not (student.config.tie_word_embeddings and name == "lm_head.weight")
    }
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    student.config.save_pretrained(partial)
    for pattern in _COPIED:
        for file in teacher.folder.glob(pattern):
            shutil.copyfile(file, partial / file.name)
    for file in sorted(partial.iterdir(), key=lambda file: file.name == "config.json"):
        # save_file writes files that only their owner may read; a server may run as another user.
        file.chmod(0o644)
        file.replace(out / file.name)
    partial.rmdir()
