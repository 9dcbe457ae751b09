"""What the rows that take a candidate are offered, without an engine."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch

from divserve.decoding.look import Look
from divserve.engine.worker.look_step import FAR, LookStep
from divserve.engine.worker.look_table import Looker, LookTable


def test_a_row_is_offered_its_own_candidates_only() -> None:
    """Each at −KL, all else far below them; what is broken in one row stays there."""
    step: Any = SimpleNamespace(
        chosen_rows=torch.tensor([2, 0]),
        choices=torch.tensor([[2, 2, 0, 0], [1, 4, 0, 3], [0, 1, 2, 3]]),
    )
    kls = torch.tensor([0.5, 2.0, math.nan, 1.0])
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    guided = logits.clone()
    LookStep._offer(step, guided, kls)
    assert torch.equal(guided[1], logits[1])
    assert guided[2, [1, 4]].tolist() == [-0.5, -2.0]
    others = guided[2, [0, 2, 3]]
    assert bool((others <= -2.0 - FAR).all())
    torch.testing.assert_close(others - others[0], logits[2, [0, 2, 3]] - logits[2, 0])
    assert guided[0].isnan().any()


def test_a_step_that_failed_leaves_nothing_to_the_next() -> None:
    """Its rows are those of another batch by then."""
    filled: list[Any] = []
    store: Any = SimpleNamespace(fill=lambda fills, head: filled.append(list(fills)))
    head: Any = None
    look = Look(threshold=1.0, k=2, window=8, reference="generated", greedy=True)
    table = LookTable(torch.device("cpu"), {"a": Looker(0, look, prompt=4, known=6)})
    table.kls = torch.zeros(8)
    assert table.plan([("a", 3)], {"a": 3}) is not None
    table.lose()
    table.fill(store, head)
    assert filled == []
    assert table.kls.isnan().all()
    table.resume("a", 2)
    assert table.plan([("a", 0)], {"a": 0}) is not None
    table.fill(store, head)
    assert [row for fills in filled for row, *_ in fills] == [0]
