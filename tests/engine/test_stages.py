"""The worker's state by slot, without an engine: what a step sends, and what a slot forgets."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from vllm import SamplingParams

from divserve.decoding import Form, Look, Program
from divserve.engine.order import GroupOrder, ProbeOrder, RowOrder, TextOrder, row_order_params
from divserve.engine.reported import NOTHING_GUIDED
from divserve.engine.worker import amateurs, contrast, report, staging
from divserve.engine.worker.forward import Forward
from divserve.engine.worker.guidance import GuidanceStages
from divserve.engine.worker.ranks import Ranks
from divserve.engine.worker.slots import SLOTS, Slots
from divserve.engine.worker.staging import Staging
from divserve.engine.worker.top_tokens import TopStep
from divserve.engine.worker.vocabulary import VocabularyCap

CPU = torch.device("cpu")
VOCAB = 12
PLAIN = GroupOrder(
    program=Program(alpha=0.5),
    guides=(),
    temperature_program=None,
    grounded=False,
    amateurs=0,
    vocab=None,
    output=(),
    look=None,
)


def pair(name: str, **fields: Any) -> GroupOrder:
    """An order of a group with one guide."""
    return replace(PLAIN, guides=(f"{name}~guide",), **fields)


class Worker:
    """Stages, and a batch with random logits."""

    def __init__(self) -> None:
        self.stages = GuidanceStages(VOCAB, CPU, Ranks())
        self.params: dict[str, dict[str, Any]] = {}
        """Sampling parameters of requests, where they are not the defaults."""
        self.guidance = NOTHING_GUIDED
        """The report of the last step."""

    def observe(self, *finished: str, **new: RowOrder) -> None:
        """Passes on a scheduler's output: requests that have ended, and new ones."""
        rows = [
            SimpleNamespace(
                req_id=name,
                sampling_params=SamplingParams(
                    extra_args=row_order_params(order), **self.params.get(name, {})
                ),
                prompt_token_ids=[1, 2, 3],
                prefill_token_ids=None,
            )
            for name, order in new.items()
        ]
        cached = SimpleNamespace(req_ids=[], num_output_tokens=[], resumed_req_ids=set())
        output: Any = SimpleNamespace(
            finished_req_ids=set(finished), scheduled_new_reqs=rows, scheduled_cached_reqs=cached
        )
        self.stages.observe(output)

    def step(self, *req_ids: str, idle: tuple[str, ...] = ()) -> tuple[set[str], torch.Tensor]:
        """Runs a step on random logits; returns which requests were guided, and the logits."""
        samples = np.array([name not in idle for name in req_ids], np.bool_)
        logits = torch.randn(len(req_ids), VOCAB, generator=torch.Generator().manual_seed(0))
        if not self.stages.place(list(req_ids), samples):
            return set(), logits
        nothing: Any = torch.nn.Module()
        guided = self.stages.guide(logits, Forward(nothing, nothing, logits))
        assert guided is not None
        self.stages.sampled_from(guided[0])
        self.guidance = guided[1].copied().collect()
        return set(self.guidance.statistics), guided[0]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Staging]:
    """Every `Staging` that has sent something."""
    found: list[Staging] = []
    send = Staging.send

    def noting(self: Staging) -> None:
        found.append(self)
        send(self)

    monkeypatch.setattr(Staging, "send", noting)
    return found


def test_a_layout_is_sent_once(sent: list[Staging]) -> None:
    """In one copy; the same rows again send nothing, changed rows or changed sampling rows do."""
    worker = Worker()
    worker.observe(a=pair("a"), b=pair("b", vocab=5))
    batch = ("a", "x", "b~guide", "a~guide", "b")
    for _ in range(3):
        assert worker.step(*batch)[0] == {"a", "b"}
    assert len(sent) == 1
    assert worker.step(*batch[::-1])[0] == {"a", "b"}
    assert len(sent) == 2
    assert worker.step(*batch[::-1], idle=("a~guide",))[0] == {"b"}
    assert worker.step(*batch[::-1])[0] == {"a", "b"}
    worker.observe("b", "b~guide")
    assert worker.step(*batch[::-1])[0] == {"a"}
    assert len(sent) == 5


def test_guides_take_their_primaries_tokens() -> None:
    worker = Worker()
    worker.observe(a=replace(pair("a"), guides=("a~1", "a~2"), temperature_program=Program(form=0)))
    worker.observe(b=pair("b"))
    worker.step("a~2", "x", "b", "a", "b~guide", "a~1")
    sampled = torch.arange(6)[:, None]
    worker.stages.copy_tokens(sampled)
    assert sampled[:, 0].tolist() == [3, 1, 2, 3, 2, 3]


FULL = {
    "capped": pair("a", vocab=5),
    "drops and forbids": pair("a", program=Program(alpha=0.5, log_plausibility=-0.5)),
    "looks back": replace(PLAIN, look=Look(9.0, 2, 0, "prefix", True)),
    "grounded": pair("a", grounded=True),
    "amateurs": replace(PLAIN, amateurs=2),
    "likeliest tokens": pair("a", top=3),
    "two programs": replace(
        PLAIN,
        guides=("a~guide", "a~second"),
        temperature_program=Program(form=float(Form.OBSERVE), kl_rate=2.0),
    ),
}


@pytest.mark.parametrize("before", FULL.values(), ids=FULL.keys())
def test_a_slot_that_is_used_again_forgets(
    before: GroupOrder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next group in the slot is guided as in one that was never used."""
    side = torch.zeros(2, VOCAB)
    monkeypatch.setattr(amateurs, "amateur_logits", lambda *args: side)
    after = replace(pair("b"), program=Program(alpha=1.0))
    fresh, used = Worker(), Worker()
    used.params = {"a": {"allowed_token_ids": [1]}}
    after = replace(after, program=after.program._replace(log_plausibility=-0.5))
    text = {"t": TextOrder("a", 4, average=False)} if before.grounded else {}
    probe = {"p": ProbeOrder("a", 0, 7, copied=0)} if before.look else {}
    used.observe(a=before, **text, **probe)
    assert used.step("a", *before.guides, "p")[0] == {"a"}
    used.observe("a", "t", b=after)
    fresh.observe(b=after)
    # The probe is still in the batch.
    (_, expected), (names, found) = (w.step("p", "b", "b~guide", "a") for w in (fresh, used))
    assert names == {"b"}
    assert torch.equal(found, expected)
    assert used.stages.temperatures is None
    assert used.stages._pipeline.look_back._step is None
    assert used.stages._pipeline.top_step is None
    assert used.stages._slots.find("b") == 0


def test_likeliest_tokens_that_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The step has no report then, so the scheduler ends its requests; the next one has."""
    worker, batch = Worker(), ("b", "a", "b~guide", "a~guide")
    worker.observe(a=pair("a", top=2), b=pair("b"))
    guided, logits = worker.step(*batch)
    assert guided == {"a", "b"}
    ((top,),) = worker.guidance.tops.values()
    assert [len(ids) for ids, _ in top] == [2, 2, 2]
    assert top[2][0] == tuple(logits[1].topk(2).indices.tolist())
    with monkeypatch.context() as patched:
        patched.setattr(TopStep, "add_guided", Mock(side_effect=RuntimeError("for this test")))
        assert worker.step(*batch)[0] == set()
    assert "Reading the likeliest tokens of a step" in caplog.text
    assert worker.step(*batch)[0] == {"a", "b"}
    worker.observe("a", "a~guide")
    assert worker.step("b", "b~guide")[0] == {"b"}
    assert worker.guidance.tops == {}


def test_more_groups_than_slots() -> None:
    """The tables by slot grow, and ended groups make room for others."""
    worker = Worker()
    count = 2 * SLOTS + 3
    names = [f"g{number}" for number in range(count)]
    orders = {name: pair(name, vocab=VOCAB - 1 - i % 4) for i, name in enumerate(names)}
    worker.observe(**orders)
    worker.observe(*names[::2])
    worker.observe(**{f"h{i}": pair(f"h{i}") for i in range((count + 1) // 2)})
    slots = worker.stages._slots
    assert sorted(slots._slots.values()) == list(range(len(slots)))
    batch = [one for name in slots._slots for one in (name, f"{name}~guide")]
    guided, logits = worker.step(*batch)
    assert guided == set(slots._slots)
    for name in names[1::2]:
        vocab = orders[name].vocab
        row = logits[batch.index(name)]
        assert vocab is not None
        assert (row == -math.inf).tolist() == [token >= vocab for token in range(VOCAB)]


def test_a_preempted_group_keeps_its_slot() -> None:
    worker = Worker()
    worker.observe(a=pair("a"), b=pair("b"))
    slot = worker.stages._slots.find("a")
    worker.observe(a=pair("a"))
    assert worker.stages._slots.find("a") == slot
    assert len(worker.stages) == 2
    assert worker.step("a", "a~guide")[0] == {"a"}


@pytest.mark.parametrize("moment", ["add", "lay_out"])
def test_a_fault_in_one_group_leaves_the_others(
    moment: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker()
    method = getattr(VocabularyCap, moment)

    def failing(stage: VocabularyCap, *args: Any) -> None:
        if moment == "add" and args[1].vocab == 7:
            raise ValueError("for this test")
        method(stage, *args)
        if moment == "lay_out" and 7 in (cap for _, cap in stage._capped):
            raise ValueError("for this test")

    monkeypatch.setattr(VocabularyCap, moment, failing)
    worker.observe(a=pair("a"), bad=pair("bad", vocab=7), c=pair("c", vocab=8))
    batch = ("c", "bad", "a", "a~guide", "bad~guide", "c~guide")
    guided, logits = worker.step(*batch)
    assert guided == {"a", "c"}
    raw = torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(0))
    assert [not torch.equal(mine, its) for mine, its in zip(logits, raw, strict=True)] == [
        True, False, True, False, False, False,
    ]  # fmt: skip
    assert "requests concerned end with an error" in caplog.text


def test_orders_that_make_no_sense_are_not_taken_up() -> None:
    worker = Worker()
    worker.observe(a=replace(PLAIN, guides=("1", "2", "3")), b=pair("b"))
    assert len(worker.stages._slots) == 1
    many = {f"g{number}": pair(f"g{number}") for number in range(SLOTS - 1)}
    temperature = Program(form=float(Form.OBSERVE), kl_rate=1.0)
    worker.observe(**many, one_more=replace(PLAIN, temperature_program=temperature))
    assert len(worker.stages._slots) == SLOTS
    with pytest.raises(ValueError, match="3 guides"):
        Slots().take("a", ("1", "2", "3"))


def test_what_does_not_fit_one_copy_takes_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values, shapes and dtypes arrive, also of arrays that are not contiguous or empty."""
    monkeypatch.setattr(staging, "CHUNK", 64)
    given = [
        np.arange(3, dtype=np.int64),
        np.array([True, False, True]),
        np.arange(6, dtype=np.int32).reshape(2, 3).T,
        np.linspace(0, 1, 5, dtype=np.float32),
        np.zeros((0, 0), np.float32),
        np.arange(40, dtype=np.int64).reshape(4, 10),
        np.arange(27, dtype=np.float32).reshape(3, 9),
        np.arange(2, dtype=np.int64),
    ]
    made = Staging(CPU)
    tensors = [made.put(values) for values in given]
    made.send()
    for values, tensor in zip(given, tensors, strict=True):
        assert tensor.shape == values.shape
        assert np.array_equal(tensor.numpy(), values)
        assert tensor.dtype == staging.DTYPES[values.dtype]


def test_a_device_gets_its_values_by_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: the tensors belong to another buffer, which receives everything at once."""
    made = Staging(CPU)
    made._target = torch.empty_like(made._host)
    tensors = [made.put(np.arange(n, dtype=np.int64)) for n in (1, 2, 3)]
    copies: list[Any] = []
    copy = torch.Tensor.copy_

    def counted(self: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        copies.append(options)
        return copy(self, *args, **options)

    monkeypatch.setattr(torch.Tensor, "copy_", counted)
    made.send()
    assert copies == [{"non_blocking": True}]
    assert [tensor.tolist() for tensor in tensors] == [[0], [0, 1], [0, 1, 2]]


def test_which_steps_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """All steps on a CPU; one in `TIMED_EVERY` on a GPU, where timing takes two events."""
    assert all(report.Timer.for_step(CPU, step) for step in range(3))
    monkeypatch.setattr(report.Timer, "_mark", lambda self: None)
    timed = [report.Timer.for_step(torch.device("cuda"), step) for step in range(33)]
    assert [step for step, timer in enumerate(timed) if timer] == [0, 16, 32]


def test_no_guided_row_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of plain requests is not touched."""
    monkeypatch.setattr(contrast, "guide", None)
    worker = Worker()
    worker.observe(a=pair("a"))
    assert worker.step("x", "y", "a", idle=("a",))[0] == set()
