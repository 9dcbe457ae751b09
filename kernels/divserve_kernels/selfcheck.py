"""Checks a back end against the float64 reference, at start-up and in `divserve doctor`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from divserve_contract import Form, Program
from divserve_kernels import backends, reference, text_figures_torch
from divserve_kernels.layout import FIRST_SIDE
from divserve_kernels.streams import Programs, Streams
from divserve_kernels.text_figures import text_figures

if TYPE_CHECKING:
    from divserve_kernels.ahead import Ahead

__all__ = ["EXAMPLES", "KINDS", "Check", "Kind", "States", "check", "compile_ahead", "takes_long"]

EXAMPLES: dict[str, Program] = {
    "plain": Program(),
    "observe": Program(form=Form.OBSERVE),
    "cad": Program(alpha=0.5),
    "adacad": Program(jsd_scale=1, floor=0.3),
    "cfg below 1": Program(alpha=-0.5),
    "contrastive": Program(guide_weight=-1, log_plausibility=math.log(0.1)),
    "instructive": Program(guide_weight=-0.3),
    "linear alignment": Program(alpha=2, top_p=0.8, top_p_temperature=0.7),
    "dexperts": Program(guide_weight=2, third_weight=-2, top_p=0.9),
    "grounding": Program(primary_weight=0, third_weight=1, top_p=0.5, top_p_temperature=0.5),
    "coiecd": Program(form=Form.SWITCH, alpha=1, log_ratio=math.log(4)),
    "uscd": Program(form=Form.PROBABILITY, guide_weight=-0.7, gate=0.8, min_prob=2 / 3),
    "kl temperature": Program(kl_rate=1),
    "entropy temperature": Program(entropy_rate=-0.1 * math.log2(0.8)),
    "adacad, kl temperature": Program(jsd_scale=1, kl_rate=0.5),
}
"""One program for each kind that the methods use."""

SHORT = 1271
"""Entries of a row that are enough for what does not depend on their number."""
LIMIT = 1e-3
"""Largest error that float32 can explain."""


@dataclass(frozen=True, slots=True)
class Check:
    """The result of a check."""

    back_end: str
    why: str
    """Why this back end serves the device."""
    error: float
    """Largest difference of a probability or statistic (relative to 1 + its size)."""
    seconds: float
    """Wall time, including compilation."""

    @property
    def passed(self) -> bool:
        """Whether the back end may be used."""
        return self.error <= LIMIT


@dataclass(frozen=True, slots=True)
class Kind:
    """Tensors that a server gives to the kernels."""

    logits: torch.dtype
    amateurs: torch.dtype | None = None
    """Of the logits of amateurs, if they are in ``side``."""
    amateurs_vocab: int | None = None
    """By default that of the logits."""


@dataclass(frozen=True, slots=True)
class States:
    """A store of hidden states."""

    block: int
    """Positions of a page."""
    hidden: int
    dtype: torch.dtype


KINDS = (Kind(torch.float32), Kind(torch.bfloat16))


def compile_ahead(
    device: torch.device,
    vocab: int,
    kinds: Sequence[Kind] = KINDS,
    states: States | None = None,
) -> Ahead | None:
    """Starts to compile all that `check` needs; None for a back end that does so by itself.

    With ``states``, what look-back needs as well.

    Raises:
        ValueError: see `check`.
    """
    if backends.choose(device).name != "triton":
        return None
    from divserve_kernels.ahead import Ahead, Job
    from divserve_kernels.triton_backend import compile_variant, variant
    from divserve_kernels.triton_launch import Gpu

    jobs = [
        Job(
            compile_variant.__module__,
            variant(vocab, kind.logits, kind.amateurs, kind.amateurs_vocab or vocab, nucleus),
        )
        for kind in kinds
        for nucleus in (True, False)
    ]
    if states is not None:
        dtype = str(states.dtype).removeprefix("torch.")
        options = {"block": states.block, "hidden": states.hidden, "dtype": dtype}
        jobs.append(Job("divserve_kernels.history_triton", options))
        jobs.append(Job("divserve_kernels.candidates_triton", {"vocab": vocab}))
    return Ahead(jobs, Gpu.current(device))


def takes_long(device: torch.device) -> bool:
    """Whether the back end of a CPU has yet to be compiled, which takes about ten seconds."""
    if backends.choose(device).name != "numba":
        return False
    from divserve_kernels.numba_jit import cached

    return not cached()


def check(device: torch.device, vocab: int = 1271, kinds: Sequence[Kind] = KINDS) -> Check:
    """Runs the device's back end and the reference on every example.

    It runs every variant that is compiled separately, so that no request has to wait for one: each
    kind of tensors, with and without rows that keep a nucleus.

    Raises:
        ValueError: ``DIVSERVE_KERNELS`` names a back end that cannot serve the device.
    """
    start = time.perf_counter()
    back_end = backends.choose(device)
    if (ahead := compile_ahead(device, vocab, kinds)) is not None:
        ahead.wait()
    worst = 0.0
    for kind in kinds:
        for nucleus in (True, False):
            logits, streams = example(device, vocab, nucleus)
            logits, side = logits.to(kind.logits), None
            if kind.amateurs is not None:
                side = logits.to(kind.amateurs)[:, : kind.amateurs_vocab]
                streams = _beside(streams)
            expected, mine = logits.float().clone(), logits.float().clone()
            with _one_thread():
                statistics = reference.guide(logits.clone(), streams, side, expected)
            source = mine if kind.logits is torch.float32 else logits
            found = back_end.run(source, streams, side, mine)
            worst = max(worst, _difference(mine.softmax(-1), expected.softmax(-1)))
            worst = max(worst, _difference(found, statistics))
    if back_end.name == "numba":
        worst = max(worst, _error_of_text_figures(logits[:, :SHORT].float()))
    return Check(back_end.name, back_end.why, worst, time.perf_counter() - start)


def _error_of_text_figures(logits: Tensor) -> float:
    """Largest difference of the figures of given tokens from those of plain torch."""
    tokens = torch.arange(len(logits), device=logits.device) % logits.shape[1]
    streams = (logits, logits, logits.roll(1, 0), logits.roll(2, 0))
    with _one_thread():
        expected, _lse = text_figures_torch.text_figures(tokens, *streams)
    return _difference(text_figures(tokens, *streams)[0], expected)


def example(device: torch.device, vocab: int, nucleus: bool = True) -> tuple[Tensor, Streams]:
    """Logits ``[3G, vocab] float32`` and rows that follow `EXAMPLES`, with a nucleus or without."""
    chosen = [program for program in EXAMPLES.values() if nucleus or program.top_p >= 1]
    count = len(chosen)
    programs = Programs(count, device)
    programs.write(dict(enumerate(chosen)))
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3 * count, vocab, generator=generator) * 3
    logits[::4, vocab // 2 :: 3] = -math.inf
    rows = (range(start, 3 * count, 3) for start in range(3))
    return logits.to(device), Streams.pack(programs, range(count), *rows)


@contextmanager
def _one_thread() -> Iterator[None]:
    """For many small operations: on a busy machine, threads wait for each other at each of them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _beside(streams: Streams) -> Streams:
    """The same streams with guides and third streams in ``side``."""
    return replace(streams, guide=FIRST_SIDE - streams.guide, third=FIRST_SIDE - streams.third)


def _difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference relative to 1 + size; infinite if only one side is a number."""
    difference = (found.double() - expected.double()).abs() / (1 + expected.double().abs())
    return float(difference.nan_to_num(nan=math.inf).max())
