"""The state of a run, and its checkpoint: one file, replaced as a whole."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from divserve.distill.evaluate import Figures
from divserve.distill.sampling import Sequences
from divserve.errors import StartupError

__all__ = ["Point", "State", "checkpoint", "load", "save"]


@dataclass(frozen=True, slots=True)
class Point:
    """One point of the curve."""

    tokens: int
    """Sampled tokens trained on so far, each pass counted."""
    seconds: float
    """Seconds since the run began, without the time between its parts."""
    loss: float | None
    """Mean of the steps since the previous point; None before the first step."""
    figures: Figures


@dataclass(slots=True)
class State:
    """Everything but the weights and the optimizer's moments."""

    prompts: list[list[int]]
    """Prompts that are trained on."""
    held_out: Sequences
    tokens: int = 0
    fresh_tokens: int = 0
    """Tokens sampled for training so far."""
    seconds: float = 0.0
    """Seconds of sampling, training and evaluation, in all parts of the run."""
    preparation: float = 0.0
    """Seconds before that, for the prompts and the held-out sequences."""
    rounds: int = 0
    """Rounds of sampling that are complete, the pending one included."""
    step: int = 0
    cursor: int = 0
    """Steps done with the pending round."""
    pending: Sequences | None = None
    """The round that is being trained on."""
    losses: list[float] = field(default_factory=list)
    """Losses of the steps since the last point."""
    curve: list[Point] = field(default_factory=list)


def checkpoint(out: Path) -> Path:
    """Path of the checkpoint of a run into `out`; removed when the run has ended."""
    return out / "distill.pt"


def save(
    out: Path,
    settings: dict[str, Any],
    state: State,
    weights: dict[str, Tensor],
    optimizer: dict[str, Any],
) -> None:
    """Writes the checkpoint; the previous one stays until it is complete."""
    whole = {
        "settings": settings,
        "state": asdict(state),
        "weights": {name: value.detach() for name, value in weights.items()},
        "optimizer": optimizer,
    }
    partial = checkpoint(out).with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(whole, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(checkpoint(out))


def load(out: Path, device: torch.device) -> dict[str, Any]:
    """Reads the checkpoint of `out`; its ``state`` is a `State` with tensors on `device`.

    Raises:
        StartupError: it is not a checkpoint of this package.
    """
    try:
        whole: dict[str, Any] = torch.load(checkpoint(out), map_location=device, weights_only=True)
        whole["state"] = _state(whole["state"])
    except Exception as error:
        # torch.load and its unpickler raise almost any exception for a damaged file.
        raise StartupError(
            f"{checkpoint(out)} cannot be read: start anew with --no-resume"
        ) from error
    return whole


def _state(fields: dict[str, Any]) -> State:
    pending = fields.pop("pending")
    curve = [
        Point(**(point | {"figures": Figures(**point["figures"])})) for point in fields.pop("curve")
    ]
    return State(
        held_out=Sequences(**fields.pop("held_out")),
        pending=None if pending is None else Sequences(**pending),
        curve=curve,
        **fields,
    )
