"""The options of a run: plain values that must stay the same when it is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from divserve.errors import StartupError

__all__ = ["Device", "Keep", "Loss", "Settings"]

Loss = Literal["forward_kl", "reverse_kl", "jsd", "tv"]
Keep = Literal["even", "drop-middle"]
Device = Literal["auto", "cpu", "cuda"]

_OWN = ("teacher", "out", "device", "resume")
"""Fields not compared as given: the teacher is compared by content, the device by type."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of ``divserve distill``, in the order of its help; the command checks ranges."""

    teacher: Path
    layers: int
    out: Path
    loss: Loss = "forward_kl"
    beta: float = 0.5
    """Weight of the teacher in the mixture of the JSD."""
    hidden_weight: float = 0.5
    """Weight of the relative squared error of the final hidden states."""
    keep: Keep = "even"
    prompts: Path | None = None
    self_prompts: int = 256
    """Prompts that the teacher writes if no file is given."""
    on_policy: float = 0.5
    """Share of the text that the student samples; the teacher samples the rest."""
    temperature: float = 1.0
    tokens: int | None = None
    minutes: float | None = None
    batch: int = 8
    """Sequences per step."""
    length: int = 96
    """Maximum number of tokens sampled after a prompt."""
    passes: int = 2
    """How many times a sampled sequence is trained on."""
    positions: float = 1.0
    """Share of the positions in a step whose loss is computed."""
    lr: float = 6e-4
    seed: int = 0
    device: Device = "auto"
    resume: bool = True

    def fingerprint(self) -> dict[str, Any]:
        """The fields that must not change between the parts of one run, as plain values."""
        fields = {name: value for name, value in asdict(self).items() if name not in _OWN}
        return fields | {"prompts": None if self.prompts is None else str(self.prompts.resolve())}

    def refuse_other(self, earlier: Mapping[str, Any]) -> None:
        """Raises `StartupError` where `earlier`, a fingerprint, differs from these settings."""
        for name, value in self.fingerprint().items():
            if (before := earlier.get(name)) != value:
                raise StartupError(
                    f"{self.out} was begun with {_option(name, before)}, not "
                    f"{_option(name, value)}: give the same options, or start anew with "
                    "--no-resume"
                )


def _name(field: str) -> str:
    return "--" + field.replace("_", "-")


def _option(field: str, value: object) -> str:
    return f"no {_name(field)}" if value is None else f"{_name(field)} {value}"
