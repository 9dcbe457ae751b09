"""Methods with amateurs and temperature methods under drafts: the reference's tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from vllm import SamplingParams

from divserve.engine.models.drop import kept_layers
from tests.engine import test_amateurs
from tests.engine.cases import Case, mismatches
from tests.engine.test_amateurs import TOKENS, greedy, run
from tests.engine.test_speculation import Watched, both
from tests.support.drafter import Drafter
from tests.support.engine import counted, stacked
from tests.support.hf import Reference
from tests.support.hf_models import Trio, without_layers
from tests.support.models import make_tiny

pytestmark = pytest.mark.long

amateur, tuned = test_amateurs.amateur, test_amateurs.tuned
LAYERS, DROPPED = 6, 2
TIGHT = {"max_model_len": 256, "blocks": 14}
ONE = {"method": "contrastive"}
ADA, WARM, KL = (
    {"method": "adacad"}, {"method": "entropy_temperature", "theta": 2.0},
    {"method": "kl_temperature", "sigma": 3.0},
)  # fmt: skip
STACKS: dict[str, list[tuple[dict[str, Any], bool]]] = {
    "contrastive": [(ONE, False)],
    "contrastive and a temperature with a guide": [(ONE, False), (KL, True)],
    "contrastive and an entropy temperature": [(ONE, False), (WARM, False)],
    "proxy tuning": [({"method": "proxy_tuning"}, False)],
    "experts and a temperature with a guide": [({"method": "dexperts"}, False), (KL, True)],
    "a temperature with a guide": [(KL, True)],
    "an entropy temperature": [(WARM, False)],
    "a contrast and another guide": [(ADA, True), (KL, True)],
}
"""Methods of a request, and whether each has a guide."""


@dataclass
class Made:
    """A served model with amateurs, and what it should answer."""

    watched: Watched
    cases: list[tuple[Case, dict[str, Any] | None]]


@pytest.fixture(scope="module", params=["other models", "drop:N"])
def made(
    tmp_path_factory: pytest.TempPathFactory,
    amateur: Path,
    tuned: Path,
    request: pytest.FixtureRequest,
) -> Iterator[Made]:
    from transformers import AutoModelForCausalLM

    path = make_tiny(tmp_path_factory.mktemp("served"), layers=LAYERS)
    drops = request.param == "drop:N"
    dropped = sorted(set(range(LAYERS)) - set(kept_layers(LAYERS, DROPPED)))
    load = AutoModelForCausalLM.from_pretrained
    lesser = without_layers(path, dropped) if drops else load(amateur).float().eval()
    reference = Reference(path)
    trio = Trio(reference, lesser, load(tuned).float().eval())
    cases = test_amateurs.made_cases(trio, reference)
    names = {"amateur": f"drop:{DROPPED}" if drops else str(amateur), "tuned": str(tuned)}
    watched = Watched(path, [], amateurs=names, **TIGHT)
    yield Made(watched, cases)
    watched.engine.close()


def test_a_mixed_batch_equals_the_reference(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """All methods and plain requests, in a tight cache; the drafts are mostly right."""
    watched, cases = made.watched, made.cases
    answers = [(case.prompt, case.expected.tokens) for case, _ in cases]
    monkeypatch.setattr(Drafter, "answers", answers)
    preempted = counted(watched.engine.scheduler, "_preempt_request")
    for _ in range(2):
        outputs = run(watched.engine, cases)
        found = [list(o.outputs[0].token_ids) for o in outputs]
        assert mismatches([case for case, _ in cases], found) == []
        assert set(watched.engine.leftovers().values()) == {0}
    assert preempted
    assert watched.uneven == []
    assert watched.accepted > len(cases) * TOKENS // 2
    assert watched.rejected > len(cases)


@pytest.mark.parametrize("warm", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("stack", STACKS)
def test_statistics_and_logprobs_are_those_without_drafts(
    made: Made, stack: str, warm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the sampled request's law only the likeliest token is left, which temperatures keep."""
    watched, bodies = made.watched, [body for body, _ in STACKS[stack]]
    prompt, guides = list(range(20, 60)), iter((list(range(60, 90)), list(range(100, 115))))
    heat = 1.0 if warm else 0.0
    extra = stacked(bodies, [next(guides) if has else None for _, has in STACKS[stack]], heat)
    fields: dict[str, Any] = {"temperature": 1.0, "top_k": 1} if warm else {}
    params: SamplingParams = greedy(extra, logprobs=5, **fields)
    accepted = watched.accepted
    (expected, rows), (answer, drafted) = both(watched, prompt, params, monkeypatch)
    assert list(answer.token_ids) == list(expected.token_ids)
    assert drafted == [pytest.approx(row, rel=1e-3, abs=1e-3, nan_ok=True) for row in rows]
    assert len(drafted) == TOKENS
    assert watched.accepted - accepted > TOKENS // 2
    for got, wanted in zip(answer.logprobs, expected.logprobs, strict=True):
        assert got.keys() & wanted.keys()
        for token in got.keys() & wanted.keys():
            assert got[token].logprob == pytest.approx(wanted[token].logprob, abs=1e-3)
    assert watched.uneven == []
