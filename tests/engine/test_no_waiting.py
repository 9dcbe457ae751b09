"""The steps of a GPU never wait for it: no value of the device decides what the host does next."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import divserve
import divserve_kernels
from divserve.engine.models import hidden_store
from divserve.engine.models.hidden_store import HiddenStore
from divserve.engine.worker.dropped import DroppedTokens
from divserve.engine.worker.look_step import LookStep
from divserve.engine.worker.third_streams import ThirdStreamCheck
from divserve.engine.worker.vocabulary import VocabularyCap
from divserve_kernels import Nearest, expected_row, guide, likeliest, nearest, top_logprobs
from divserve_kernels.selfcheck import example
from tests.support.step_calls import found

ENGINE, KERNELS = (Path(package.__path__[0]) for package in (divserve, divserve_kernels))
FILES = [
    *(ENGINE / "engine/worker").glob("*.py"),
    *(ENGINE / f"engine/models/{name}.py" for name in ("hidden_store", "linear_head")),
    # Not what runs on a CPU only, or not in a step.
    *(
        path
        for path in KERNELS.glob("*.py")
        if not any(word in path.stem for word in ("ahead", "numba", "reference", "selfcheck"))
    ),
]

HOST = "an array of the host"
ON_CPU = "asked of a CPU only"
DRAFTING = "waits: model runner V1 reads the tokens of each step, and these drafts, on the host"
PINNED = "to or from pinned memory"
ALLOWED = {
    "grounding.py: grounded.any()": HOST,
    "pipeline.py: positions.names.tolist()": HOST,
    "guide_tokens.py: drafts.any()": HOST,
    "slots.py: drafts.any()": HOST,
    "rejection.py: values.repeat_interleave(counts, output_size=num_tokens)": ON_CPU,
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
    "worker.py: ahead.wait()": "at start-up",
    "vocabulary.py: (caps < self._vocab).any()": HOST,
    "vocabulary.py: np.unique(caps[caps < self._vocab])": HOST,
    "vocabulary.py: np.unique(caps[caps < self._vocab]).tolist()": HOST,
    "look_back.py: cells[known]": HOST,
    "look_back.py: tokens[known]": HOST,
    "vocabulary.py: caps[caps < self._vocab]": HOST,
    "vocabulary.py: rows[caps == cap]": HOST,
    "hidden_store.py: slots.unique()": ON_CPU,
    "hidden_store.py: slots[lse[slots].isnan()]": ON_CPU,
    "torch_backend.py: guided[chosen]": ON_CPU,
    "torch_backend.py: primary[chosen]": ON_CPU,
    "torch_backend.py: out.copy_(source.index_select(0, index))": "stays on its device",
    "staging.py: self._target[used].copy_(self._host[used], non_blocking=True)": PINNED,
    "report.py: host.copy_(values, non_blocking=True)": PINNED,
    "streams.py: host.to(device, non_blocking=True)": PINNED,
    "streams.py: torch.tensor(values, dtype=dtype)": "stays on the host",
    "streams.py: torch.empty_like(host, pin_memory=True).copy_(host)": "within the host",
    "report.py: self.event.synchronize()": "when the output is collected, after the step",
    "report.py: self.failures.any()": "the copy on the host, after its event",
    "report.py: self.statistics.tolist()": "the copy on the host, after its event",
    "report.py: self.statistics.isnan().any()": "the copy on the host, after its event",
    "report.py: found[0][:, 0].isnan().any()": "the copy on the host, after its event",
    "report.py: values.numpy()": "the copy on the host, after its event",
    "report.py: self.top_values.tolist()": "the copy on the host, after its event",
    "top_tokens.py: places.tolist()": HOST,
    "top_tokens.py: asked[places].tolist()": HOST,
    "top_tokens.py: np.nonzero(rows != ABSENT)": HOST,
    "top_tokens.py: np.concatenate((of_row, of_side, own)).tolist()": HOST,
    "report.py: found.values.tolist()": "the copy on the host, after its event",
    "amateur_drafts.py: drafts.cpu()": DRAFTING,
    "amateur_drafts.py: self._draft(runner, rows, lengths).tolist()": DRAFTING,
    "amateur_drafts.py: starts.to(positions.device)": DRAFTING,
    "amateur_drafts.py: torch.from_numpy(batch.token_ids_cpu[rows, last])": DRAFTING,
    "amateur_drafts.py: torch.from_numpy(batch.token_ids_cpu[rows, last]).to(device)": DRAFTING,
    "amateur_drafts.py: torch.from_numpy(last)": DRAFTING,
    "amateur_drafts.py: torch.from_numpy(last).to(device)": DRAFTING,
    "amateur_drafts.py: torch.from_numpy(table.block_table.np[rows])": DRAFTING,
    "amateur_drafts.py: torch.from_numpy(table.block_table.np[rows]).to(runner.device)": DRAFTING,
    "lookup.py: counts.tolist()": HOST,
    "lookup.py: drafts.tolist()": HOST,
    "lookup.py: guides[guides != ABSENT]": HOST,
    "lookup.py: guides[guides != ABSENT].tolist()": HOST,
    "lookup.py: located.probes[:, 2].tolist()": HOST,
    "lookup.py: rows.tolist()": HOST,
    "lookup.py: self._rows.tolist()": HOST,
}
"""Calls and indexes, and why they do not wait or may."""


def test_nothing_in_a_step_waits() -> None:
    assert set().union(*map(found, FILES)) == ALLOWED.keys()


WAITS = """
x.item()
if (x > 0).any(): pass
torch.tensor(y, device=d).unbind()
y.to(device, non_blocking=True)
y.copy_(z)
known = ~x.isnan()
first, kept = 0, known & (x < 1)
x[known]
x[x == 1, 0]
y[0][kept] = 1
x.eq(z)[x.eq(z)]
"""
RUNS = """
z.sum()
z.any(-1)
z.to(torch.float32)
x[index]
x[0, 1:]
x[y is None]
torch.where(x > 0, x, 0)
"""


def test_what_waits_is_found(tmp_path: Path) -> None:
    path = tmp_path / "some.py"
    path.write_text(WAITS)
    assert found(path) == {
        f"some.py: {waits}"
        for waits in (
            "x.item()", "(x > 0).any()", "torch.tensor(y, device=d)",
            "y.to(device, non_blocking=True)", "y.copy_(z)", "x[known]", "x[x == 1, 0]",
            "y[0][kept]", "x.eq(z)[x.eq(z)]",
        )
    }  # fmt: skip
    path.write_text(RUNS)
    assert found(path) == set()


# On the device "meta" tensors have no values: whatever asks for one raises, also the truth of a
# tensor and a boolean index, which no list of names finds.
META = torch.device("meta")
VOCAB = 50


def model_of(weight: torch.Tensor) -> Any:
    """A model with this head."""
    return SimpleNamespace(lm_head=SimpleNamespace(weight=weight))


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> HiddenStore:
    """A store of 6 blocks of 4 positions, and two rows of up to 8 tokens."""
    model = model_of(torch.zeros(VOCAB, 8, device=META))
    layer = SimpleNamespace(kv_cache=torch.zeros(6, 1, 4, 8, device=META))
    store = HiddenStore(model, layer)
    store.bind()
    store.begin(
        SimpleNamespace(
            seq_lens=torch.zeros(2, dtype=torch.int32, device=META),
            block_table_tensor=torch.zeros(2, 2, dtype=torch.int32, device=META),
            slot_mapping=torch.zeros(3, dtype=torch.int64, device=META),
        )
    )
    near = Nearest(torch.zeros(3, device=META), torch.zeros(3, dtype=torch.int32, device=META))
    monkeypatch.setattr(hidden_store, "nearest", lambda *args, **kwargs: near)
    return store


def test_the_store_asks_for_no_value(store: HiddenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(hidden_store, "LOGITS", 64 * 4 * VOCAB)

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


def test_the_kernels_ask_for_no_value() -> None:
    """The portable back ends: Triton's launches depend on shapes alone."""
    logits, streams = example(META, 300)
    out = torch.empty_like(logits)
    for side in (None, logits[:2, :200]):
        assert guide(logits.bfloat16(), streams, side=side, out=out).shape[0] == len(streams)
    rows = torch.zeros(3, dtype=torch.int64, device=META)
    low = torch.zeros(3, dtype=torch.int32, device=META)
    table, states = torch.zeros(5, 4, dtype=torch.int32, device=META), out[:24].view(6, 4, 300)
    near = nearest(states, out[0], table, rows, low, low, out[:3], out[:3, 0], most=16)
    assert near.kl.shape == (3,)
    assert likeliest(out, out[:, 0] > 0, 7).shape == (len(out), 7)
    assert top_logprobs(logits.bfloat16(), rows, 7).shape == (3, 2, 7)
    assert expected_row(out, torch.zeros(300, 8, device=META)).shape == (len(out), 8)


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
        store = HiddenStore(model_of(weight), SimpleNamespace(kv_cache=states))
        store.bind()
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
