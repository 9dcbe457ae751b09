"""The report of a run: report.json for programs, REPORT.md and curve.svg for people.

Without matplotlib there is no curve.svg; its figures are in the other two files.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from divserve import __version__, plots
from divserve.distill.curve import drawing
from divserve.distill.state import Point

__all__ = ["FILES", "MADE_BY", "Account", "speculative_tokens", "write"]

FILES = ("report.json", "REPORT.md", "curve.svg")
MADE_BY = "divserve distill"
DRAFTS = 4
"""Draft tokens per verification in the estimate for speculative decoding."""


@dataclass(frozen=True, slots=True)
class Account:
    """What a finished run reports."""

    teacher: str
    teacher_layers: int
    kept: list[int]
    """Indices of the teacher's layers that the student was made from."""
    trained_parameters: int
    parameters: int
    """Of the student, with the teacher's embeddings and head."""
    prompts: int
    held_out_prompts: int
    held_out_tokens: int
    hardware: str
    settings: dict[str, Any]
    curve: list[Point]
    tokens: int
    """Sampled tokens trained on, each pass counted."""
    fresh_tokens: int
    """Tokens sampled for training."""
    seconds: float
    preparation: float
    """Seconds before that, for prompts and held-out sequences."""


def speculative_tokens(acceptance: float, drafts: int = DRAFTS) -> float:
    """Tokens that a verification of `drafts` draft tokens yields: (1 − α^(γ+1)) / (1 − α).

    Assumes that each is accepted independently with probability `acceptance` (Leviathan et al.,
    2023).
    """
    return sum(acceptance**power for power in range(drafts + 1))


def write(out: Path, account: Account) -> None:
    """Writes the files into `out`, report.json last: it marks the run as finished."""
    title = f"{len(account.kept)} of {account.teacher_layers} layers of {account.teacher}"
    picture = "No curve was drawn: matplotlib was not installed."
    if plots.is_installed():
        _put(out / "curve.svg", plots.svg(drawing(title, account.curve)))
        picture = "![held-out KL, acceptance and agreement over the tokens trained on](curve.svg)"
    _put(out / "REPORT.md", _markdown(title, picture, account))
    whole = {"made_by": MADE_BY, "version": __version__, **asdict(account)}
    _put(out / "report.json", json.dumps(whole, indent=2, default=str) + "\n")


def _put(file: Path, text: str) -> None:
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def _markdown(title: str, picture: str, account: Account) -> str:
    first, last = account.curve[0].figures, account.curve[-1].figures
    rows = [
        ("KL(teacher‖student), nats a token", f"{first.kl:.3f}", f"{last.kl:.3f}"),
        ("acceptance Σ min(p, q)", f"{first.acceptance:.1%}", f"{last.acceptance:.1%}"),
        ("same greedy token", f"{first.agreement:.1%}", f"{last.agreement:.1%}"),
        (
            f"tokens a verification of {DRAFTS} drafts (estimate)",
            f"{speculative_tokens(first.acceptance):.2f}",
            f"{speculative_tokens(last.acceptance):.2f}",
        ),
    ]
    settings = "\n".join(f"- `{name}`: {value}" for name, value in account.settings.items())
    return f"""# {title}

Made by `divserve distill` {__version__} (DistillSpec, Zhou et al., ICLR 2024, arXiv 2310.08461) on
{account.hardware}: {account.preparation:,.0f} s for the prompts and the held-out text, then
{account.seconds:,.0f} s of sampling, training and evaluation.

{account.trained_parameters:,} of the student's {account.parameters:,} parameters were trained; the
embeddings, the final norm and the head are the teacher's.

Held out: {account.held_out_tokens:,} tokens that the teacher sampled after
{account.held_out_prompts} prompts, none of them trained on.

| held out | at first | at last |
|---|---|---|
{_rows(rows)}

Trained on {account.tokens:,} tokens, each pass counted; {account.fresh_tokens:,} tokens were
sampled for it, after {account.prompts} prompts. Layers kept: {", ".join(map(str, account.kept))}.

{picture}

| tokens | s | training loss | KL | acceptance | agreement |
|---|---|---|---|---|---|
{_rows(map(_cells, account.curve))}

## Settings

{settings}
"""


def _cells(point: Point) -> tuple[str, ...]:
    figures = point.figures
    return (
        f"{point.tokens:,}",
        f"{point.seconds:.0f}",
        "" if point.loss is None else f"{point.loss:.3f}",
        f"{figures.kl:.3f}",
        f"{figures.acceptance:.1%}",
        f"{figures.agreement:.1%}",
    )


def _rows(rows: Any) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
