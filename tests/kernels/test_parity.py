"""Every back end against the float64 reference: sizes, masks, dtypes, strides, reused memory."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from divserve_contract import Form, Program
from divserve_kernels import ABSENT, Programs, Streams, guide, side_row
from divserve_kernels.selfcheck import EXAMPLES
from tests.kernels.cases import (
    ALL,
    CPU,
    INTERPRETED,
    LONG,
    MANY,
    MIX,
    ON_CPU,
    assert_parity,
    back_end,
    made_up,
    pairs,
    streams_of,
)

SIZES = [1, 111, LONG, *([] if INTERPRETED else [49152, 151936, 262145])]


@pytest.mark.parametrize("vocab", SIZES)
@pytest.mark.parametrize("count", [1, 3, MANY])
@pytest.mark.parametrize("name", ALL)
def test_mixed_methods(name: str, count: int, vocab: int) -> None:
    """All methods in one call; odd sizes; rows anywhere in the batch."""
    # Interpreted rows run one by one, so MANY rows already test every method.
    every = count == 1 and vocab < LONG and name != "triton"
    for seed in range(len(MIX) if every else 1):
        assert_parity(back_end(name), *made_up(count, vocab, seed=seed))


@pytest.mark.parametrize("spread", [0.0, 0.01, 30.0])
@pytest.mark.parametrize("name", ALL)
def test_flat_and_peaked_rows(name: str, spread: float) -> None:
    vocab = 327 if name == "triton" else 997
    assert_parity(back_end(name), *made_up(len(MIX), vocab, spread=spread))


@pytest.mark.parametrize("vocab", [2, 7, LONG])
@pytest.mark.parametrize("name", ALL)
def test_masked_entries(name: str, vocab: int) -> None:
    """−inf in the primary, the guide, the third stream, in two of them, in all."""
    logits, streams = made_up(len(MIX) if name == "triton" else 2 * len(MIX), vocab)
    generator = torch.Generator().manual_seed(2)
    logits[torch.rand(logits.shape, generator=generator) < 0.4] = -math.inf
    logits[:, 0] = 1.0
    assert_parity(back_end(name), logits, streams)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("which", ["primary", "guide", "third"])
def test_streams_that_are_masked_everywhere(name: str, which: str) -> None:
    """A dead primary stays dead, a dead guide or third stream counts as uniform."""
    logits, streams = made_up(len(MIX), 301)
    logits[getattr(streams, which)] = -math.inf
    assert_parity(back_end(name), logits, streams)


@pytest.mark.parametrize("name", ALL)
def test_absent_streams(name: str) -> None:
    """A missing guide is the primary itself, a missing third stream zero; absent rows are
    unchanged."""
    logits, streams = made_up(len(MIX), 301)
    assert_parity(back_end(name), logits, streams_of(MIX, streams.primary.tolist()))
    primaries = [row if row % 2 else ABSENT for row in streams.primary.tolist()]
    guides = streams.guide.tolist()
    assert_parity(
        back_end(name), logits, streams_of(MIX, primaries, guides, streams.third.tolist())
    )
    assert_parity(back_end(name), logits, streams_of(MIX, [ABSENT] * len(MIX), guides))


@pytest.mark.parametrize("length", [250, 301, 350])
@pytest.mark.parametrize("name", ALL)
def test_side_rows_of_another_length(name: str, length: int) -> None:
    """Logits of amateurs: what lies beyond the shared vocabulary cannot be sampled."""
    logits, streams = made_up(len(MIX), 301)
    side = torch.randn(5, length, generator=torch.Generator().manual_seed(3))
    side[0, 7] = -math.inf
    side[1] = -math.inf
    guides, thirds = streams.guide.tolist(), streams.third.tolist()
    guides[::2] = [side_row(i % 5) for i in range(len(guides[::2]))]
    thirds[::3] = [side_row(i % 5) for i in range(len(thirds[::3]))]
    mixed = streams_of(MIX, streams.primary.tolist(), guides, thirds)
    for poison in (length < 301,) if name == "triton" else (False, True):
        assert_parity(back_end(name), logits, mixed, side, poison)


@pytest.mark.parametrize("vocab", [111, LONG])
@pytest.mark.parametrize("name", ALL[1:])
def test_bfloat16_logits(name: str, vocab: int) -> None:
    """Read as they are, written in float32 elsewhere."""
    logits, streams = made_up(len(MIX), vocab)
    assert_parity(back_end(name), logits.bfloat16(), streams, poison=True)


@pytest.mark.parametrize("name", ALL)
def test_every_entry_is_written(name: str) -> None:
    logits, streams = made_up(len(MIX), LONG)
    assert_parity(back_end(name), logits, streams, poison=True)


@pytest.mark.parametrize("name", ALL)
def test_strided_logits(name: str) -> None:
    """vLLM crops padded vocabularies with a view."""
    wide, streams = made_up(len(MIX), 160)
    dense = wide[:, :131].clone()
    view = wide[:, :131]
    run = back_end(name)
    assert torch.equal(run(view, streams, None, view), run(dense, streams, None, dense))
    assert torch.equal(view, dense)


def test_rows_with_gaps() -> None:
    """Torch handles whatever the fused back end does not."""
    wide, streams = made_up(len(MIX), 262)
    view, dense = wide[:, ::2], wide[:, ::2].clone()
    guide(view, streams)
    guide(dense, streams)
    torch.testing.assert_close(view, dense, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_identical_rows(name: str) -> None:
    """The divergence is 0, and adaptive methods return the logits bit for bit."""
    logits = torch.randn(5, 97, generator=torch.Generator().manual_seed(0))
    logits[4] = logits[1]
    before = logits.clone()
    adaptive = [Program(kl_rate=1, jsd_scale=1)]
    statistics = back_end(name)(logits, streams_of(adaptive, [4], [1]), None, logits)
    assert torch.equal(logits, before)
    assert statistics[0, 1:3].tolist() == [0.0, 0.0]
    assert statistics[0, -2:].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("name", [*ALL, "reference"])
def test_nan_stays_in_its_own_row(name: str) -> None:
    """A broken row shows in its statistics and does not reach its neighbours."""
    logits, streams = made_up(len(MIX), 50)
    healthy = logits.clone()
    run = back_end(name)
    broken = 3
    logits[streams.primary[broken], 5] = math.nan
    statistics = run(logits, streams, None, logits)
    expected = run(healthy, streams, None, healthy)
    others = torch.arange(len(MIX)) != broken
    assert statistics[broken, :2].isnan().all()
    assert torch.equal(statistics[others], expected[others])
    assert torch.equal(logits[streams.primary[others]], healthy[streams.primary[others]])


@pytest.mark.parametrize("name", ON_CPU)
def test_repeat_runs_are_bitwise_equal(name: str) -> None:
    """Threads share the work; Triton's interpreter has only one, and its GPU test repeats a run."""
    logits, streams = made_up(len(MIX), 20011)
    run, copies = back_end(name), [logits.clone(), logits.clone()]
    first, second = (run(copy, streams, None, copy) for copy in copies)
    assert torch.equal(first, second)
    assert torch.equal(*copies)


def test_the_number_of_threads_changes_nothing() -> None:
    """Segments have a fixed length and are merged in order."""
    logits, streams = made_up(len(MIX), 30011)
    before, copies = torch.get_num_threads(), [logits.clone(), logits.clone()]
    found = []
    for threads, copy in zip((1, 2), copies, strict=True):
        torch.set_num_threads(threads)
        found.append(guide(copy, streams))
    torch.set_num_threads(before)
    assert torch.equal(*found)
    assert torch.equal(*copies)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    vocab=st.integers(1, 300),
    count=st.integers(1, 9),
    spread=st.floats(0.01, 20),
    masked=st.floats(0, 0.9),
    name=st.sampled_from(ON_CPU),
)
def test_parity_anywhere(
    seed: int, vocab: int, count: int, spread: float, masked: float, name: str
) -> None:
    """Random rows at random places in a batch, with random masks."""
    logits, streams = made_up(count, vocab, seed, spread)
    mask = torch.rand(logits.shape, generator=torch.Generator().manual_seed(seed)) < masked
    mask[:, 0] = False
    logits[mask] = -math.inf
    assert_parity(back_end(name), logits, streams)


def test_more_rows_than_one_chunk() -> None:
    """Torch processes fifty pairs in chunks; the result is the same."""
    assert_parity(back_end("torch"), *made_up(50, 301))


def test_inference_mode_leaves_no_trace() -> None:
    """The engine calls in inference mode; what is kept between calls must work outside it too."""
    wide = torch.randn(2, 100_003)
    streams = pairs(wide, [EXAMPLES["cad"]])
    run = back_end("torch")
    with torch.inference_mode():
        copy = wide.clone()
        run(copy, streams, None, copy)
    run(wide, streams, None, wide)


def test_a_recycled_slot_follows_its_new_program() -> None:
    """Programs are overwritten in place, and the table grows without losing any."""
    programs = Programs(1, CPU)
    programs.write({0: EXAMPLES["cad"]})
    programs.write({0: EXAMPLES["instructive"], 5: EXAMPLES["cad"]})
    logits = torch.randn(4, 40, generator=torch.Generator().manual_seed(0))
    mine, expected = logits.clone(), logits.clone()
    guide(mine, Streams.pack(programs, [0, 5], [0, 2], [1, 3]))
    guide(expected, pairs(expected, [EXAMPLES["instructive"], EXAMPLES["cad"]]))
    assert torch.equal(mine, expected)
    with pytest.raises(ValueError, match="16"):
        programs.write({0: [1.0]})
    with pytest.raises(ValueError, match="constant weights"):
        programs.write({0: Program(form=Form.PROBABILITY, jsd_scale=1)})
