"""Drafts of guided requests: the search, where the document is, what an engine does with them."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numba.core.errors import NumbaPendingDeprecationWarning
from vllm import SamplingParams

from divserve.engine.scheduler.governor import OPTION
from divserve.engine.scheduler.members import document_of
from divserve.engine.worker.lookup import Lookup
from divserve.engine.worker.lookup_search import search
from divserve.engine.worker.slots import SLOTS, Groups, Located
from divserve_kernels import ABSENT
from tests.engine.test_stages import PLAIN
from tests.support.engine import Engine, order

K = 4
SHORTEST, LONGEST = 2, 4
NGRAM = {
    "method": "ngram",
    "num_speculative_tokens": K,
    "prompt_lookup_min": SHORTEST,
    "prompt_lookup_max": LONGEST,
}
TOKENS = st.lists(st.integers(0, 2), max_size=24)


def reference(
    known: list[int], document: tuple[int, int], prompt: int, lengths: tuple[int, int], most: int
) -> list[int]:
    """The drafts after ``known``, by the definition: three regions, lengths, then places."""
    (begin, end), (shortest, longest) = document, lengths

    def found(n: int, floor: int, places: range) -> list[int]:
        return [e for e in places if e - n >= floor and known[e - n : e] == known[-n:]]

    regions = (
        (begin, range(begin, min(end, prompt - 1) + 1), prompt),
        (0, range(prompt), prompt),
        (0, range(prompt, len(known)), len(known)),
    )
    for floor, places, stop in regions:
        for n in range(longest, shortest - 1, -1):
            if matches := found(n, floor, places):
                place = max(matches)
                return known[place : min(place + max(1, most - (longest - n)), stop)]
    return []


def searched(
    texts: list[tuple[list[int], tuple[int, int], int]], lengths: tuple[int, int], most: int
) -> list[list[int]]:
    """What the search finds, all in one call; the rows are in reverse order."""
    longest = max(len(known) for known, *_ in texts) + 3
    ids = np.full((len(texts) + 1, longest), 1, np.int32)
    sizes, drafts = np.zeros(len(texts) + 1, np.int32), np.zeros((len(texts), most), np.int32)
    counts, rows = np.full(len(texts), 99), np.arange(len(texts), 0, -1)
    for row, (known, *_) in zip(rows, texts, strict=True):
        ids[row, : len(known)], sizes[row] = known, len(known)
    places = np.array([(*document, prompt) for _, document, prompt in texts])
    search(ids, sizes, rows, places, *lengths, drafts, counts)
    return [row[:n] for row, n in zip(drafts.tolist(), counts.tolist(), strict=True)]


@st.composite
def texts(draw: st.DrawFn) -> tuple[list[int], tuple[int, int], int]:
    """Known tokens of few kinds, the document's place and the prompt's length."""
    known = draw(TOKENS.filter(len))
    prompt = draw(st.integers(1, len(known)))
    begin = draw(st.integers(0, prompt))
    return known, (begin, draw(st.integers(begin, prompt))), prompt


@given(
    st.lists(texts(), min_size=1, max_size=4),
    st.integers(1, 3),
    st.integers(0, 3),
    st.integers(1, 5),
)
@example([([0, 1, 2, 0, 1], (0, 3), 4)], 2, 0, 5)
@example([([1, 1, 1], (0, 0), 3)], 1, 3, 1)
def test_the_search_is_that_of_the_definition(
    found: list[tuple[list[int], tuple[int, int], int]], shortest: int, more: int, most: int
) -> None:
    lengths = shortest, shortest + more
    wanted = [reference(*text, lengths, most) for text in found]
    assert searched(found, lengths, most) == wanted


def test_the_document_comes_first() -> None:
    """A shorter match in the document beats a longer one elsewhere; the most recent one counts."""
    before, document, after = [9, 1, 2, 3, 70], [8, 2, 3, 71, 4, 2, 3, 72], [1, 2, 3, 73]
    prompt = [*before, *document, *after]
    known = [*prompt, 1, 2, 3, 74, 1, 2, 3]
    place = len(before), len(before) + len(document)
    other = place[1], place[1]
    assert searched([(known, place, len(prompt))], (2, 4), 5) == [[72, 1, 2]]
    assert searched([(known, other, len(prompt))], (2, 4), 4) == [[73]]
    assert searched([(known, (0, 0), 1)], (2, 4), 4) == [[74, 1, 2]]


@given(TOKENS, TOKENS, TOKENS)
def test_what_the_guide_lacks_is_the_document(
    before: list[int], document: list[int], after: list[int]
) -> None:
    prompt, guide = [*before, *document, *after], [*before, *after]
    begin, end = document_of(prompt, [guide, [1]])
    assert 0 <= begin <= end <= len(prompt)
    assert end - begin == len(document)
    if document:
        assert [*prompt[:begin], *prompt[end:]] == guide


def test_documents_of_other_guides() -> None:
    long = list(range(5000))
    assert document_of(long, []) == (0, 0)
    assert document_of(long, [[*long[1:], 7]]) == (0, 0)
    assert document_of(long, [[4999]]) == (0, 4999)
    assert document_of(long, [[*long[:10], 7, 7, *long[4000:]]]) == (10, 4000)


def layout(*groups: tuple[int, int, int], probes: list[int] = []) -> tuple[Groups, Located]:  # noqa: B006
    """Groups by slot, row of the primary and row of the guide."""
    rows = np.array([[primary, guide, ABSENT] for _, primary, guide in groups])
    slots = np.array([slot for slot, *_ in groups])
    found = Groups(slots, np.full(len(groups), "x", object), rows)
    probed = np.array([[0, 0, row] for row in probes], np.int64).reshape(-1, 3)
    return found, Located(np.zeros(9, np.int64), found, rows[:, 0], probed)


def test_rows_find_the_texts_of_their_slots() -> None:
    """Also after a slot has changed hands, and with more slots than at first."""
    lookup = Lookup()
    ids = np.array([[5, 6, 7, 5, 6, 8, 5, 6, 0, 0]] * 4, np.int32)
    lengths = np.full(4, 8, np.int32)
    sampled = [[6], [6], [6], [6]]
    lookup.add(1, replace(PLAIN, document=(3, 6)), 7)
    lookup.add(SLOTS, replace(PLAIN, document=(0, 3)), 7)
    lookup.lay_out(*layout((1, 2, 0), (SLOTS, 1, ABSENT), probes=[3]))
    assert lookup.withheld(sampled, primaries=False) == [[], [6], [6], []]
    assert lookup.withheld(sampled, primaries=True) == [[], [], [], []]
    both = {2: [8, 5], 1: [7, 5]}
    assert lookup.propose(sampled, ids, lengths, (2, 2), 2) == both
    assert lookup.propose([[6], [], [6], []], ids, lengths, (2, 2), 2) == {2: [8, 5]}
    assert lookup.propose(sampled, ids[:, :8], lengths, (2, 2), 2) == {}
    lookup.add(1, PLAIN, 1)
    lookup.lay_out(*layout((1, 2, 0)))
    assert lookup.propose(sampled, ids, lengths, (2, 2), 2) == {2: [8, 5]}


class Watched:
    """An engine with n-gram drafts; checks every draft that its runner proposes."""

    def __init__(self, model: Path) -> None:
        self.engine = Engine(
            model,
            speculative_config=NGRAM,
            max_num_batched_tokens=256,
            # All drafts are verified, whatever they cost here.
            additional_config={OPTION: False},
        )
        driver: Any = self.engine.core.model_executor
        self.runner = driver.driver_worker.worker.model_runner
        self.asked: list[int] = []
        """Rows for which vLLM's drafter has looked something up, by step."""
        self.drafts = {"guided": 0, "plain": 0}
        self.accepted = 0
        scheduler, drafter = self.engine.scheduler, self.runner.drafter
        self._share, self._propose = scheduler.update_draft_token_ids, drafter.propose
        self._update = scheduler.update_from_output
        scheduler.update_draft_token_ids, drafter.propose = self.share, self.propose
        scheduler.update_from_output = self.update

    def propose(self, most: int, sampled: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        self.asked.append(sum(map(bool, sampled)))
        return self._propose(most, sampled, *args, **kwargs)

    def share(self, proposed: Any) -> None:
        requests, groups = self.engine.scheduler.requests, self.engine.scheduler.groups
        for name, drafts in zip(proposed.req_ids, proposed.draft_token_ids, strict=True):
            if "~" in name:
                assert drafts == []
            elif name in requests:
                self._check(requests[name], groups.get(name), drafts)
        self._share(proposed)

    def _check(self, request: Any, group: Any, drafts: list[int]) -> None:
        self.drafts["plain" if group is None else "guided"] += len(drafts)
        if group is not None and request.num_output_tokens:
            guides = [guide.prompt_token_ids for guide in group.guides]
            place = document_of(request.prompt_token_ids, guides)
            known = list(request.all_token_ids)
            prompt = request.num_prompt_tokens
            assert drafts == reference(known, place, prompt, (SHORTEST, LONGEST), K)

    def update(self, output: Any, made: Any) -> Any:
        for name in output.scheduled_spec_decode_tokens:
            taken = made.sampled_token_ids[made.req_id_to_index[name]]
            self.accepted += max(len(taken) - 1, 0) if "~" not in name else 0
        return self._update(output, made)


@pytest.fixture(scope="module")
def watched(tiny: Path) -> Iterator[Watched]:
    with warnings.catch_warnings():
        # vLLM gives its drafter's compiled function a list.
        warnings.simplefilter("ignore", NumbaPendingDeprecationWarning)
        watched = Watched(tiny)
    yield watched
    watched.engine.close()


def test_answers_are_those_without_drafts(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every draft is that of the definition; guides have none of their own."""
    rng = random.Random(3)
    few = list(range(5, 13))  # So that answers repeat themselves and their prompts.
    params = SamplingParams(
        temperature=0, max_tokens=40, ignore_eos=True, detokenize=False, allowed_token_ids=few
    )
    batch = []
    for i in range(6):
        before, document, after = (rng.choices(few, k=n) for n in (9, 40, 6))
        own = params.clone()
        guide = [document[-1]] if i == 2 else [*before, *after]
        own.extra_args = order(("cad", "adacad")[i % 2], guide) if i < 5 else None
        batch.append(([*before, *document, *after], own))

    def answers() -> list[list[int]]:
        outputs = watched.engine.generate([(ids, own.clone()) for ids, own in batch])
        return [list(output.outputs[0].token_ids) for output in outputs]

    found = answers()
    assert watched.drafts["guided"] > 20
    assert watched.accepted > 20
    # Only the plain request is left to vLLM.
    assert max(watched.asked[3:]) == 1
    assert set(watched.engine.leftovers().values()) == {0}
    monkeypatch.setattr(watched.runner, "speculative_config", None)
    watched.accepted = 0
    assert found == answers()
    assert watched.accepted == 0
