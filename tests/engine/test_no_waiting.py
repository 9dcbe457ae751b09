"""The steps of a GPU never wait for it: no value of the device decides what the host does next."""

from __future__ import annotations

import ast
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import divserve
from divserve.engine.models import hidden_store
from divserve.engine.models.hidden_store import HiddenStore
from divserve.engine.worker.dropped import DroppedTokens
from divserve.engine.worker.look_step import LookStep
from divserve.engine.worker.third_streams import ThirdStreamCheck
from divserve.engine.worker.vocabulary import VocabularyCap
from divserve_kernels import Nearest

ROOT = Path(divserve.__file__).parent / "engine"
FILES = [*sorted((ROOT / "worker").glob("*.py")), ROOT / "models/hidden_store.py"]
WAITING = {
    "all", "any", "argwhere", "cpu", "item", "masked_select", "nonzero", "numpy", "synchronize",
    "tolist", "unique", "wait",
}  # fmt: skip
"""Methods that read a tensor's values."""
COPYING = ("torch.as_tensor", "torch.tensor", "torch.from_numpy")
"""They copy to a device from memory that is not pinned."""

HOST = "an array of the host"
ALLOWED = {
    "grounding.py: grounded.any()": HOST,
    "pipeline.py: groups.names.tolist()": HOST,
    "guide_tokens.py: np.nonzero(groups.rows[:, 1:] != ABSENT)": HOST,
    "look_back.py: located.probes.tolist()": HOST,
    "look_back.py: np.nonzero(known)": HOST,
    "look_back.py: own.any()": HOST,
    "look_back.py: places.tolist()": HOST,
    "look_back.py: request['limits'].tolist()": HOST,
    "look_back.py: requests['k'].tolist()": HOST,
    "look_back.py: rows[fresh].tolist()": HOST,
    "ranks.py: flags.numpy()": HOST,
    "ranks.py: torch.from_numpy(well.astype(np.int32))": "stays on the host",
    "runner_v2.py: input_batch.seq_lens_cpu_upper_bound.numpy()": HOST,
    "sampled_rows.py: (states.top_k.np[slots] != states.vocab_size).any()": HOST,
    "sampled_rows.py: (states.top_p.np[slots] != 1).any()": HOST,
    "sampled_rows.py: sampler.penalties_state.use_penalty[slots].any()": HOST,
    "slots.py: np.nonzero(table[:, MEMBERS:] != ABSENT)": HOST,
    "staging.py: self._host.view(dtype).numpy()": HOST,
    "temperature.py: places.tolist()": HOST,
    "vocabulary.py: (caps < self._vocab).any()": HOST,
    "vocabulary.py: np.unique(caps[caps < self._vocab])": HOST,
    "vocabulary.py: np.unique(caps[caps < self._vocab]).tolist()": HOST,
    "look_step.py: near.any()": "asked of a CPU only",
    "hidden_store.py: slots.unique()": "asked of a CPU only",
    "report.py: self.event.synchronize()": "when the output is collected, after the step",
    "report.py: self.failures.any()": "the copy on the host, after its event",
    "report.py: self.statistics.tolist()": "the copy on the host, after its event",
    "report.py: self.statistics.isnan().any()": "the copy on the host, after its event",
    "report.py: found.values.tolist()": "the copy on the host, after its event",
}
"""Calls that do not wait, and why."""


def calls(path: Path) -> set[str]:
    """The calls in a file that may wait for the device."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {
        f"{path.name}: {ast.unparse(call)}"
        for call in found
        if isinstance(call.func, ast.Attribute)
        and (call.func.attr in WAITING or ast.unparse(call.func) in COPYING)
    }


def test_no_call_in_a_step_waits() -> None:
    assert set().union(*map(calls, FILES)) == ALLOWED.keys()


def test_such_calls_are_found(tmp_path: Path) -> None:
    path = tmp_path / "some.py"
    path.write_text("x.item()\nif (x > 0).any():\n  torch.tensor(y, device=d).unbind()\nz.sum()\n")
    assert calls(path) == {
        "some.py: x.item()", "some.py: (x > 0).any()", "some.py: torch.tensor(y, device=d)",
    }  # fmt: skip


# On the device "meta" tensors have no values: whatever asks for one raises, also the truth of a
# tensor and a boolean index, which no list of names finds.
META = torch.device("meta")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> HiddenStore:
    """A store of 6 blocks of 4 positions, and two rows of up to 8 tokens."""
    model: Any = SimpleNamespace(lm_head=SimpleNamespace(weight=torch.zeros(50, 8, device=META)))
    layer = SimpleNamespace(kv_cache=torch.zeros(6, 1, 4, 8, device=META))
    store = HiddenStore(model, layer)
    store.begin(
        SimpleNamespace(
            seq_lens=torch.zeros(2, dtype=torch.int32, device=META),
            block_table_tensor=torch.zeros(2, 2, dtype=torch.int32, device=META),
            slot_mapping=torch.zeros(3, dtype=torch.int64, device=META),
        )
    )
    near = Nearest(torch.zeros(3, device=META), torch.zeros(3, dtype=torch.int32, device=META))
    monkeypatch.setattr(hidden_store, "nearest", lambda *args, **kwargs: near)
    monkeypatch.setattr(hidden_store, "expected_row", lambda probs, weight: probs[:, :8])
    return store


def test_the_store_asks_for_no_value(store: HiddenStore) -> None:
    sizes: list[int] = []

    def head(states: torch.Tensor) -> torch.Tensor:
        sizes.append(len(states))
        return torch.zeros(len(states), 50, device=META)

    store.copied([(1, 2), (3, 4)], 6)
    store.fill([(0, 0, 70), (1, 2, 8)], head)
    assert sizes == [64, 12]
    with pytest.raises(NotImplementedError):
        hidden_store._unknown(torch.zeros(3, dtype=torch.int64, device=META), store.lse)


def test_a_step_asks_for_no_value(store: HiddenStore) -> None:
    def indices(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int64, device=META)

    step = LookStep(
        rows=indices(3),
        limits=indices(3, 3).int(),
        most=8,
        thresholds=torch.zeros(2, device=META),
        chosen=indices(2).bool(),
        chosen_rows=indices(1),
        choices=indices(3, 2),
        candidates=torch.zeros(2, 2, device=META),
        candidate_cells=indices(2, 2),
        probe_cells=indices(1),
    )
    logits = torch.zeros(4, 50, device=META)
    found = step.run(logits, logits.clone(), store, torch.zeros(8, device=META))
    assert found.shape == (2, 7)
    dropped, capped, third = DroppedTokens(), VocabularyCap(50), ThirdStreamCheck()
    dropped._rows, capped._capped, third._places_rows = indices(2), [(indices(2), 9)], indices(2, 1)
    dropped.apply(logits, dropped.raw(logits))
    capped.apply(logits)
    third.apply(logits, torch.zeros(3, 5, device=META))


def test_log_sum_exps_are_computed_once_on_a_cpu_and_the_same_everywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a GPU computes again is not stored again: shared blocks keep their values."""
    weight = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    states = torch.randn(6, 1, 4, 8, generator=torch.Generator().manual_seed(1))
    expected = (states[:, 0] @ weight.T).logsumexp(-1).view(-1)
    spans = [(0, 0, 8), (1, 2, 7)]
    slots = [8, 9, 10, 11, 4, 5, 6, 7, 10, 11, 20, 21, 22]
    for on_cpu in (True, False):
        if not on_cpu:
            monkeypatch.setattr(hidden_store, "_unknown", lambda slots, lse: slots)
        model: Any = SimpleNamespace()
        store = HiddenStore(model, SimpleNamespace(kv_cache=states))
        store._table = torch.tensor([[2, 1], [2, 5]], dtype=torch.int32)
        store.lse[9] = 7.0
        seen: list[int] = []

        def head(rows: torch.Tensor, seen: list[int] = seen) -> torch.Tensor:
            seen.append(len(rows))
            return rows @ weight.T

        store.fill(spans, head)
        assert sum(seen) == (10 if on_cpu else 13)
        known = expected.clone()
        known[9] = 7.0
        torch.testing.assert_close(store.lse[slots], known[slots])
        rest = sorted({*range(25)} - {*slots})
        assert store.lse[rest].isnan().all()
    assert math.isnan(float(store.lse[-1]))
