"""Guide rows are left out of sampling, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import LogitBiasLogitsProcessor, LogitsProcessors
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.sampler import Sampler
from vllm.v1.worker.gpu_model_runner import ExecuteModelState

from divserve.engine.reported import NOTHING_GUIDED, guidance_of
from divserve.engine.worker import runner_v1, runner_v2
from divserve.engine.worker.contrast import Contrast
from divserve.engine.worker.runner_v1 import GuidedRunner
from divserve.engine.worker.runner_v2 import GuidedRunnerV2
from divserve.engine.worker.sampled_rows import (
    SampledRows,
    batch_of,
    of_all_rows,
    worth_it_v1,
    worth_it_v2,
)
from divserve.engine.worker.staging import Staging
from divserve_kernels import ABSENT
from tests.engine.test_stages import VOCAB, Worker, pair
from tests.support.engine import Engine, order

PROMPT, GUIDE = list(range(10, 60)), list(range(30, 60))
CPU = torch.device("cpu")
TOKENS = 6

# Each pair of requests: a guided one and a plain one.
COMPACT: list[dict[str, Any]] = [
    {"temperature": 0.9, "top_p": 0.8, "seed": 1},
    {"temperature": 1.3, "top_k": 5, "seed": 2},
    {"temperature": 0.0, "frequency_penalty": 1.5},
    {"temperature": 0.7, "repetition_penalty": 1.4, "presence_penalty": 0.5, "seed": 3},
    {"temperature": 0.8, "allowed_token_ids": list(range(5, 200)), "seed": 4},
    {"temperature": 0.8, "bad_words": ["x"], "seed": 5},
    {"temperature": 1.1, "logprobs": 3, "seed": 6},
]
"""Everything of which rows may be left out."""
BY_ROW: list[dict[str, Any]] = [
    {"temperature": 0.9, "min_p": 0.1, "seed": 7},
    {"temperature": 0.9, "logit_bias": {7: 4.0}, "seed": 8},
    {"temperature": 0.9, "min_tokens": 4, "stop_token_ids": list(range(5, 60)), "seed": 9},
]
"""Logits processors that count the rows of the whole batch: all are sampled."""


@pytest.fixture(scope="module")
def engine(tiny: Path) -> Iterator[Engine]:
    engine = Engine(tiny, max_num_seqs=64, max_num_batched_tokens=512, enable_prefix_caching=False)
    yield engine
    engine.close()


def requests(settings: list[dict[str, Any]]) -> list[Any]:
    """A guided and a plain request with each of the settings."""
    found = []
    for one in settings:
        fields = {k: v for k, v in one.items() if k != "bad_words"}
        for extra in (order("adacad", GUIDE, one["temperature"]), None):
            params = SamplingParams(
                max_tokens=TOKENS,
                ignore_eos=True,
                detokenize=False,
                extra_args=extra,
                **fields,
            )
            if "bad_words" in one:
                params._bad_words_token_ids = [[40], [41, 42]]
            found.append((PROMPT, params))
    return found


def answers(engine: Engine, settings: list[dict[str, Any]]) -> list[Any]:
    """Tokens and logprobs of all requests, decoded together."""
    found = []
    for output in engine.generate(requests(settings)):
        (choice,) = output.outputs
        logprobs = [
            {token: (one.logprob, one.rank) for token, one in step.items()}
            for step in choice.logprobs or ()
        ]
        found.append((list(choice.token_ids), logprobs))
    return found


def rows_sampled(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows vLLM's sampler gets in each step from now on."""
    worker = engine.core.engine_core.engine_core.model_executor.driver_worker.worker
    sampler = worker.model_runner.sampler
    seen: list[int] = []
    forward = sampler.forward

    def counting(logits: Any, **rest: Any) -> Any:
        seen.append(len(logits))
        return forward(logits, **rest)

    monkeypatch.setattr(sampler, "forward", counting)
    return seen


@pytest.mark.parametrize(
    ("settings", "left_out"),
    [
        *((COMPACT[i : i + 1], True) for i in range(len(COMPACT))),
        (COMPACT, True),
        (COMPACT + BY_ROW, False),
        *((BY_ROW[i : i + 1], False) for i in range(len(BY_ROW))),
        ([{"temperature": 0.0}], False),
    ],
)
def test_tokens_and_logprobs_stay_the_same(
    engine: Engine,
    settings: list[dict[str, Any]],
    left_out: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count = len(settings)
    seen = rows_sampled(engine, monkeypatch)
    found = answers(engine, settings)
    assert max(seen) == (2 if left_out else 3) * count
    with monkeypatch.context() as patch:
        patch.setattr(runner_v1, "worth_it_v1", lambda metadata: False)
        seen.clear()
        expected = answers(engine, settings)
        assert max(seen) == 3 * count
    assert found == expected
    assert all(len(tokens) == TOKENS for tokens, _ in found)


def test_places_and_sources() -> None:
    kept = SampledRows.without(np.array([1, 4, 5]), np.array([0, 3, 3]), 6, Staging(CPU))
    assert kept.host.tolist() == kept.rows.tolist() == [0, 2, 3]
    assert kept.places.tolist() == [0, ABSENT, 1, 2, ABSENT, ABSENT]
    assert kept.source.tolist() == [0, 0, 1, 2, 2, 2]
    assert kept.by_place({0: "a", 3: "b", 4: "of a guide"}) == {0: "a", 2: "b"}


# Ranks whose generators must advance alike, and logits processors of the user's own.


def random_metadata(rows: int) -> SamplingMetadata:
    """vLLM's metadata of requests with temperature 1 and no seed."""
    none = torch.zeros(rows)
    return SamplingMetadata(
        temperature=torch.ones(rows),
        all_greedy=False,
        all_random=True,
        top_p=None,
        top_k=None,
        generators={},
        max_num_logprobs=None,
        no_penalties=True,
        prompt_token_ids=None,
        frequency_penalties=none,
        presence_penalties=none,
        repetition_penalties=none,
        output_token_ids=[],
        allowed_token_ids_mask=None,
        bad_words_token_ids={},
        logitsprocs=LogitsProcessors(),
    )


class PlayedRunner:
    """The part of vLLM's V1 runner that `GuidedRunner` builds on, with logits that are given."""

    def __init__(self, rows: list[str], logits: torch.Tensor) -> None:
        self.req_ids = rows
        self.seen: list[int] = []
        self.device, self.model = CPU, SimpleNamespace(compute_logits=None)
        self.query_start_loc = SimpleNamespace(np=np.arange(len(rows) + 1))
        self.discard_request_mask = SimpleNamespace(np=np.zeros(len(rows), np.bool_))
        self.input_batch = SimpleNamespace(
            req_ids=rows,
            generators={},
            sampling_metadata=random_metadata(len(rows)),
            update_async_output_token_ids=lambda: None,
        )
        self.execute_model_state: Any = ExecuteModelState(
            **dict.fromkeys(ExecuteModelState._fields)
            | {"logits": logits, "hidden_states": logits, "sample_hidden_states": logits}
        )
        self._sampler = Sampler()

    def sampler(self, logits: torch.Tensor, sampling_metadata: Any) -> Any:
        self.seen.append(len(logits))
        return self._sampler(logits, sampling_metadata)

    def _sample(self, logits: torch.Tensor, spec_decode_metadata: None) -> Any:
        return self.sampler(logits, self.input_batch.sampling_metadata)

    def sample_tokens(self, grammar_output: None) -> Any:
        sampled = self._sample(self.execute_model_state.logits, None)
        return SimpleNamespace(tokens=sampled.sampled_token_ids)


class PlayedGuidedRunner(GuidedRunner, PlayedRunner):
    """As `runner_v1.install` would make it."""


def played_step(fails: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], torch.Tensor]:
    """A step of a pair and a plain row: the sampler's numbers of rows, the generator after it."""
    worker = Worker()
    worker.observe(a=pair("a"))
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(0))
    runner = PlayedGuidedRunner(["a", "a~guide", "plain"], logits)
    runner.divserve_stages = worker.stages
    torch.manual_seed(1)
    with monkeypatch.context() as patch:
        if fails:
            patch.setattr(Contrast, "apply", lambda *_: 1 / 0)
        output = runner.sample_tokens(None)
    assert output.tokens.shape == (3, 1)
    assert (guidance_of(output) is NOTHING_GUIDED) == fails
    assert not runner.divserve_placed
    return runner.seen, torch.get_rng_state()


def test_generators_of_all_ranks_advance_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that cannot guide a step must not draw for more rows than the others do."""
    rows, state = played_step(False, monkeypatch)
    assert rows == [2]
    failed_rows, failed_state = played_step(True, monkeypatch)
    assert failed_rows == rows
    assert torch.equal(failed_state, state)


def test_a_processor_of_the_users_own_counts_all_rows() -> None:
    """Even if it is an idle subclass of one of vLLM's."""

    class Own(LogitBiasLogitsProcessor):  # type: ignore[misc]
        pass

    given = random_metadata(2)
    for processor, worth in ((LogitBiasLogitsProcessor, True), (Own, False)):
        given.logitsprocs = LogitsProcessors([processor(None, CPU, False)])
        assert worth_it_v1(given) == worth


@pytest.mark.parametrize(("plain", "left_out"), [(2, True), (3, False)])
def test_a_few_guides_are_sampled(plain: int, left_out: bool) -> None:
    """Copying all the other rows would cost what it saves."""
    worker = Worker()
    worker.observe(a=pair("a"))
    worker.step("a", "a~guide", *(f"plain {i}" for i in range(plain)))
    assert (worker.stages.sampled_rows is not None) == left_out


# Model Runner V2's sampler needs Triton: `test_runners` runs it; here, what it gets and returns.


def played_batch() -> Any:
    """Five rows in the slots 7, 2, 9, 4, 0, of which the second and the fourth are guides."""
    from vllm.v1.worker.gpu.input_batch import InputBatch

    fields: dict[str, Any] = dict.fromkeys(InputBatch.__dataclass_fields__)
    slots = np.array([7, 2, 9, 4, 0])
    return InputBatch(
        **fields
        | {
            "num_reqs": 5,
            "num_draft_tokens": 0,
            "idx_mapping": torch.from_numpy(slots),
            "idx_mapping_np": slots,
            "expanded_idx_mapping": torch.from_numpy(slots),
            "expanded_local_pos": torch.zeros(5, dtype=torch.int32),
            "logits_indices": torch.tensor([0, 1, 2, 3, 9]),
            "seq_lens": torch.tensor([5, 6, 7, 8, 9]),
            "seq_lens_cpu_upper_bound": torch.tensor([5, 6, 7, 8, 9, 0, 0]),
            "cu_num_logits": torch.arange(6),
            "cu_num_logits_np": np.arange(6),
        }
    )


def test_a_smaller_batch_of_v2() -> None:
    kept = SampledRows.without(np.array([1, 3]), np.array([0, 2]), 5, Staging(CPU))
    some = batch_of(played_batch(), kept)
    assert some.num_reqs == 3
    for slots in (some.idx_mapping, some.expanded_idx_mapping, some.idx_mapping_np):
        assert slots.tolist() == [7, 9, 0]
    assert some.logits_indices.tolist() == [0, 2, 9]
    assert some.seq_lens.tolist() == some.seq_lens_cpu_upper_bound.tolist() == [5, 7, 9]
    assert some.cu_num_logits.tolist() == some.cu_num_logits_np.tolist() == [0, 1, 2, 3]


def test_the_output_of_v2_has_all_rows() -> None:
    from vllm.v1.outputs import LogprobsTensors
    from vllm.v1.worker.gpu.sample.output import SamplerOutput

    kept = SampledRows.without(np.array([1, 3]), np.array([0, 2]), 5, Staging(CPU))
    three = torch.arange(3)
    logprobs = LogprobsTensors(three[:, None], three[:, None] / 2, three)
    found = of_all_rows(SamplerOutput(three[:, None], logprobs, None, three, three), kept)
    assert found.sampled_token_ids.tolist() == [[0], [0], [1], [1], [2]]
    assert found.num_sampled.tolist() == found.num_rejected.tolist() == [0, 0, 1, 1, 2]
    assert found.logprobs_tensors.selected_token_ranks.tolist() == [0, 0, 1, 1, 2]
    assert found.logprobs_tensors.logprobs.tolist() == [[0], [0], [0.5], [0.5], [1]]
    assert found.num_nans is None


@pytest.mark.parametrize(
    ("changes", "worth"),
    [
        ({}, False),
        ({"top_k": 50}, True),
        ({"top_p": 0.9}, True),
        ({"penalty": True}, True),
        ({"logprobs": (1, 0)}, True),
        ({"top_p": 0.9, "mask": True}, False),
    ],
)
def test_where_v2_leaves_rows_out(changes: dict[str, Any], worth: bool) -> None:
    """One request of the batch decides for all."""

    def by_slot(usual: Any, name: str) -> Any:
        values = np.full(10, usual)
        values[9] = changes.get(name, usual)
        return values

    sampler = SimpleNamespace(
        return_sampling_mask=changes.get("mask", False),
        sampling_states=SimpleNamespace(
            vocab_size=100,
            top_k=SimpleNamespace(np=by_slot(100, "top_k")),
            top_p=SimpleNamespace(np=by_slot(1.0, "top_p")),
        ),
        penalties_state=SimpleNamespace(use_penalty=by_slot(False, "penalty")),
        get_logprobs_dims=lambda slots: changes.get("logprobs"),
    )
    assert worth_it_v2(sampler, played_batch()) == worth


class PlayedRunnerV2:
    """The part of vLLM's V2 runner that `GuidedRunnerV2` builds on; its sampler counts rows."""

    def __init__(self, stages: Any) -> None:
        self.seen: list[int] = []
        self.divserve_stages, self.sampler = stages, self.count
        self.model, self.rejection_sampler = Model(), None

    def count(self, logits: torch.Tensor, batch: Any) -> Any:
        assert batch.num_reqs == len(logits)
        self.seen.append(len(logits))
        from vllm.v1.worker.gpu.sample.output import SamplerOutput

        return SamplerOutput(torch.arange(len(logits))[:, None], None, None, None, None)

    def sample(self, hidden_states: torch.Tensor, input_batch: Any, grammar_output: None) -> Any:
        return (self.sampler(self.model.compute_logits(hidden_states), input_batch),)


class Model:
    """Its hidden states are its logits."""

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states


class PlayedGuidedRunnerV2(GuidedRunnerV2, PlayedRunnerV2):
    """As `runner_v2.install` would make it."""


@pytest.mark.parametrize("fails", [False, True])
def test_v2_leaves_out_guides_even_if_guiding_fails(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker()
    worker.observe(a=pair("a"), b=pair("b"))
    batch = played_batch()
    batch.req_ids = ["a", "a~guide", "b", "b~guide", "plain"]
    batch.query_start_loc_np, batch.prefill_len_np = np.arange(6), np.zeros(5)
    monkeypatch.setattr(runner_v2, "worth_it_v2", lambda sampler, batch: True)
    if fails:
        monkeypatch.setattr(Contrast, "apply", lambda *_: 1 / 0)
    runner = PlayedGuidedRunnerV2(worker.stages)
    (sampled,) = runner.sample(torch.randn(5, VOCAB), batch, None)
    assert (runner.divserve_pending is None) == fails
    assert runner.seen == [3]
    assert sampled.sampled_token_ids[:, 0].tolist() == [0, 0, 1, 1, 2]
