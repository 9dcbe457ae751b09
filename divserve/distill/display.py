"""The progress display of a run: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from divserve.distill.state import Point

__all__ = ["Display"]

_WIDE = 110
"""Terminal width from which the bar also shows the latest held-out figures."""
_LINE_S = 30.0
"""Seconds between two lines about training if there is no terminal."""


class Display:
    """Shows phases, steps and points of the curve; a context manager, which ends the bar."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self.plain = not self.console.is_terminal
        columns = (BarColumn(12), TextColumn("{task.percentage:>3.0f} % {task.description}"))
        self._progress = Progress(
            *columns,
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self.console,
            disable=self.plain,
            # Sampling and training alternate: the pace is even only over some minutes.
            speed_estimate_period=300,
        )
        self._task = self._progress.add_task("starting", total=1.0)
        self._held_out = ""
        self._first: tuple[float, int] | None = None
        self._line = time.monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        # Without Rich's wrapping: a line must stay one line in a log.
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def phase(self, text: str) -> None:
        """Announces one of the steps before training."""
        self._progress.update(self._task, description=text)
        if self.plain:
            self.say(f"→ {text}")

    def sampling(self, who: str, fraction: float) -> None:
        """Shows that `who` begins to sample a round; `fraction` of the budget is spent."""
        text = f"{who} writes{self._held_out}"
        self._progress.update(self._task, completed=min(fraction, 1), description=text)
        if self.plain:
            self._tell(f"{min(fraction, 1):4.0%}  {who} writes")

    def trained(self, fraction: float, tokens: int, loss: float) -> None:
        """Shows a finished step; `loss` is the divergence of its batch, nats."""
        now = time.monotonic()
        self._first = self._first or (now, tokens)
        rate = (tokens - self._first[1]) / max(now - self._first[0], 1e-3)
        text = f"{tokens:,} tokens, {rate:,.0f}/s, loss {loss:.3f}"
        self._progress.update(self._task, completed=fraction, description=f"{text}{self._held_out}")
        if self.plain:
            self._tell(f"{fraction:4.0%}  {text}")

    def _tell(self, text: str) -> None:
        """Prints a line unless one was printed a short time ago."""
        if time.monotonic() - self._line > _LINE_S:
            self._line = time.monotonic()
            self.say(text)

    def measured(self, point: Point) -> None:
        """Shows a point of the curve."""
        figures = point.figures
        loss = "" if point.loss is None else f", loss {point.loss:.3f}"
        if self.console.width >= _WIDE:
            self._held_out = f" · held out: KL {figures.kl:.2f}, accepted {figures.acceptance:.1%}"
        self.say(
            f"{point.seconds:6.0f} s  {point.tokens:,} tokens{loss}; held out: "
            f"KL {figures.kl:.3f} nats, accepted {figures.acceptance:.1%}, "
            f"same greedy token {figures.agreement:.1%}"
        )
