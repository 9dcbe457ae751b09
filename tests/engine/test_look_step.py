"""The logits of the rows that take a candidate, without an engine."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from divserve.decoding.look import Look, LookState
from divserve.engine.order import ProbeOrder
from divserve.engine.worker import look_back
from divserve.engine.worker.look_back import LookBack
from divserve.engine.worker.look_step import FAR, LookStep, readable
from divserve.engine.worker.slots import Located, Slots
from divserve.engine.worker.staging import Staging

CPU = torch.device("cpu")
LOOK = Look(threshold=1.0, k=2, window=8, reference="generated", greedy=True)


def test_a_row_is_offered_its_own_candidates_only() -> None:
    """Candidates are at −KL, all other tokens far below; a broken row does not affect others."""
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


def test_only_alarms_are_ranked() -> None:
    """A clear row has no candidates, one that takes a candidate keeps its own; NaN is no alarm."""
    step: Any = SimpleNamespace(
        thresholds=torch.tensor([1.0, 1.0, 1.0, 1.0]),
        chosen=torch.tensor([False, True, False, False]),
        candidates=torch.tensor([[0.0, 0.0], [4.0, 2.0], [0.0, 0.0], [0.0, 0.0]]),
        candidate_cells=torch.arange(8).view(4, 2),
    )
    raw = torch.tensor([[1.0, 3.0, 2.0, 3.0, 0.0]]).repeat(4, 1)
    kl = torch.tensor([1.0, 0.5, 1.5, math.nan])
    found = LookStep._report(step, raw, kl, torch.arange(4, dtype=torch.int32), torch.arange(8.0))
    alarm, chosen, clear = (float(s) for s in (LookState.ALARM, LookState.CHOSEN, LookState.CLEAR))
    assert found[:3].tolist() == [
        [1.0, 1.0, alarm, 1.0, 3.0, 0.0, 1.0],
        [0.5, 2.0, chosen, 4.0, 2.0, 2.0, 3.0],
        [1.5, 3.0, clear, 0.0, 0.0, 4.0, 5.0],
    ]
    assert readable(found[3].tolist(), 2)[1:] == (4.0, clear)


def located_in(slots: Slots, req_ids: list[str]) -> Located:
    """The requests of a step in which all rows sample and none has drafts."""
    return slots.locate(req_ids, np.ones(len(req_ids), np.bool_), np.zeros(len(req_ids), np.int64))


class Requests:
    """A request "a" of 4 prompt tokens and 2 more that looks back, and where its rows are."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.slots, self.stage = Slots(), LookBack(CPU)
        self.slot = self.slots.take("a", ())
        self.stage.add(self.slot, LOOK, 4, 6)
        self.filled: list[Any] = []
        store = SimpleNamespace(fill=lambda fills, head: self.filled.extend(fills))
        monkeypatch.setattr(look_back, "store_of", lambda model: store)
        monkeypatch.setattr(LookStep, "run", lambda *args: torch.zeros(1, 7))

    def step(self, req_ids: list[str]) -> LookStep | None:
        """Lays out a batch and compares; returns what is sent to the device."""
        located = located_in(self.slots, req_ids)
        self.stage.lay_out(located.groups, located, Staging(CPU))
        any_model: Any = None
        self.stage.apply(torch.zeros(0), torch.zeros(0), any_model, any_model)
        return self.stage._step

    def add_probe(self, index: int, token: int) -> None:
        """Adds a probe as ``p<index>``, with a copied block from position 2."""
        order = ProbeOrder("a", index, token, copied=2)
        self.stage.add_probe(self.slots.add_probe(f"p{index}", "a", index), order)


def test_a_step_that_failed_leaves_nothing_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """By then its rows belong to another batch."""
    requests = Requests(monkeypatch)
    located = located_in(requests.slots, ["x", "x", "x", "a"])
    assert requests.stage.lay_out(located.groups, located, Staging(CPU))
    requests.stage.lose()
    assert requests.stage.kls.isnan().all()
    requests.step(["a"])
    assert requests.filled == []
    requests.stage.resume(requests.slot, 2)
    requests.step(["a"])
    assert requests.filled == [(0, 3, 5)]


def test_an_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each probe is read in one step; in the step of the last one the request takes a candidate."""
    requests = Requests(monkeypatch)
    first = requests.step(["a"])
    assert first is not None
    assert first.limits.tolist() == [[3], [look_back.NO_LIMIT], [8]]
    assert requests.stage.temperatures is not None
    assert requests.stage.temperatures.values.tolist() == [0.0]
    requests.filled.clear()
    requests.add_probe(0, 11)
    alone = requests.step(["x", "p0"])
    assert alone is not None
    assert (alone.rows.tolist(), alone.probe_cells.tolist()) == ([1], [0])
    assert alone.limits.tolist() == [[0], [3], [look_back.NO_LIMIT]]
    requests.add_probe(1, 12)
    requests.stage.choose([requests.slot])
    requests.stage.add(requests.slot, LOOK, 4, 9)
    last = requests.step(["p1", "x", "a"])
    assert last is not None
    assert last.rows.tolist() == [2, 0]
    assert last.choices.tolist() == [[2, 2], [11, 12], [0, 1]]
    assert (last.candidates.tolist(), last.candidate_cells.tolist()) == ([[11, 12]], [[0, 1]])
    assert requests.stage.temperatures.values.tolist() == [1.0]
    # The whole prefix once, then the copied block, then the request's own.
    assert requests.filled == [(1, 0, 3), (0, 2, 3), (2, 2, 3)]
    requests.stage.choose([])
    requests.slots.release("p0")
    requests.slots.release("p1")
    after = requests.step(["a"])
    assert after is not None
    assert (after.rows.tolist(), after.chosen.tolist()) == ([0], [False])


def test_probes_of_nobody_and_out_of_order(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = Requests(monkeypatch)
    with pytest.raises(ValueError, match="candidate 1 of 0"):
        requests.add_probe(1, 5)
    requests.stage.release(requests.slot)
    with pytest.raises(ValueError, match="candidate 0 of 0"):
        requests.add_probe(0, 5)
    requests.slots.release("a")
    with pytest.raises(KeyError):
        requests.add_probe(0, 5)
