"""Two tensor-parallel ranks: a fault on either of them ends the requests concerned, on both."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm import SamplingParams

from divserve.engine.scheduler.scheduler import LOST
from divserve.engine.worker.ranks import Ranks
from tests.engine import test_groups
from tests.support.engine import Engine, order, report_of, stacked
from tests.support.faulty_rank import FaultyWorker
from tests.support.hf import Reference
from tests.support.models import make_tiny
from tests.support.models_page import Row, record
from tests.support.platform import cpu_only
from tests.support.tops import ASKED, ONE_GUIDE, Reported, asking, wrong_of

PROMPT, GUIDE, TEXT = list(range(10, 60)), list(range(30, 60)), list(range(70, 150))
TOKENS = 8

pytestmark = [pytest.mark.long, cpu_only("one GPU has no second rank")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("three"), layers=3)


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[Engine]:
    """Two worker processes, and an amateur of the served model's own layers."""
    engine = Engine(
        model,
        tensor_parallel_size=2,
        amateurs={"amateur": "drop:1"},
        worker_cls=f"{FaultyWorker.__module__}.{FaultyWorker.__qualname__}",
    )
    yield engine
    engine.close()


def params(extra: dict[str, Any] | None) -> SamplingParams:
    return SamplingParams(
        temperature=0, max_tokens=TOKENS, ignore_eos=True, detokenize=False, extra_args=extra
    )


def run(engine: Engine) -> dict[str, Any]:
    """Runs guided, grounded, contrasted and plain requests in one batch; their outputs."""
    orders = {
        "cad": order("cad", GUIDE),
        "adacad": order("adacad", GUIDE[5:]),
        "vdgd": stacked([{"method": "vdgd", "grounding": "x"}], [None], grounding=TEXT),
        "contrastive": order("contrastive", None),
        "plain": None,
    }
    batch = [(PROMPT[i:], params(extra)) for i, extra in enumerate(orders.values())]
    return dict(zip(orders, engine.generate(batch), strict=True))


def tokens(output: Any) -> list[int]:
    return list(output.outputs[0].token_ids)


@pytest.fixture(scope="module")
def healthy(engine: Engine) -> dict[str, Any]:
    return run(engine)


def test_both_ranks_guide(healthy: dict[str, Any], model: Path) -> None:
    reference = Reference(model)
    for method, prompt, guide in (("cad", PROMPT, GUIDE), ("adacad", PROMPT[1:], GUIDE[5:])):
        expected = reference.greedy(prompt, guide, method, TOKENS)
        assert tokens(healthy[method]) == expected.tokens
    expected = reference.greedy(PROMPT[4:], None, "", TOKENS)
    assert tokens(healthy["plain"]) == expected.tokens


def test_all_kinds_of_groups(engine: Engine, model: Path) -> None:
    """Two guides, texts that are read, temperatures of guides, methods without a second stream."""
    reference, reported = Reference(model), Reported(engine)
    groups = test_groups.make_cases(reference, rounds=1)
    assert test_groups.mismatches(groups, test_groups.run(engine, groups)) == []
    asked = [group for group in groups if group.name in ONE_GUIDE]
    requests = [(c.prompt, test_groups.greedy(asking(c.order or {}, ASKED))) for c in asked]
    outputs = engine.generate(requests)
    assert wrong_of(reference, asked, outputs, reported.take(outputs)) == []
    assert set(engine.leftovers().values()) == {0}
    record(
        Row(
            "parallel",
            "`--tensor-parallel-size 2`",
            "every kind of group, amateurs `drop:N`; faults on either rank",
            "tiny Llama, float32, V1, CPU",
            "Hugging Face float32, token by token",
        )
    )


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("fault", "victims"),
    [
        ("an order is taken up", {"cad"}),
        ("a step is laid out", set()),
        ("a text is read", {"vdgd"}),
        ("logits are guided", {"cad", "adacad", "vdgd", "contrastive"}),
    ],
)
def test_a_fault_ends_the_requests_concerned(
    engine: Engine, healthy: dict[str, Any], fault: str, victims: set[str], rank: int
) -> None:
    """The scheduler hears from the first rank only; the others must not feed unguided tokens."""
    engine.llm.collective_rpc("fail_once", args=(fault, rank))
    got = run(engine)
    failed = {name for name, output in got.items() if output.outputs[0].finish_reason == "error"}
    assert failed <= victims
    assert failed or not victims
    for name in failed:
        report = report_of(got[name])
        assert report is not None
        assert report.error == LOST
        sent = tokens(got[name])
        assert sent == tokens(healthy[name])[: len(sent)]
    for name in got.keys() - failed:
        assert tokens(got[name]) == tokens(healthy[name])
    assert set(engine.leftovers().values()) == {0}
    assert {name: tokens(output) for name, output in run(engine).items()} == {
        name: tokens(output) for name, output in healthy.items()
    }


class Ended(BaseException):
    """Raised where the process would end."""


def test_ranks_that_cannot_act_together_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the other rank would wait forever. A single rank reports the fault as usual."""

    def end(process: int, by: int) -> None:
        assert process == os.getpid()
        raise Ended(by)

    monkeypatch.setattr(os, "kill", end)
    with pytest.raises(Ended), Ranks(SimpleNamespace(world_size=2)).together():
        raise RuntimeError("for this test")
    with pytest.raises(RuntimeError, match="for this test"), Ranks().together():
        raise RuntimeError("for this test")
