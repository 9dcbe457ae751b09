"""A step's comparison with a window of its past, by what is kept of it: hidden states or log-probs.

The part of `bench.look_back` that needs no engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import product

import torch
from rich.progress import Progress
from torch import Tensor

from bench.rounds import Figures, keep, rotated
from bench.sizes import ON_GPU, Model, synchronize
from divserve_kernels.history import expected_row, nearest

__all__ = ["distributions"]

BLOCK = 32
BATCHES = (1, 8)
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
EVICT = 1 << 26
"""Numbers that are overwritten between calls, as a forward would do."""


def sides(model: Model, rows: int, window: int) -> dict[str, Callable[[], Tensor]]:
    """Functions that return a step's smallest KLs ``[rows]``, by what is kept of the window."""
    vocab, hidden, pages = model.vocab, model.hidden, -(-window // BLOCK)
    weight = torch.randn(vocab, hidden, device=DEVICE) * 0.13
    states = torch.randn(rows * pages, BLOCK, hidden, device=DEVICE)
    tables = torch.arange(rows * pages, dtype=torch.int32, device=DEVICE).view(rows, pages)
    lse = torch.empty(rows * pages * BLOCK + 1, device=DEVICE)
    index = torch.arange(rows, device=DEVICE)
    # The last place is for the step's own.
    ring = torch.empty(rows, window + 1, vocab, device=DEVICE)
    for row in range(rows):
        logits = states.view(rows, -1, hidden)[row] @ weight.T
        lse[:-1].view(rows, -1)[row] = logits.logsumexp(-1)
        ring[row, :window] = logits[:window].log_softmax(-1)
    raw = torch.randn(rows, hidden, device=DEVICE) @ weight.T
    first, stop = (
        torch.full((rows,), edge, dtype=torch.int32, device=DEVICE) for edge in (0, window)
    )

    def by_states() -> Tensor:
        probs = (raw - raw.logsumexp(-1)[:, None]).exp()
        entropy, mu = -torch.special.entr(probs).sum(-1), expected_row(probs, weight)
        return nearest(states, lse, tables, index, first, stop, mu, entropy, most=window).kl

    def by_log_probs(kept: Tensor) -> Tensor:
        own = raw.log_softmax(-1)
        probs = own.exp()
        kept[:, window] = own
        cross = torch.bmm(kept[:, :window], probs.to(kept.dtype)[:, :, None])[:, :, 0]
        return ((probs * own).sum(-1, keepdim=True) - cross.float()).amin(-1)

    kept = {"float32 log-probs": ring, "float16 log-probs": ring.half()}
    return {"states": by_states} | {n: lambda ring=r: by_log_probs(ring) for n, r in kept.items()}


def distributions(
    model: Model, rounds: int, _tokens: int, progress: Progress
) -> Iterator[tuple[str, Figures]]:
    """A step's comparison with the window: from hidden states, and from kept log-probs."""
    scratch = torch.zeros(EVICT, device=DEVICE)
    for window, rows in product((32, 128, 1024), BATCHES):
        case, figures = f"{rows} rows, window {window}", Figures()
        calls = sides(model, rows, window)
        for number in progress.track(range(3 * rounds + 1), description=case):
            kl, found = {}, {}
            for name in rotated(list(calls), number):
                scratch.add_(1)
                synchronize()
                start = time.perf_counter()
                kl[name] = calls[name]()
                synchronize()
                found[f"{name}, ms"] = 1e3 * (time.perf_counter() - start)
            for name in list(calls)[1:]:
                found[f"{name} / states"] = found[f"{name}, ms"] / found["states, ms"]
                found[f"{name}: KL off by"] = float((kl[name] - kl["states"]).abs().max())
            keep(figures, found, number)
        yield case, figures
