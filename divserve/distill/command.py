"""The options of ``divserve distill``. torch is imported when the command runs, not before."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from divserve.distill.settings import Device, Keep, Loss, Settings

__all__ = ["distill"]

_MINUTES = 15.0
"""The budget if none is given."""
_YEAR = 525_600
"""In minutes. Every float has a largest value, so that infinity and NaN are refused."""
_INTERRUPTED = 130


def distill(
    teacher: Annotated[Path, typer.Argument(metavar="TEACHER", help="Folder of a model.")],
    layers: Annotated[int, typer.Option(min=1, help="Layers of the student.")],
    out: Annotated[Path, typer.Option(help="Folder to write: the student, its report.")],
    loss: Annotated[Loss, typer.Option(help="Divergence to minimise.")] = "forward_kl",
    beta: Annotated[
        float, typer.Option(min=0.01, max=0.99, help="Weight of the teacher in the JSD.")
    ] = 0.5,
    hidden_weight: Annotated[
        float,
        typer.Option(
            min=0, max=1000, help="Weight of the error of the last hidden states; 0 is off."
        ),
    ] = 0.5,
    keep: Annotated[Keep, typer.Option(help="Which layers the student begins with.")] = "even",
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts, text or .jsonl; else the teacher writes some.")
    ] = None,
    self_prompts: Annotated[
        int, typer.Option(min=2, max=1_000_000, help="Prompts that the teacher writes.")
    ] = 256,
    on_policy: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the text that the student samples.")
    ] = 0.5,
    temperature: Annotated[float, typer.Option(min=0.01, max=100, help="Of all sampling.")] = 1.0,
    tokens: Annotated[
        int | None, typer.Option(min=1, max=10**15, help="Stop after training on so many.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.01, max=_YEAR, help="Stop after so many; 15 without --tokens."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=65_536, help="Sequences a step.")] = 8,
    length: Annotated[
        int, typer.Option(min=1, help="Tokens sampled after a prompt, at most.")
    ] = 96,
    passes: Annotated[
        int, typer.Option(min=1, max=1000, help="Times that a sampled text is trained on.")
    ] = 2,
    positions: Annotated[
        float,
        typer.Option(min=0.01, max=1, help="Share of a step's positions that are trained on."),
    ] = 1.0,
    lr: Annotated[float, typer.Option(min=1e-9, max=1, help="Highest learning rate.")] = 6e-4,
    seed: Annotated[int, typer.Option(help="Of all random choices.")] = 0,
    device: Annotated[Device, typer.Option(help="Where to train.")] = "auto",
    resume: Annotated[
        bool, typer.Option(help="Go on with what --out holds, or start anew.")
    ] = True,
) -> int:
    """Make a small sibling of TEACHER: its tokenizer and head, fewer layers, distilled.

    Ctrl-C stops after the step under way; the same command goes on from there.
    """
    if tokens is None and minutes is None:
        minutes = _MINUTES
    settings = Settings(**locals())
    from divserve.distill import run
    from divserve.distill.display import Display

    with _stopping() as stop, Display() as display:
        done = run.distill(settings, display, stop)
    if not done:
        typer.echo(f"stopped: the same command goes on from {out}", err=True)
        return _INTERRUPTED
    typer.echo(f"{out} is ready: divserve serve {out}; its figures are in {out / 'REPORT.md'}")
    return 0


@contextmanager
def _stopping() -> Iterator[Callable[[], bool]]:
    """Yields a check for Ctrl-C or SIGTERM; a second Ctrl-C ends the process at once."""
    came = False

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before: dict[int, Any] = {
        number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield lambda: came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
