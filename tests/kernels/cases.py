"""What the kernel tests share: back ends by name, streams of random logits, and parity."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from divserve.decoding import METHODS
from divserve_contract import STATISTICS, Form, Program
from divserve_kernels import ABSENT, Programs, Streams
from divserve_kernels.reference import guide as reference
from divserve_kernels.selfcheck import EXAMPLES

CPU = torch.device("cpu")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ON_CPU = ["numba", "torch"]
ALL = [*ON_CPU, "triton"] if INTERPRETED else ON_CPU
"""Triton decides on import whether it interprets: `test_triton` runs the tests once more."""
MIX = list(EXAMPLES.values())
LONG, MANY = (333, len(MIX)) if INTERPRETED else (1271, 99)
"""A vocabulary of several uneven tiles, and rows for all methods: with more, the interpreter takes
a minute."""

BackEnd = Callable[[Tensor, Streams, Tensor | None, Tensor], Tensor]


def back_end(name: str) -> BackEnd:
    """A back end's own entry point; Triton's with short tiles, so that small rows have several."""
    if name == "reference":
        return reference
    found: BackEnd = importlib.import_module(f"divserve_kernels.{name}_backend").guide
    if name != "triton" or not INTERPRETED:
        return found

    def interpreted(*args: Any) -> Tensor:
        # The interpreter computes with numpy, which warns where a GPU makes infinities and NaN.
        with np.errstate(all="ignore"):
            return found(*args, width=128, strips=2)  # type: ignore[call-arg]

    return interpreted


def of_method(method: str, temperature: float = 1.0, **fields: Any) -> Program:
    """The program of a decoding method."""
    payload = {"method": method, "guide": {"prompt": "x"}, **fields}
    return METHODS[method].model_validate(payload).program(temperature)


def streams_of(
    programs: Sequence[Sequence[float]],
    primary: Sequence[int],
    guide: Sequence[int] | None = None,
    third: Sequence[int] | None = None,
    device: torch.device = CPU,
) -> Streams:
    """Streams of rows that follow these programs, kept in slots neither dense nor in order."""
    slots = [2 * i + 1 for i in reversed(range(len(programs)))]
    table = Programs(4, device)
    table.write(dict(zip(slots, programs, strict=True)))
    return Streams.pack(table, slots, primary, guide, third)


def pairs(logits: Tensor, programs: Sequence[Sequence[float]]) -> Streams:
    """Pairs (0, 1), (2, 3) … of ``logits`` ``[2G, V]``."""
    count = logits.shape[0]
    return streams_of(programs, range(0, count, 2), range(1, count, 2), device=logits.device)


def made_up(
    count: int, vocab: int, seed: int = 0, spread: float = 3.0, device: torch.device = CPU
) -> tuple[Tensor, Streams]:
    """Logits and ``count`` guided rows of mixed methods; guides are shared to save memory."""
    shared = min(count, 8)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count + 2 * shared, vocab, generator=generator) * spread
    order = torch.randperm(len(logits), generator=generator).tolist()
    guides = [order[count + i % shared] for i in range(count)]
    thirds = [order[count + shared + i % shared] for i in range(count)]
    programs = [MIX[(i + seed) % len(MIX)] for i in range(count)]
    return logits.to(device), streams_of(programs, order[:count], guides, thirds, device)


def assert_parity(
    run: BackEnd, logits: Tensor, streams: Streams, side: Tensor | None = None, poison: bool = False
) -> None:
    """The back end agrees with the reference, and leaves all other rows alone.

    Args:
        poison: the output is a tensor full of NaN beside the logits.
    """
    expected = torch.full(logits.shape, math.nan) if poison else logits.float().clone()
    expected = expected.to(logits.device)
    mine = expected.clone()
    source = mine if logits.dtype is torch.float32 and not poison else logits
    found = run(source, streams, side, mine)
    statistics = reference(logits.clone(), streams, side, expected).cpu()

    found, written = found.cpu(), torch.zeros(len(logits), dtype=torch.bool)
    for g, (primary, slot) in enumerate(
        zip(streams.primary.tolist(), streams.slot.tolist(), strict=True)
    ):
        if primary == ABSENT:
            assert not found[g].any()
            continue
        program = Program(*streams.table[:, slot].tolist())
        written[primary] = program.form != Form.OBSERVE
        figures = dict(zip(STATISTICS, statistics[g].tolist(), strict=True))
        tokens = [t[primary].float().cpu() for t in (logits, mine, expected)]
        flipped = _assert_row(program, figures, *tokens)
        kept = STATISTICS.index("kept")
        assert abs(float(found[g, kept]) - float(statistics[g, kept])) <= flipped
        compared = [i for i in range(len(STATISTICS)) if i != kept]
        torch.testing.assert_close(
            found[g, compared], statistics[g, compared], rtol=2e-4, atol=2e-5, equal_nan=True
        )
    others = torch.full(logits.shape, math.nan) if poison else logits.float().cpu()
    torch.testing.assert_close(
        mine.cpu()[~written], others[~written], rtol=0, atol=0, equal_nan=True
    )


def _assert_row(
    program: Program, figures: dict[str, float], z1: Tensor, mine: Tensor, expected: Tensor
) -> int:
    """One row of guided logits; returns the number of tokens that only one side keeps."""
    dropped, reference_dropped = torch.isneginf(mine), torch.isneginf(expected)
    flipped = (dropped != reference_dropped).nonzero()[:, 0]
    both = ~(dropped | reference_dropped)
    if program.form == Form.PROBABILITY and figures["alpha"] != 0:
        # A difference of probabilities near 0 has no accurate logarithm.
        factor = figures["factor"]
        q, reference_q = (mine * factor).exp(), (expected * factor).exp()
        torch.testing.assert_close(q[both], reference_q[both], rtol=1e-3, atol=1e-6)
        # Only one side may keep a token whose probability is almost the floor, or whose q is almost
        # 0.
        p = z1.double().softmax(-1)[flipped] * len(z1)
        at_floor = (p / program.min_prob - 1).abs() < 1e-4
        assert (at_floor | (torch.maximum(q, reference_q)[flipped] < 1e-6)).all()
    else:
        # The contrast of two large logits may cancel: compare on the scale of its terms.
        weights = 1 + abs(figures["alpha"]) + abs(program.third_weight)
        size = float(z1.nan_to_num(neginf=0).abs().max()) + 1
        tolerance = 2e-5 * weights * size / figures["factor"]
        # An error of the divergence is multiplied by the halvings that it causes.
        relative = 2e-4 * (1 - math.log(figures["factor"]))
        torch.testing.assert_close(
            mine[both], expected[both], rtol=relative, atol=tolerance, equal_nan=True
        )
        for token in flipped.tolist():
            assert program.top_p < 1
            p = (z1.double() / program.top_p_temperature).softmax(-1)
            assert abs(float(p[z1 > z1[token]].sum()) - program.top_p) < 1e-5
    return len(flipped)
