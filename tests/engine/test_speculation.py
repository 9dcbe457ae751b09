"""Speculative decoding of groups: the same tokens, statistics and logprobs in fewer steps."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from vllm import SamplingParams

from divserve.decoding import STATISTICS
from divserve.engine.scheduler.governor import OPTION
from tests.engine import test_groups
from tests.engine.test_groups import TOKENS, Case, greedy, mismatches
from tests.support import hf
from tests.support.drafter import Drafter, speculative_config
from tests.support.engine import Engine, report_of
from tests.support.tops import ASKED, ONE_GUIDE, Reported, asking, wrong_of

ROOMY: dict[str, Any] = {"max_num_seqs": 32, "max_num_batched_tokens": 256}
SCARCE: dict[str, Any] = {"blocks": 20, "max_model_len": 512}
SHORT: dict[str, Any] = {"max_num_batched_tokens": 32, "max_num_seqs": 8}


@pytest.fixture(scope="module")
def cases(tiny_reference: hf.Reference) -> list[Case]:
    """Every kind of group, with prompts of one token and more, and plain requests."""
    return test_groups.make_cases(tiny_reference, rounds=2)


class Watched:
    """An engine with a drafter, and what it drafts."""

    def __init__(self, model: Any, cases: list[Case], **options: Any) -> None:
        Drafter.answers = [(case.prompt, case.expected.tokens) for case in cases]
        # All of its drafts are verified, whatever they cost here.
        options.setdefault("additional_config", {OPTION: False})
        options.setdefault("speculative_config", speculative_config())
        self.engine = Engine(model, **options)
        self.steps = self.accepted = self.rejected = 0
        self.uneven: list[str] = []
        self.rows: dict[str, list[tuple[float, ...]]] = {}
        self._update = self.engine.scheduler.update_from_output
        self.engine.scheduler.update_from_output = self.update

    def update(self, output: Any, made: Any) -> Any:
        """Counts drafts; notes members that have been given others than their primary."""
        self.steps += 1
        groups = [*self.engine.scheduler.groups]
        for name, drafts in output.scheduled_spec_decode_tokens.items():
            taken = made.sampled_token_ids[made.req_id_to_index[name]]
            if "~" not in name:
                self.accepted += max(len(taken) - 1, 0)
                self.rejected += len(drafts) - max(len(taken) - 1, 0)
        for group in groups:
            if len(group.members) > 1 and group.name in output.num_scheduled_tokens:
                self._compare(group, output, made)
        outputs = self._update(output, made)
        for step in outputs.values():
            for one in step.outputs:
                if (report := report_of(one)) is not None:
                    self.rows.setdefault(one.request_id, []).extend(report.statistics)
        return outputs

    def _compare(self, group: Any, output: Any, made: Any) -> None:
        def of(name: str) -> Any:
            drafts = output.scheduled_spec_decode_tokens.get(name)
            return drafts, made.sampled_token_ids[made.req_id_to_index[name]]

        own = of(group.name)
        for guide in group.guides:
            if own[1] and of(guide.request_id) != own:
                self.uneven.append(guide.request_id)


@pytest.fixture(scope="module", params=[ROOMY, SCARCE, SHORT], ids=["roomy", "scarce", "short"])
def watched(tiny: Any, cases: list[Case], request: pytest.FixtureRequest) -> Iterator[Watched]:
    watched = Watched(tiny, cases, **request.param)
    yield watched
    watched.engine.close()


def test_tokens_are_those_without_drafts(watched: Watched, cases: list[Case]) -> None:
    watched.rows.clear()
    answers = test_groups.run(watched.engine, cases)
    assert mismatches(cases, answers) == []
    assert watched.uneven == []
    assert watched.accepted > 10 * len(cases)
    assert watched.rejected > len(cases)
    assert set(watched.engine.leftovers().values()) == {0}
    guided = [rows for rows in watched.rows.values() if rows]
    assert len(guided) == sum(case.order is not None for case in cases)
    for rows in guided:
        assert len(rows) == TOKENS
        assert all(len(row) >= len(STATISTICS) for row in rows)


def test_likeliest_tokens_of_accepted_positions(
    watched: Watched, cases: list[Case], tiny_reference: hf.Reference
) -> None:
    """One entry for each token that was taken, as without drafts; others do not ask."""
    asked = [case for case in cases if case.name in ONE_GUIDE]
    reported, accepted = Reported(watched.engine), watched.accepted
    requests = [(case.prompt, greedy(asking(case.order or {}, ASKED))) for case in asked]
    outputs = watched.engine.generate([*requests, *((c.prompt, greedy(c.order)) for c in cases)])
    tops = reported.take(outputs)
    assert wrong_of(tiny_reference, asked, outputs[: len(asked)], tops[: len(asked)]) == []
    assert tops[len(asked) :] == [[]] * len(cases)
    assert watched.accepted - accepted > 10 * len(cases)


def both(
    watched: Watched, prompt: list[int], params: SamplingParams, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[Any, list[tuple[float, ...]]]]:
    """The answer and its statistics: without drafts, then with those of the answer itself."""
    found = []
    for drafts in (False, True):
        monkeypatch.setattr(Drafter, "drafts", drafts)
        watched.rows.clear()
        (output,) = watched.engine.generate([(prompt, params.clone())])
        answer = output.outputs[0]
        monkeypatch.setattr(Drafter, "answers", [(prompt, list(answer.token_ids))])
        found.append((answer, [row for rows in watched.rows.values() for row in rows]))
    return found


WAYS: dict[str, dict[str, Any]] = {
    "logprobs": {"logprobs": 3},
    "penalties": {"frequency_penalty": 0.4, "repetition_penalty": 1.3},
    "min_tokens": {"min_tokens": 9, "ignore_eos": False},
    "bad words": {"allowed_token_ids": list(range(5, 300))},
    "length": {"max_tokens": 7},
    "top-k": {"temperature": 1.0, "top_k": 1},
    "stop": {"stop_token_ids": []},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["cad", "cad+vdgd", "two guides", "plain"])
def test_answers_with_drafts_end_alike(
    watched: Watched, cases: list[Case], name: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens, ends, log-probs and statistics; the drafts are those that should be accepted."""
    case = next(case for case in cases if case.name == name)
    fields = dict(WAYS[way])
    if way == "stop":
        # Within the drafts of a step.
        fields["stop_token_ids"] = [case.expected.tokens[6]]
    params = greedy(case.order, **fields)
    before = watched.steps
    (expected, rows), (answer, drafted) = both(watched, case.prompt, params, monkeypatch)
    assert list(answer.token_ids) == list(expected.token_ids)
    assert (answer.finish_reason, answer.stop_reason) == (
        expected.finish_reason,
        expected.stop_reason,
    )
    assert drafted == [pytest.approx(row, rel=1e-3, abs=1e-3) for row in rows]
    assert len(drafted) == (len(answer.token_ids) if case.order else 0)
    assert watched.steps - before < 2 * len(answer.token_ids) + 20
    for got, wanted in zip(answer.logprobs or (), expected.logprobs or (), strict=True):
        for token in got.keys() & wanted.keys():
            assert got[token].logprob == pytest.approx(wanted[token].logprob, abs=1e-3)
    assert watched.uneven == []


@pytest.mark.parametrize("name", ["cad", "plain"])
def test_top_k_in_steps_without_drafts(watched: Watched, cases: list[Case], name: str) -> None:
    """The first step of an answer has none; stock vLLM's engine ends there on CPU."""
    case = next(case for case in cases if case.name == name)
    params = greedy(case.order, temperature=1.0, top_k=1)
    (output,) = watched.engine.generate([(case.prompt, params)])
    assert list(output.outputs[0].token_ids) == case.expected.tokens
    assert set(watched.engine.leftovers().values()) == {0}


def test_aborts_at_every_step(watched: Watched, cases: list[Case]) -> None:
    chosen = [case for case in cases if case.name in ("cad", "two guides", "plain")][:3]
    for step in range(8):
        for i, case in enumerate(chosen):
            prompt: Any = {"prompt_token_ids": case.prompt}
            watched.engine.core.add_request(f"gone{i}", prompt, greedy(case.order))
        for _ in range(step):
            watched.engine.core.step()
        watched.engine.core.abort_request([f"gone{i}" for i in range(len(chosen))])
        assert set(watched.engine.leftovers().values()) == {0}


@pytest.mark.long
def test_nothing_is_left_after_a_storm(watched: Watched, cases: list[Case]) -> None:
    """All kinds of requests, which end in several ways; others are aborted at any moment."""
    rng, core = random.Random(4), watched.engine.core
    ends: dict[str, str | None] = {}
    gone: set[str] = set()

    def step() -> None:
        for output in core.step():
            if output.finished:
                ends[output.request_id] = output.outputs[0].finish_reason

    for number in range(60):
        case = rng.choice(cases)
        ways: list[dict[str, Any]] = [
            {"stop_token_ids": [case.expected.tokens[6]]}, {"temperature": 1.0, "seed": number},
            {"temperature": 1.0, "top_p": 0.9}, {"max_tokens": 5}, {"min_tokens": 3}, {},
        ]  # fmt: skip
        prompt: Any = {"prompt_token_ids": case.prompt}
        core.add_request(f"s{number}", prompt, greedy(case.order, **rng.choice(ways)))
        for _ in range(rng.randrange(4)):
            step()
        under_way = {f"s{n}" for n in range(number + 1)} - ends.keys() - gone
        if under_way and rng.random() < 0.4:
            gone.add(rng.choice(sorted(under_way)))
            core.abort_request([*gone])
    while core.has_unfinished_requests():
        step()
    assert set(watched.engine.leftovers().values()) == {0}
    assert watched.uneven == []
    assert ends.keys() == {f"s{n}" for n in range(60)} - gone
    assert len(gone) > 10
    assert set(ends.values()) == {"length", "stop"}


@pytest.mark.long
def test_tokens_are_the_same_with_the_governor(tiny: Any, cases: list[Case]) -> None:
    """It verifies more drafts in some runs than in others."""
    watched = Watched(tiny, cases, additional_config={}, **ROOMY)
    assert watched.engine.scheduler.drafts.governor is not None
    for _ in range(2):
        answers = test_groups.run(watched.engine, cases)
        assert mismatches(cases, answers) == []
    assert watched.uneven == []
    assert watched.accepted + watched.rejected > 0
    assert set(watched.engine.leftovers().values()) == {0}
    watched.engine.close()
